"""Images in a served graph: their size by their header, without decoding them."""

import io

import numpy as np
import PIL.Image
import pytest
import tensorflow as tf

from deit_tf import manifest
from export import image_bytes

_SIZES = [(1, 1), (37, 300), (300, 37), (257, 16383)]


def _encoded(width, height, kind, mode="RGB", **options):
    stored = io.BytesIO()
    PIL.Image.new(mode, (width, height)).save(stored, kind, **options)
    return stored.getvalue()


@pytest.mark.parametrize(("width", "height"), _SIZES)
@pytest.mark.parametrize(
    ("kind", "mode", "options"),
    [
        ("JPEG", "RGB", {}),
        ("JPEG", "L", {"progressive": True}),
        ("PNG", "RGBA", {}),
        ("WebP", "RGB", {"quality": 1, "method": 0}),
        ("WebP", "RGBA", {"quality": 1, "method": 0}),
        ("WebP", "RGB", {"lossless": True, "quality": 0, "method": 0}),
    ],
)
def test_a_header_tells_the_sides(kind, mode, options, width, height):
    found = image_bytes.sides(tf.constant(_encoded(width, height, kind, mode, **options)))
    assert found.numpy().tolist() == [width, height]


def test_what_has_no_header_has_no_sides():
    png = _encoded(4, 4, "PNG")
    for content in (b"", b"hello", png[:7], b"RIFF    WEBPwhat", _encoded(4, 4, "BMP")):
        assert not image_bytes.sides(tf.constant(content)).numpy().any()


def test_the_largest_numbers_do_not_overflow():
    png = bytearray(_encoded(4, 4, "PNG"))
    png[16:24] = b"\xff" * 8
    assert image_bytes.sides(tf.constant(bytes(png))).numpy().tolist() == [2**32 - 1] * 2


@pytest.fixture(scope="module")
def geometry():
    """A manifest of 32 pixels."""
    facts = {"crop_fraction": 0.875, "mean": (0.5,) * 3, "std": (0.5,) * 3, "fusion": ""}
    return manifest.Manifest(
        "deit", 32, classes=("a",), labels=("a",), source={}, versions={}, **facts
    )


def test_a_view_is_pillows(geometry):
    rng = np.random.RandomState(0)
    image = PIL.Image.fromarray(rng.randint(0, 256, (90, 120, 3)).astype(np.uint8))
    stored = io.BytesIO()
    image.save(stored, "PNG")
    found = image_bytes.view(tf.constant(stored.getvalue()), geometry, 120 * 90)
    assert found.dtype == tf.uint8
    pillows = image.resize((48, 36), PIL.Image.BICUBIC).crop((8, 2, 40, 34))
    assert np.mean(np.abs(found.numpy().astype(int) - np.asarray(pillows))) <= 0.5


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (_encoded(11, 10, "PNG"), "too many pixels; at most 109 are taken"),
        (_encoded(101, 1, "PNG"), "one side more than 100 times the other"),
        (_encoded(4, 4, "GIF"), "neither JPEG, PNG nor WebP"),
        (b"%PDF-1.4", "neither JPEG, PNG nor WebP"),
    ],
)
def test_what_is_not_taken_is_said(content, says, geometry):
    with pytest.raises(tf.errors.InvalidArgumentError, match=says):
        image_bytes.view(tf.constant(content), geometry, 109)
