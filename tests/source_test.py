"""Every kind of data set: opened in this process, and trained and evaluated by the commands."""

import io
import json
import pathlib

import numpy as np
import pytest
import sklearn.datasets
import tensorflow as tf
import tensorflow_datasets as tfds
from PIL import Image

from deit_tf import config, folder, prepared, source

PHOTOS = pathlib.Path(sklearn.datasets.__file__).parent / "images"
CLASSES = ("china", "flower")
COUNTS = {"train": 24, "validation": 7}
# How image i of a class is stored: ImageNet holds PNG and CMYK files named .JPEG, too.
FORMS = (("JPEG", "RGB"), ("JPEG", "CMYK"), ("PNG", "RGB"), ("JPEG", "L"))


def _photo(name, i, form="JPEG", mode="RGB"):
    """The i-th piece of a photograph, as a file."""
    rng = np.random.RandomState([CLASSES.index(name), i])
    left, top = rng.randint(0, 400), rng.randint(0, 300)
    piece = Image.open(PHOTOS / f"{name}.jpg").crop((left, top, left + 90 + i, top + 70))
    file = io.BytesIO()
    piece.convert(mode).save(file, form)
    return file.getvalue()


def _items():
    """(split, class, number) of all images."""
    offset = 0
    for split, count in COUNTS.items():
        for i in range(count):
            yield split, CLASSES[i % 2], offset + i
        offset += count


class Pieces(tfds.core.GeneratorBasedBuilder):
    """A TFDS set as a person would write one, with names of its own for image and class."""

    VERSION = tfds.core.Version("1.2.0")

    def _info(self):
        features = {
            "picture": tfds.features.Image(encoding_format="jpeg"),
            "kind": tfds.features.ClassLabel(names=CLASSES),
            "place": tfds.features.Text(),
        }
        return tfds.core.DatasetInfo(
            builder=self,
            features=tfds.features.FeaturesDict(features),
            supervised_keys=("picture", "kind"),
        )

    def _split_generators(self, dl_manager):
        return {split: self._generate_examples(split) for split in COUNTS}

    def _generate_examples(self, wanted):
        for split, name, i in _items():
            if split == wanted:
                picture = io.BytesIO(_photo(name, i))
                yield i, {"picture": picture, "kind": name, "place": "here"}


def _config(name):
    return tfds.core.BuilderConfig(name=name)


class Untold(tfds.core.GeneratorBasedBuilder):
    """A set whose images have no labels in one split, and floats in the place of pixels."""

    VERSION = tfds.core.Version("1.0.0")
    BUILDER_CONFIGS = tuple(map(_config, ("unlabelled", "floats")))

    def _info(self):
        floats = self.builder_config.name == "floats"
        image = tfds.features.Image(shape=(4, 4, 1 if floats else 3), dtype=self._dtype())
        label = tfds.features.ClassLabel(num_classes=3)
        features = tfds.features.FeaturesDict({"image": image, "label": label})
        return tfds.core.DatasetInfo(builder=self, features=features)

    def _dtype(self):
        return np.float32 if self.builder_config.name == "floats" else np.uint8

    def _split_generators(self, dl_manager):
        return {"train": self._generate_examples(1), "test": self._generate_examples(-1)}

    def _generate_examples(self, label):
        channels = 1 if self.builder_config.name == "floats" else 3
        yield 0, {"image": np.zeros((4, 4, channels), self._dtype()), "label": label}


@pytest.fixture(scope="module")
def places(tmp_path_factory):
    """The same images as a folder, as ArrayRecord and as TFRecord."""
    root = tmp_path_factory.mktemp("places")
    for split, name, i in _items():
        path = root / "folder" / {"validation": "val"}.get(split, split) / name
        path.mkdir(parents=True, exist_ok=True)
        (path / f"{i:03d}.JPEG").write_bytes(_photo(name, i, *FORMS[i % len(FORMS)]))
    for form in ("array_record", "tfrecord"):
        Pieces(data_dir=str(root / form), file_format=form).download_and_prepare()
    return root


def _open(**facts):
    return source.open_source(config.DataConfig(**facts))


def test_opens_a_folder(places):
    found = _open(dataset=f"folder:{places}/folder")
    assert found.labels == CLASSES
    assert (len(found.train), len(found.eval)) == (24, 7)
    assert found.facts["dataset"] == "folder"
    assert found.facts["train_images"] == 24
    assert len(found.facts["train_files_sha256"]) == 64
    assert found.train[0]["image"] == _photo("china", 0)


def test_opens_a_tfds_set_by_its_own_names_of_image_and_class(places):
    found = _open(dataset="tfds:pieces", data_dir=str(places / "array_record"))
    assert found.labels == CLASSES
    sizes = {"dataset": "pieces/1.2.0", "train_images": 24, "eval_images": 7}
    assert sizes.items() <= found.facts.items()
    assert found.facts.keys() - sizes.keys() == {"classes_sha256", "records_sha256"}
    images = {row["image"] for row in found.train.__getitems__(range(24))}
    assert images == {_photo(name, i) for split, name, i in _items() if split == "train"}
    assert found.eval.name_of(3) == "record 3 of pieces/1.2.0 validation"
    for row in found.eval.__getitems__([0, 5]):
        assert row["image"] in {
            _photo(CLASSES[row["label"]], i) for split, _, i in _items() if split == "validation"
        }


