import hashlib
import time
import tracemalloc

import numpy as np
import pytest

from deit_tf import folder
from deit_tf.config import InputError


def _fill(root, names):
    """Files whose content is their own path."""
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(name.encode())


def _names(records):
    return [records.name_of(i) for i in range(len(records))]


@pytest.fixture
def two_folders(tmp_path):
    _fill(
        tmp_path,
        [
            "train/dog/b.JPEG",
            "train/dog/a.png",
            "train/dog/deep/er/c.WebP",
            "train/dog/notes.txt",
            "train/dog/.hidden.jpg",
            "train/cat/x.jpg",
            "train/README",
            "val/cat/1.gif",
            "val/dog/2.jpg",
            "val/dog/3.bmp",
        ],
    )
    return tmp_path


def test_finds_images_by_their_suffix_in_any_case_at_any_depth(two_folders):
    train, test, classes, others = folder.open_folder(two_folders, "train", "", 0.0)
    assert classes == ("cat", "dog")
    inside = [name.removeprefix(f"{two_folders}/") for name in _names(train)]
    assert inside == [
        "train/cat/x.jpg",
        "train/dog/a.png",
        "train/dog/b.JPEG",
        "train/dog/deep/er/c.WebP",
    ]
    assert [name.removeprefix(f"{two_folders}/") for name in _names(test)] == [
        "val/cat/1.gif",
        "val/dog/2.jpg",
    ]
    assert others == 2


def test_reads_any_of_them_with_its_label(two_folders):
    train, *_ = folder.open_folder(two_folders, "train", "val", 0.0)
    rows = train.__getitems__([3, 0, 3])
    assert [row["label"] for row in rows] == [1, 0, 1]
    assert rows[0]["image"] == b"train/dog/deep/er/c.WebP"
    assert rows[1]["image"] == b"train/cat/x.jpg"
    assert train[0] == rows[1]


def test_is_known_by_its_names_not_by_its_place(two_folders, tmp_path_factory):
    train, *_ = folder.open_folder(two_folders, "train", "", 0.0)
    moved = tmp_path_factory.mktemp("elsewhere") / "moved"
    moved.mkdir()
    (two_folders / "train").rename(moved / "train")
    (two_folders / "val").rename(moved / "val")
    again, *_ = folder.open_folder(moved, "train", "", 0.0)
    assert again.sha256() == train.sha256()
    (moved / "train/dog/new.jpg").touch()
    grown, *_ = folder.open_folder(moved, "train", "", 0.0)
    assert grown.sha256() != train.sha256()


def test_names_that_are_no_unicode_can_be_read(tmp_path):
    path = tmp_path / "train" / "a"
    path.mkdir(parents=True)
    odd = str(path).encode() + b"/caf\xe9 \xf0.jpg"
    with open(odd, "wb") as file:
        file.write(b"odd")
    _fill(tmp_path, ["val/a/x.jpg"])
    train, *_ = folder.open_folder(tmp_path, "train", "", 0.0)
    assert train[0] == {"image": b"odd", "label": 0}
    assert len(train.sha256()) == 64


@pytest.mark.parametrize("where", ["train/", ""], ids=["train folder", "class folders alone"])
def test_holds_a_part_of_every_class_out(where, tmp_path):
    names = [f"{where}{name}/{i}.jpg" for name in ("a", "b") for i in range(40)]
    _fill(tmp_path, [*names, f"{where}a/extra.jpg"])
    train, test, classes, _ = folder.open_folder(tmp_path, "train", "", 0.25)
    assert classes == ("a", "b")
    assert (len(train), len(test)) == (61, 20)
    assert not set(_names(train)) & set(_names(test))
    assert [row["label"] for row in test.__getitems__(range(20))] == [0] * 10 + [1] * 10
    # The choice depends on names alone: what is held out stays so when others come or go.
    held = {name for name in _names(test) if "/b/" in name}
    (tmp_path / f"{where}a/extra.jpg").unlink()
    again = folder.open_folder(tmp_path, "train", "", 0.25)[1]
    assert {name for name in _names(again) if "/b/" in name} == held
    ranked = sorted((f"{i}.jpg" for i in range(40)), key=_digest)
    assert {name.split("/")[-1] for name in held} == set(ranked[:10])


def _digest(name):
    return hashlib.sha256(name.encode()).digest()


def test_evaluation_alone_needs_no_training_images(tmp_path):
    _fill(tmp_path, ["val/a/x.jpg", "val/b/y.jpg"])
    train, test, classes, _ = folder.open_folder(tmp_path, "train", "", 0.0, training=False)
    assert train is None
    assert (len(test), classes) == (2, ("a", "b"))


@pytest.mark.parametrize(
    ("names", "fraction", "words"),
    [
        (["train/a/x.jpg"], 0.0, "there is no folder .*/val; give --train_split"),
        (["val/a/x.jpg"], 0.0, "there is no folder .*/train; .*--eval_fraction"),
        (["train/x.jpg", "val/x.jpg"], 0.0, "val holds no class folders"),
        (["train/a/x.txt", "val/a/x.jpg"], 0.0, "train/a holds no images"),
        (["train/a/x.jpg", "train/b/x.jpg", "val/a/x.jpg"], 0.0, "val lacks the class b, which"),
        (
            ["train/a/x.jpg", *(f"val/{c}/x.jpg" for c in "abcdef")],
            0.0,
            "train lacks the class b, c, d and 2 more",
        ),
        (["a/x.jpg"], 0.5, r"class a has 1 image\(s\); .* none is left"),
    ],
)
def test_says_what_a_folder_lacks(names, fraction, words, tmp_path):
    _fill(tmp_path, names)
    with pytest.raises(InputError, match=words):
        folder.open_folder(tmp_path, "train", "", fraction)
    with pytest.raises(InputError, match="is no folder"):
        folder.open_folder(tmp_path / "none", "train", "", fraction)


@pytest.mark.slow
def test_finds_more_than_a_million_images_in_seconds_and_little_memory(tmp_path):
    for c in range(1281):
        path = tmp_path / "train" / f"n{c:08d}"
        path.mkdir(parents=True)
        for i in range(1000):
            (path / f"n{c:08d}_{i * 37}.JPEG").touch()
        (tmp_path / "val" / path.name).mkdir(parents=True)
        (tmp_path / "val" / path.name / "one.JPEG").touch()
    tracemalloc.start()
    start = time.perf_counter()
    train, *_ = folder.open_folder(tmp_path, "train", "", 0.0)
    order = np.random.RandomState([0, 0]).permutation(len(train))
    seconds, (_, most) = time.perf_counter() - start, tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert len(train) == len(order) == 1_281_000
    assert most < 300e6, most  # bytes; measured 60e6
    assert seconds < 120, seconds  # traced, which is several times slower than it is
    assert train.name_of(1_280_999).endswith("train/n00001280/n00001280_9990.JPEG")
