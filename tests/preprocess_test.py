import io
import pathlib

import numpy as np
import pytest
import sklearn.datasets
import tensorflow as tf
from PIL import Image

from deit_tf import draws, preprocess

PHOTOS = pathlib.Path(sklearn.datasets.__file__).parent / "images"


@pytest.mark.parametrize("photo", ["china.jpg", "flower.jpg"])
def test_decodes_jpeg_as_pillow_bit_for_bit(photo):
    path = PHOTOS / photo
    found = preprocess.decode(path.read_bytes())
    np.testing.assert_array_equal(found, np.asarray(Image.open(path).convert("RGB")))


@pytest.mark.parametrize("mode", ["RGB", "L", "RGBA", "P"])
def test_decodes_png_of_any_mode_as_rgb(mode):
    pixels = np.random.RandomState(0).randint(0, 256, (5, 7, 3)).astype(np.uint8)
    image = Image.fromarray(pixels).convert(mode)
    file = io.BytesIO()
    image.save(file, "PNG")
    found = preprocess.decode(file.getvalue())
    np.testing.assert_array_equal(found, np.asarray(image.convert("RGB")))


def _encoded(form, mode="RGB", **options):
    """A photograph as a file of some form and mode."""
    image = Image.open(PHOTOS / "flower.jpg").convert(mode)
    if mode == "RGBA":
        image.putalpha(image.getchannel("R"))  # or it would be stored without
    file = io.BytesIO()
    image.save(file, form, **options)
    return file.getvalue()


FILES = {
    "jpeg 4:4:4": lambda: _encoded("JPEG", subsampling=0),
    "jpeg 4:2:2": lambda: _encoded("JPEG", subsampling=1),
    "jpeg 4:2:0": lambda: _encoded("JPEG", subsampling=2),
    "jpeg grey": lambda: _encoded("JPEG", "L"),
    "jpeg cmyk": lambda: _encoded("JPEG", "CMYK"),
    "jpeg progressive": lambda: _encoded("JPEG", progressive=True),
    "webp": lambda: _encoded("WEBP", lossless=True),
    "webp with alpha": lambda: _encoded("WEBP", "RGBA", lossless=True, exact=True),
    "lossy webp with alpha": lambda: _encoded("WEBP", "RGBA", exact=True),
    "gif": lambda: _encoded("GIF"),
    "png 16 bit grey": lambda: _encoded("PNG", "I;16"),
}


@pytest.mark.parametrize("kind", FILES)
def test_decodes_as_pillow_whatever_the_file_holds(kind):
    encoded = FILES[kind]()
    image = Image.open(io.BytesIO(encoded))
    found = preprocess.decode(encoded)
    if kind == "png 16 bit grey":  # Pillow clips where it should scale
        expected = np.repeat(np.asarray(image)[..., None] >> 8, 3, axis=-1)
    else:
        expected = np.asarray(image.convert("RGBA"))[..., :3]  # alpha dropped, not blended
    np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("kind", FILES)
def test_decoding_a_part_gives_the_part_of_the_decoded(kind):
    encoded = FILES[kind]()
    image = preprocess.decode(encoded).numpy()
    height, width = image.shape[:2]
    part = tf.function(lambda box: preprocess._decode_crop(encoded, lambda h, w: tf.unstack(box)))
    rng = np.random.RandomState(0)
    boxes = [[0, 0, height, width], [height - 1, width - 1, 1, 1], [0, 0, 1, 1]]
    for _ in range(20):
        new_h, new_w = rng.randint(1, height + 1), rng.randint(1, width + 1)
        top, left = rng.randint(0, height - new_h + 1), rng.randint(0, width - new_w + 1)
        boxes.append([top, left, new_h, new_w])
    for box in boxes:
        top, left, new_h, new_w = box
        found = part(tf.constant(box, tf.int32)).numpy()
        np.testing.assert_array_equal(found, image[top : top + new_h, left : left + new_w])


@pytest.mark.parametrize("photo", ["china.jpg", "flower.jpg"])
def test_evaluation_geometry_is_the_published(photo, golden):
    image = preprocess.decode((PHOTOS / photo).read_bytes())
    found = preprocess.center_crop(image, 224, 0.875).numpy()
    expected = golden[f"eval/{photo}/224"].astype(np.float32)
    assert np.mean(np.abs(found - expected)) <= 0.5
    assert (found == found.round()).all()
    assert 0 <= found.min() <= found.max() <= 255
    # The tolerance tells filters apart: bilinear, or no antialiasing, is several times off.
    short = tf.cast(image[:, 106:533], tf.float32)
    for wrong in ({"method": "bilinear", "antialias": True}, {"method": "bicubic"}):
        other = tf.image.resize(short, (256, 256), **wrong)[16:240, 16:240]
        assert np.mean(np.abs(other - expected)) > 0.75