def test_opens_parts_of_tfds_splits(places):
    found = _open(
        dataset="tfds:pieces",
        data_dir=str(places / "array_record"),
        train_split="train[:75%]",
        eval_split="train[75%:]+validation",
    )
    assert (len(found.train), len(found.eval)) == (18, 13)


def test_a_file_renames_the_classes(places, tmp_path):
    (tmp_path / "names.txt").write_text("flower\tBlume\nchina\tChina\n")
    found = _open(dataset=f"folder:{places}/folder", labels=str(tmp_path / "names.txt"))
    assert found.labels == ("China", "Blume")
    assert found.classes == CLASSES


def test_the_digits_bring_their_checksum(data_dir):
    found = _open(data_dir=str(data_dir))
    assert found.facts["dataset"] == "digits/1.0.0"
    assert len(found.facts["split_sha256"]) == 64
    assert (len(found.train), len(found.eval)) == (1400, 397)


class Twin(tfds.core.GeneratorBasedBuilder):
    """A set that its maker changes without giving it another version."""

    VERSION = tfds.core.Version("1.0.0")
    names, side = "ab", 4

    def _info(self):
        label = tfds.features.ClassLabel(names=list(self.names))
        features = {"image": tfds.features.Image(), "label": label}
        return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict(features))

    def _split_generators(self, dl_manager):
        return {"train": self._generate_examples(), "test": self._generate_examples()}

    def _generate_examples(self):
        yield 0, {"image": np.zeros((self.side, self.side, 3), np.uint8), "label": "a"}


def test_a_changed_set_is_another_though_its_version_is_the_same(tmp_path, monkeypatch):
    facts = {}
    for change, value in (("names", "ab"), ("names", "ba"), ("side", 90)):
        monkeypatch.setattr(Twin, change, value)
        place = str(tmp_path / f"{change}{value}")
        Twin(data_dir=place, file_format="array_record").download_and_prepare()
        facts[value] = _open(dataset="tfds:twin", data_dir=place).facts
    assert facts["ab"]["classes_sha256"] != facts["ba"]["classes_sha256"]
    assert facts["ba"]["records_sha256"] != facts[90]["records_sha256"]
    assert facts["ba"]["classes_sha256"] == facts[90]["classes_sha256"]


def test_says_what_a_set_lacks(places, tmp_path):
    prepared = {"dataset": "tfds:pieces", "data_dir": str(places / "array_record")}
    for name in ("unlabelled", "floats"):
        builder = Untold(config=name, data_dir=str(tmp_path), file_format="array_record")
        builder.download_and_prepare()
    for facts, words in (
        ({"train_split": "trian", **prepared}, "no split 'trian'; it has train, validation"),
        ({"eval_split": "test", **prepared}, "no split 'test'"),
        ({"train_split": "train[:0%]", **prepared}, r"train\[:0%\] holds no images"),
        ({"train_split": "train[5:2]", **prepared}, r"train\[5:2\] holds no images"),
        ({"eval_fraction": 0.1, **prepared}, "is no folder; give --train_split=train"),
        (
            {"dataset": "tfds:untold/unlabelled", "data_dir": str(tmp_path)},
            "the images of untold/unlabelled/1.0.0 test have no labels",
        ),
        (
            {"dataset": "tfds:untold/floats", "data_dir": str(tmp_path)},
            "has no 8-bit image with a class as label; it has ",
        ),
        ({"dataset": "folder:"}, "give digits, tfds:NAME"),
    ):
        with pytest.raises(config.InputError, match=words):
            _open(**facts)


@pytest.fixture(scope="module")
def trained(places, command):
    """What the commands answered: {kind of data set: {what was done: answer}}."""
    answers, names = {}, places / "names.txt"
    names.write_text("flower\tBlume\nchina\tChina\n")
    plain = ["--auto_augment=", "--erasing_rate=0", "--mixup_alpha=0", "--cutmix_alpha=0"]
    for kind, flags in {
        "folder": [f"--dataset=folder:{places}/folder", f"--labels={names}"],
        "array_record": ["--dataset=tfds:pieces", f"--data_dir={places}/array_record"],
        "tfrecord": ["--dataset=tfds:pieces", f"--data_dir={places}/tfrecord"],
    }.items():
        train = [
            "deit_tf.train",
            *("--model=deit", "--image_size=16", "--width=16", "--depth=1", "--heads=2"),
            *("--num_classes=2", "--batch_size=8", "--epochs=1", "--nojit", *flags),
            *(["--mix_group=4"] if kind == "folder" else plain),  # once, the whole recipe
            f"--run_dir={places}/runs/{kind}",
        ]
        done = answers[kind] = {}
        if kind == "tfrecord":
            with pytest.raises(config.InputError) as refused:
                _open(dataset="tfds:pieces", data_dir=str(places / kind))
            done["refused"] = str(refused.value)
            done["converted"] = command("deit_tf.prepare", *flags)
        done["train"] = command(*train)
        names.unlink(missing_ok=True)  # names travel with the run, not their file
        if kind != "array_record":  # after tfrecord's conversion there is nothing new to see
            done["evaluate"] = command(
                "deit_tf.evaluate", f"--run_dir={places}/runs/{kind}", "--json", "--batch_size=5"
            )
    return answers


