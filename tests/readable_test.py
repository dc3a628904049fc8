import logging
import pathlib
import re

import numpy as np
import pytest
import sklearn.datasets
import tensorflow as tf

from deit_tf import folder, readable
from deit_tf.config import InputError

PHOTO = (pathlib.Path(sklearn.datasets.__file__).parent / "images" / "china.jpg").read_bytes()
BAD = {"cut.jpg": PHOTO[:9000], "empty.jpg": b"", "text.png": b"no picture"}


def _png(level):
    return tf.io.encode_png(np.full((8, 8, 3), level, np.uint8)).numpy()


@pytest.fixture
def photographs(tmp_path):
    """Two classes of six grey images each, for training and for evaluation; three are bad."""
    for split in ("train", "val"):
        for c, name in enumerate("ab"):
            path = tmp_path / split / name
            path.mkdir(parents=True)
            for i in range(6):
                (path / f"g{i}.png").write_bytes(_png(40 * c + i))
    for name, content in BAD.items():
        (tmp_path / "train" / "a" / name).write_bytes(content)
    (tmp_path / "val" / "b" / "empty.jpg").touch()
    return tmp_path


@pytest.fixture
def train(photographs):
    return folder.open_folder(photographs, "train", "", 0.0)[0]


def test_the_first_unreadable_image_is_named(train):
    names = [pathlib.Path(train.name_of(i)).name for i in range(len(train))]
    bad = [i for i, name in enumerate(names) if name in BAD]
    readable.check(train, [i for i in range(len(train)) if i not in bad])
    for i in bad:
        with pytest.raises(InputError, match=f"{names[i]} cannot be read .*--skip_bad_images"):
            readable.check(train, [5, i])


def test_a_vanished_file_is_named(train):
    path = pathlib.Path(train.name_of(10))
    path.unlink()
    with pytest.raises(InputError, match=f"{path.name} cannot be read .No such file"):
        readable.check(train, range(9, len(train)))


def test_the_next_readable_image_takes_the_place_and_each_is_counted_once(train, caplog):
    records = readable.Readable(train)
    indices = [*range(len(train)), *range(len(train))]
    with caplog.at_level(logging.WARNING):
        rows = records.__getitems__(indices)
    names = [pathlib.Path(train.name_of(i)).name for i in indices]
    assert [row["readable"] for row in rows] == [name not in BAD for name in names]
    for i, row in enumerate(rows):
        follower = i
        while names[follower % len(train)] in BAD:
            follower += 1
        expected = train[follower % len(train)]
        assert (row["image"], row["label"]) == (expected["image"], expected["label"])
    assert records.bad == 3
    for name in BAD:
        assert name in caplog.text


def test_where_nothing_can_be_read_it_says_so(tmp_path):
    for split in ("train", "val"):
        (tmp_path / split / "a").mkdir(parents=True)
        (tmp_path / split / "a" / "x.jpg").touch()
    records = readable.Readable(folder.open_folder(tmp_path, "train", "", 0.0)[0])
    with pytest.raises(InputError, match="none of the images can be read"):
        records[0]


def test_the_commands_stop_at_it_or_pass_over_and_count(photographs, command):
    flags = [
        *("--model=deit", "--image_size=16", "--width=16", "--depth=1", "--heads=2", "--nojit"),
        *("--num_classes=2", "--batch_size=5", "--epochs=1", f"--dataset=folder:{photographs}"),
        *("--auto_augment=", "--erasing_rate=0", "--repeats=1", "--mixup_alpha=0"),
        *("--cutmix_alpha=0", f"--run_dir={photographs / 'run'}"),
    ]
    stopped = command("deit_tf.train", *flags)
    assert stopped.returncode == 1
    last = stopped.stderr.strip().splitlines()[-1]
    assert re.match(r"error: .*/train/a/(cut|empty|text)\.\w+ cannot be read \(.*\); mend", last)
    assert "Traceback" not in stopped.stderr
    assert not list((photographs / "run" / "checkpoints").iterdir())

    passed = command("deit_tf.train", *flags, "--skip_bad_images")
    assert passed.returncode == 0, passed.stderr
    counted = "could not be read and were passed over: 3 training, 1 evaluation images"
    assert counted in passed.stderr
    assert passed.stdout.startswith("on 12 images")  # 13 files, and one is bad


def test_looks_at_no_image_where_another_machine_has_gone():
    def suspects():
        raise AssertionError("looked")

    gone = tf.errors.UnavailableError(None, None, "Socket closed")
    with pytest.raises(tf.errors.UnavailableError), readable.naming(suspects):
        raise gone