@pytest.mark.parametrize(
    ("height", "width", "size", "fraction"),
    [
        (8, 8, 32, 0.875),
        (40, 31, 16, 1.0),
        (31, 40, 16, 0.875),
        (100, 7, 7, 1.0),
        (50, 333, 24, 0.9),
    ],
)
def test_center_crop_is_pillows_for_any_shape(height, width, size, fraction):
    rng = np.random.RandomState(0)
    coarse = rng.randint(0, 256, (3, 4, 3)).astype(np.uint8)
    pixels = np.asarray(Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC))
    short = int(size / fraction)
    longer = int(short * max(height, width) / min(height, width))
    new = (short, longer) if width <= height else (longer, short)
    resized = Image.fromarray(pixels).resize(new, Image.Resampling.BICUBIC)
    left, top = round((new[0] - size) / 2), round((new[1] - size) / 2)
    expected = np.asarray(resized.crop((left, top, left + size, top + size)), np.float32)
    found = preprocess.center_crop(pixels, size, fraction).numpy()
    assert found.shape == (size, size, 3)
    assert np.mean(np.abs(found - expected)) <= 0.5


def _boxes(height, width, min_area, max_aspect, count=2000):
    """Boxes of many positions, float [count, 4]: top, left, height, width."""
    sides, corner = _crops(count, min_area, max_aspect)
    box = tf.function(lambda s, c: tf.stack(preprocess._crop_box(height, width, s, c, max_aspect)))
    pairs = zip(tf.constant(sides), tf.constant(corner), strict=True)
    return np.array([box(*pair) for pair in pairs], np.float64)


def _crops(count, min_area, max_aspect):
    """What is drawn for many crops."""
    numbers = draws.uniform(draws.key(0, 0, "crop"), range(count), draws.CROP_NUMBERS)
    return draws.crop(numbers, min_area, max_aspect)


def test_random_crop_follows_its_law():
    top, left, height, width = _boxes(300, 400, 0.08, 4 / 3).T
    assert (top >= 0).all()
    assert (left >= 0).all()
    assert (top + height <= 300).all()
    assert (left + width <= 400).all()
    area, aspect = height * width / 120_000, np.log(width / height)
    assert 0.075 < area.min() < 0.12
    assert area.max() > 0.85
    assert np.abs(aspect).max() <= np.log(4 / 3) + 0.03
    # Small boxes always fit, so for them area and log-aspect are uniform.
    small = aspect[area < 0.4]
    assert abs(small.mean()) < 0.03
    assert small.std() == pytest.approx(np.log(4 / 3) / np.sqrt(3), rel=0.1)
    # Corners are uniform over what the box leaves free.
    free = top / (300 - height + 1)
    assert free.mean() == pytest.approx(0.5, abs=0.03)


def test_random_crop_of_a_thin_image_falls_back_to_its_centre():
    boxes = _boxes(10, 400, 0.9, 4 / 3, count=5)
    np.testing.assert_array_equal(boxes, [[0, 193, 10, 13]] * 5)


def test_random_crop_with_all_bounds_closed_is_the_resized_image():
    pixels = np.random.RandomState(0).randint(0, 256, (12, 12, 3)).astype(np.uint8)
    encoded = tf.io.encode_png(pixels)
    sides, corner = _crops(1, 1.0, 1.0)
    found = preprocess.random_resized_crop(encoded, 8, sides[0], corner[0], 1.0)
    np.testing.assert_array_equal(found, preprocess.center_crop(pixels, 8, 1.0))


def test_same_draw_same_pixels_eager_and_in_tf_data():
    pixels = np.random.RandomState(0).randint(0, 256, (20, 30, 3)).astype(np.uint8)
    encoded = tf.io.encode_png(pixels)
    sides, corner = map(tf.constant, _crops(4, 0.2, 4 / 3))

    def crop(i):
        return preprocess.random_resized_crop(encoded, 16, sides[i], corner[i], 4 / 3)

    inside = list(tf.data.Dataset.range(4).map(crop, num_parallel_calls=2))
    for i, image in enumerate(inside):
        np.testing.assert_array_equal(image, crop(tf.constant(i, tf.int64)))
    assert not np.array_equal(inside[0], inside[1])


@pytest.mark.parametrize("corner", [0.0, 1.0])
def test_crops_stay_in_the_image_at_both_ends_of_the_draw(corner):
    sides, corner = np.full((10, 2), 0.5, np.float32), np.full(2, corner, np.float32)
    top, left, height, width = preprocess._crop_box(31, 47, sides, corner, 4 / 3)
    assert (top + height <= 31) & (left + width <= 47)
    assert (top == 0) == (corner[0] == 0.0)


@pytest.mark.parametrize("shape", [(50, 70), (300, 200), (16, 16), (7, 90)])
def test_resizing_is_tensorflows_bit_for_bit(shape):
    pixels = np.random.RandomState(0).randint(0, 256, (*shape, 3)).astype(np.uint8)
    expected = tf.image.resize(pixels, (24, 32), method="bicubic", antialias=True)
    expected = np.clip(np.round(expected), 0, 255)
    np.testing.assert_array_equal(preprocess._resize(tf.constant(pixels), 24, 32), expected)