@pytest.mark.parametrize("kind", ["folder", "array_record", "tfrecord"])
def test_trains_and_evaluates_by_the_same_command(kind, trained, places):
    assert trained[kind]["train"].returncode == 0, trained[kind]["train"].stderr
    assert trained[kind]["train"].stdout.startswith("on 7 images")
    if kind != "array_record":
        assert trained[kind]["evaluate"].returncode == 0, trained[kind]["evaluate"].stderr
        assert json.loads(trained[kind]["evaluate"].stdout)["images"] == 7
    stored = json.loads((places / "runs" / kind / "config.json").read_text())
    assert stored["classes"] == list(CLASSES)
    assert stored["labels"] == (["China", "Blume"] if kind == "folder" else list(CLASSES))
    assert stored["facts"]["eval_images"] == 7


def test_what_lies_there_as_tfrecord_is_converted_once(trained, places):
    hint = "which has no random access; convert it once by: python -m deit_tf.prepare --dataset"
    assert hint in trained["tfrecord"]["refused"]
    converted = trained["tfrecord"]["converted"]
    assert converted.stdout.startswith("pieces converted")
    assert "31/31" in converted.stderr  # the bar counts images
    assert prepared.prepare("pieces", str(places / "tfrecord")) == "was there already"
    # The converted records are those of the set that was prepared as ArrayRecord.
    one, other = (
        _open(dataset="tfds:pieces", data_dir=str(places / form))
        for form in ("array_record", "tfrecord")
    )
    for split in ("train", "eval"):
        rows = [getattr(found, split).__getitems__(range(7)) for found in (one, other)]
        assert rows[0] == rows[1]
    # What read it as TFRecord still does.
    assert len(list(Pieces(data_dir=str(places / "tfrecord")).as_dataset("train"))) == 24


def test_a_stopped_conversion_goes_on(places, tmp_path):
    Pieces(data_dir=str(tmp_path), file_format="tfrecord").download_and_prepare()
    place = next(tmp_path.glob("pieces/*/"))
    whole = next((places / "array_record").glob("pieces/*/*train.array_record*"))
    (place / whole.name).write_bytes(whole.read_bytes())  # as far as the stopped one came
    with pytest.raises(config.InputError, match="as tfrecord, which has no random access"):
        _open(dataset="tfds:pieces", data_dir=str(tmp_path))
    assert prepared.prepare("pieces", str(tmp_path)) == "converted"
    assert len(_open(dataset="tfds:pieces", data_dir=str(tmp_path)).eval) == 7


def test_evaluates_images_that_have_moved(trained, places, command, tmp_path):
    assert trained["folder"]["train"].returncode == 0
    for path in (places / "folder" / "val").rglob("*.JPEG"):
        target = tmp_path / "validation" / path.parent.name / path.name
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(path.read_bytes())
    answer = command(
        "deit_tf.evaluate",
        f"--run_dir={places}/runs/folder",
        f"--dataset=folder:{tmp_path}",
        "--json",
        "--batch_size=5",  # of another size they add up to another last digit
    )
    assert answer.returncode == 0, answer.stderr
    assert answer.stdout == trained["folder"]["evaluate"].stdout


def test_files_that_are_no_images_are_counted(places, tmp_path, caplog):
    for split in ("train", "val"):
        (tmp_path / split / "a").mkdir(parents=True)
        (tmp_path / split / "a" / "x.jpg").touch()
        (tmp_path / split / "a" / "x.tiff").touch()
    with caplog.at_level("WARNING"):
        _open(dataset=f"folder:{tmp_path}")
    assert "2 files in" in caplog.text
    assert ", ".join(folder.SUFFIXES) in caplog.text


def test_images_of_every_form_are_decoded(places):
    from deit_tf import preprocess

    found = _open(dataset=f"folder:{places}/folder")
    for i in range(len(found.train)):
        image = preprocess.decode(found.train[i]["image"])
        assert image.shape[2] == 3
        number = int(pathlib.Path(found.train.name_of(i)).stem)
        assert image.shape[1] == 90 + number
        if FORMS[number % 4] == ("PNG", "RGB"):
            piece = tf.io.decode_png(found.train[i]["image"])
            np.testing.assert_array_equal(image, piece)
