import pathlib
import subprocess
import sys

import numpy as np
import pytest
import tensorflow as tf
from sklearn import datasets

from deit_tf import config, digits, source

ROOT = pathlib.Path(__file__).parent.parent


def test_split_is_fixed_and_stratified():
    labels = datasets.load_digits().target
    train, test = digits.split(labels)
    assert (len(train), len(test)) == (1400, 397)
    assert sorted([*train, *test]) == list(range(1797))
    assert digits.split_sha256(train, test) == digits.SPLIT_SHA256
    assert digits.split_sha256(test, train) != digits.SPLIT_SHA256
    assert set(np.bincount(labels[test])) <= set(range(38, 42))


@pytest.fixture
def opened(data_dir):
    return source.open_source(config.DataConfig(data_dir=str(data_dir)))


def test_holds_the_images_of_scikit_learn(opened):
    raw = datasets.load_digits()
    train, test = digits.split(raw.target)
    for records, indices in ((opened.train, train), (opened.eval, test)):
        rows = records.__getitems__(list(range(len(records))))
        found = sorted((r["label"], tf.io.decode_png(r["image"]).numpy().tobytes()) for r in rows)
        pixels = np.round(raw.images[indices] * (255 / 16)).astype(np.uint8)
        images = np.repeat(pixels[..., None], 3, axis=-1)
        expected = sorted(zip(raw.target[indices], (i.tobytes() for i in images), strict=True))
        assert found == expected


def test_source_says_what_it_is(opened):
    assert opened.labels == tuple("0123456789")
    assert {
        "dataset": "digits/1.0.0",
        "train_images": 1400,
        "eval_images": 397,
        "split_sha256": digits.SPLIT_SHA256,
    }.items() <= opened.facts.items()


def test_two_processes_may_prepare_them_at_once(tmp_path):
    code = """
import sys
from deit_tf import config, source
records = source.open_source(config.DataConfig(data_dir=sys.argv[1]), training=False).eval
print(len(records))
"""
    command = [sys.executable, "-c", code, str(tmp_path)]
    both = [
        subprocess.Popen(
            command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        for _ in range(2)
    ]
    for process in both:
        out, err = process.communicate()
        assert out == "397\n", err[-500:]
    assert [path.name for path in (tmp_path / "digits").iterdir()] == ["1.0.0"]
