"""What is seen of an image, whatever its shape: by the evaluation, its twin and random crops."""

import io

import numpy as np
from hypothesis import example, given, settings
from hypothesis import strategies as st
from PIL import Image

from deit_tf import draws, preprocess
from deit_tf.manifest import Manifest
from serving import image

FEW = settings(max_examples=60, deadline=None, derandomize=True)
SHAPES = st.tuples(st.integers(1, 48), st.integers(1, 48)) | st.sampled_from(
    [(1, 1), (1, 300), (300, 1), (2, 500), (500, 3), (17, 200)]
)
SIZES = st.sampled_from([1, 2, 7, 16, 32])
FRACTIONS = st.sampled_from([0.5, 0.875, 0.9, 1.0])
SEEDS = st.integers(0, 2**32 - 1)


def _noise(shape, seed, low=0, high=256):
    return np.random.RandomState(seed).randint(low, high, (*shape, 3)).astype(np.uint8)


def _is_image(found, size):
    found = np.asarray(found)
    assert found.shape == (size, size, 3)
    assert found.dtype == np.float32
    assert (found == found.round()).all()
    assert 0 <= found.min() <= found.max() <= 255


@FEW
@given(SHAPES, SIZES, FRACTIONS, SEEDS)
def test_any_image_is_seen_as_pixels_of_the_networks_size(shape, size, fraction, seed):
    pixels = _noise(shape, seed)
    _is_image(preprocess.center_crop(pixels, size, fraction), size)
    seen = image.center_crop(Image.fromarray(pixels), size, fraction)
    assert (seen.shape, seen.dtype) == ((size, size, 3), np.uint8)


@FEW
@given(SHAPES, SIZES, FRACTIONS, st.integers(0, 255))
def test_a_plain_image_stays_plain(shape, size, fraction, grey):
    pixels = np.full((*shape, 3), grey, np.uint8)
    assert (preprocess.center_crop(pixels, size, fraction).numpy() == grey).all()
    assert (image.center_crop(Image.fromarray(pixels), size, fraction) == grey).all()


@FEW
@given(SHAPES, SIZES, FRACTIONS, SEEDS)
def test_the_twins_differ_by_a_grey_level_at_most(shape, size, fraction, seed):
    # Of middle greys: beyond black and white Pillow clips between both directions.
    pixels = _noise(shape, seed, 64, 192)
    manifest = Manifest("deit", size, fraction, (), (), "", (), (), {}, {})
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    off = np.abs(
        image.view(file.getvalue(), manifest) - preprocess.center_crop(pixels, size, fraction)
    )
    assert off.max() <= 1
    assert off.mean() <= 0.5 or size < 7  # of a few pixels the mean is any one's


@FEW
@given(
    st.tuples(st.integers(12, 120), st.integers(12, 120)), st.sampled_from([8, 16, 32]), FRACTIONS
)
def test_the_crop_is_the_centre_and_as_wide_as_its_fraction(shape, size, fraction):
    """By an image whose red tells the row and whose green the column that is seen."""
    rows, columns = np.meshgrid(*map(np.arange, shape), indexing="ij")
    levels = 255 // max(shape)  # grey levels from one row to the next
    pixels = (levels * np.stack([rows, columns, rows], axis=-1)).astype(np.uint8)
    seen = preprocess.center_crop(pixels, size, fraction).numpy() / levels
    short = int(size / fraction)  # the shorter side, where the crop is `size`
    # Near an edge of the image what is seen bends.
    inner = slice(size // 4, size - size // 4)
    for axis, side in enumerate(shape):
        line = seen[..., axis].mean(axis=1 - axis)[inner]
        step = side / (side * short // min(shape))  # rows of the image in one of the crop
        found = (line[-1] - line[0]) / (len(line) - 1)
        assert abs(found - step) <= 1.2 / levels / (len(line) - 1)  # levels are whole
        # An odd margin is not halved.
        assert abs(line.mean() - (side - 1) / 2) <= 0.51 * step + 0.5 / levels


BOXES = st.tuples(st.integers(1, 6000), st.integers(1, 6000)) | st.sampled_from(
    [(1, 1), (1, 100_000), (100_000, 1), (3, 65_535)]
)


def _crop_of(seed, epoch, position, min_area=0.08, max_aspect=4 / 3, before=0, count=1):
    """Sides and corner of a view, drawn among others."""
    positions = range(position - before, position - before + count)
    numbers = draws.uniform(draws.key(seed, epoch, "crop"), positions, draws.CROP_NUMBERS)
    sides, corner = draws.crop(numbers, min_area, max_aspect)
    return sides[before], corner[before]


@settings(FEW, max_examples=150)
@given(BOXES, SEEDS, st.floats(0.001, 1.0), st.floats(1.0, 4.0))
@example((10, 400), 0, 1.0, 1.0)
def test_a_random_crop_lies_in_its_image(shape, seed, min_area, max_aspect):
    sides, corner = _crop_of(seed, 0, 0, min_area, max_aspect)
    box = preprocess._crop_box(*shape, sides, corner, max_aspect)
    top, left, height, width = (int(each) for each in box)
    assert 0 <= top <= top + height <= shape[0]
    assert 0 <= left <= left + width <= shape[1]
    assert height >= 1
    assert width >= 1
    # Rounding moves a side by half a pixel.
    assert (width - 0.5) / (height + 0.5) <= max_aspect * (1 + 1e-6)
    assert (height - 0.5) / (width + 0.5) <= max_aspect * (1 + 1e-6)


@settings(FEW, max_examples=30)
@given(SHAPES, SEEDS, st.integers(0, 1000), st.integers(0, 2**40), st.sampled_from(["PNG", "JPEG"]))
def test_a_random_crop_is_a_function_of_its_place_alone(shape, seed, epoch, position, form):
    file = io.BytesIO()
    Image.fromarray(_noise(shape, seed)).save(file, form)
    alone = _crop_of(seed, epoch, position)
    among = _crop_of(seed, epoch, position, before=min(position, 3), count=9)
    seen = [
        preprocess.random_resized_crop(file.getvalue(), 16, *drawn, 4 / 3)
        for drawn in (alone, among, alone)
    ]
    _is_image(seen[0], 16)
    np.testing.assert_array_equal(seen[0], seen[1])
    np.testing.assert_array_equal(seen[0], seen[2])
