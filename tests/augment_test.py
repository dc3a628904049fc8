import re
import subprocess
import sys

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image, ImageEnhance, ImageFilter, ImageOps

from deit_tf import augment, mixing, policies

SMOOTH = np.asarray(
    Image.fromarray(np.random.RandomState(0).randint(0, 256, (4, 4, 3)).astype(np.uint8)).resize(
        (24, 24), Image.Resampling.BICUBIC
    ),
    np.float32,
)
GREY = (128.0, 128.0, 128.0)
MOVING = ("Rotate", "ShearX", "ShearY", "TranslateXRel", "TranslateYRel")


@pytest.fixture(scope="module")
def apply():
    """Function (image, operation, argument): what `augment.apply` makes of it, in whole levels."""

    def one(image, operation, argument=0.0, fill=GREY):
        code = policies.OPERATIONS.index(operation)
        image = tf.constant(image, tf.float32)
        arguments = tf.constant([float(argument)])
        found = augment.apply(image, tf.constant([code]), arguments, tf.constant(fill)).numpy()
        np.testing.assert_array_equal(found, np.round(found))
        assert found.min() >= 0
        assert found.max() <= 255
        return found

    return one


def test_flip_mirrors_left_to_right_where_asked():
    image = tf.constant(SMOOTH)
    np.testing.assert_array_equal(augment.flip(image, tf.constant(True)), SMOOTH[:, ::-1])
    np.testing.assert_array_equal(augment.flip(image, tf.constant(False)), SMOOTH)


def test_nothing_to_rotate_or_shift_changes_nothing():
    found = augment.rotate_shift(tf.constant(SMOOTH), 0.0, 0.0, 0.0)
    np.testing.assert_allclose(found, SMOOTH, atol=1e-3)


@pytest.mark.parametrize("degrees", [30.0, -12.0])
def test_rotates_as_pillow(degrees):
    found = augment.rotate_shift(tf.constant(SMOOTH), degrees, 0.0, 0.0).numpy()
    image = Image.fromarray(SMOOTH.astype(np.uint8))
    expected = np.asarray(image.rotate(degrees, Image.Resampling.BILINEAR), np.float32)
    inner = slice(5, -5)  # outside, Pillow fills with black and we repeat the edge
    assert np.abs(found - expected)[inner, inner].max() <= 1.0


@pytest.mark.parametrize(("right", "down"), [(3.0, 0.0), (-2.5, 1.25), (0.4, -6.0)])
def test_shifts_right_and_down(right, down):
    found = augment.rotate_shift(tf.constant(SMOOTH), 0.0, right, down).numpy()
    ys, xs = np.mgrid[:24, :24]
    y = np.clip(ys - down, 0, 23)
    x = np.clip(xs - right, 0, 23)
    top, left = np.floor(y).astype(int), np.floor(x).astype(int)
    bottom, far = np.minimum(top + 1, 23), np.minimum(left + 1, 23)
    v, h = (y - top)[..., None], (x - left)[..., None]
    expected = (1 - v) * ((1 - h) * SMOOTH[top, left] + h * SMOOTH[top, far]) + v * (
        (1 - h) * SMOOTH[bottom, left] + h * SMOOTH[bottom, far]
    )
    np.testing.assert_allclose(found, expected, atol=0.05)


def test_every_golden_operation_is_pillows(golden, apply):
    keys = [k for k in golden if k.startswith("randaugment/") and not k.endswith("/input")]
    seen = set()
    for key in keys:
        _, name, argument = key.split("/")
        operation = name.removesuffix("Rel")
        argument = 0.0 if argument == "none" else float(argument)
        found = apply(golden["randaugment/input"], operation, argument)
        off = np.abs(found - golden[key].astype(np.float32))
        assert off.max() <= 1, key
        assert off.mean() <= (0.05 if name in MOVING else 0.0), key
        seen.add(operation)
    assert seen == set(policies.OPERATIONS[1:16])


@pytest.mark.parametrize("operation", ["AutoContrast", "Equalize", "Color", "Sharpness"])
def test_a_uniform_image_stays_as_pillow_leaves_it(apply, operation):
    uniform = np.full((24, 24, 3), 77.0, np.float32)
    np.testing.assert_array_equal(apply(uniform, operation, 1.8), uniform)


def test_contrast_is_pillows_where_the_sum_of_an_image_has_more_digits_than_float32(apply):
    pixels = np.random.RandomState(0).randint(200, 256, (400, 400, 3)).astype(np.uint8)
    expected = ImageEnhance.Contrast(Image.fromarray(pixels)).enhance(1.5)
    np.testing.assert_array_equal(apply(pixels, "Contrast", 1.5), np.float32(expected))


def test_no_bits_are_black(apply):
    assert not apply(SMOOTH, "Posterize", 0.0).any()


def test_what_comes_from_outside_has_the_colour_of_the_fill(apply):
    found = apply(SMOOTH, "TranslateX", 0.5, (10.0, 20.0, 30.0))
    np.testing.assert_array_equal(found[:, 12:], np.broadcast_to([10, 20, 30], (24, 12, 3)))
    np.testing.assert_array_equal(found[:, :12], SMOOTH[:, 12:])


def test_desaturate_takes_the_colour_away(apply):
    grey = np.asarray(Image.fromarray(SMOOTH.astype(np.uint8)).convert("L"), np.float32)
    np.testing.assert_array_equal(
        apply(SMOOTH, "Desaturate", 1.0), np.repeat(grey[..., None], 3, -1)
    )
    np.testing.assert_array_equal(apply(SMOOTH, "Desaturate", 0.0), SMOOTH)


@pytest.mark.parametrize("deviation", [0.1, 0.3, 0.5, 0.7, 1.3, 2.0])
@pytest.mark.parametrize("kind", ["photograph", "noise"])
def test_blurs_as_pillow(apply, golden, deviation, kind):
    image = golden["randaugment/input"]
    if kind == "noise":
        image = np.random.RandomState(0).randint(0, 256, (96, 96, 3)).astype(np.uint8)
    blurred = Image.fromarray(image).filter(ImageFilter.GaussianBlur(deviation))
    off = np.abs(apply(image, "GaussianBlur", deviation) - np.asarray(blurred, np.float32))
    assert off.mean() <= 1.0
    assert off[6:-6, 6:-6].max() <= 3  # at the edge, Pillow repeats what it has already blurred


def test_operations_are_carried_out_in_their_order():
    codes = [policies.OPERATIONS.index(name) for name in ("SolarizeAdd", "Invert", "Nothing")]
    image = tf.fill((4, 4, 3), 100.0)
    arguments = tf.constant([20.0, 0.0, 0.0])
    found = augment.apply(image, tf.constant(codes), arguments, tf.constant(GREY))
    np.testing.assert_array_equal(found, np.full((4, 4, 3), 255.0 - 120.0))
    found = augment.apply(image, tf.constant(codes[::-1]), arguments[::-1], tf.constant(GREY))
    np.testing.assert_array_equal(found, np.full((4, 4, 3), 155.0))


def test_erases_its_box_with_noise_that_is_standard_normal_once_normalised():
    mean, std = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
    image = tf.constant(np.random.RandomState(0).uniform(0, 255, (128, 128, 3)), tf.float32)
    box = tf.constant([10, 20, 100, 90])
    found = augment.erase(image, box, tf.constant([1, 2], tf.int64), mean, std).numpy()
    outside = np.ones((128, 128), bool)
    outside[10:110, 20:110] = False
    np.testing.assert_array_equal(found[outside], image.numpy()[outside])
    noise = (found[10:110, 20:110] / 255.0 - mean) / std
    from scipy import stats

    for channel in range(3):
        assert stats.kstest(noise[..., channel].ravel(), stats.norm.cdf).pvalue > 1e-3
    assert abs(np.corrcoef(noise.reshape(-1, 3).T)[~np.eye(3, dtype=bool)]).max() < 0.05
    again = augment.erase(image, box, tf.constant([1, 2], tf.int64), mean, std)
    other = augment.erase(image, box, tf.constant([1, 3], tf.int64), mean, std)
    np.testing.assert_array_equal(again, found)
    assert not np.array_equal(other, found)


def test_erases_under_whole_number_constants():
    box, seed = tf.constant([0, 0, 4, 4]), tf.constant([1, 2], tf.int64)
    found = augment.erase(tf.constant(SMOOTH), box, seed, (0, 0, 0), (1, 1, 1)).numpy()
    assert found[:4, :4].std() > 100


@pytest.mark.parametrize("size", [1, 2, 3])
def test_operations_bear_the_smallest_images(apply, size):
    pixels = np.random.RandomState(0).randint(0, 256, (size, size, 3)).astype(np.uint8)
    for operation in policies.OPERATIONS:
        assert apply(pixels, operation, 2.0).shape == (size, size, 3)


def test_no_box_erases_nothing():
    image = tf.constant(SMOOTH)
    found = augment.erase(image, tf.zeros(4, tf.int32), tf.constant([1, 2], tf.int64), (0,), (1,))
    np.testing.assert_array_equal(found, SMOOTH)


def _inputs(function, *arguments):
    """Shapes of what a compiled function takes when it runs."""
    program = function.experimental_get_compiler_ir(*arguments)(stage="hlo")
    entry = re.search(r"entry_computation_layout=\{\((.*?)\)->", program).group(1)
    return re.findall(r"\w+\[[\d,]*\]", entry)


def test_nothing_is_compiled_anew_for_another_image():
    # XLA makes a constant of what it meets as an index, and compiles for every value of it.
    image, number = tf.zeros((24, 24, 3)), tf.constant(1.0)
    found = _inputs(augment._carry_out, tf.constant(1), image, number, tf.zeros(3))
    assert found == ["s32[]", "f32[24,24,3]", "f32[]", "f32[3]"]
    found = _inputs(augment.rotate_shift, image, number, number, number)
    assert found == ["f32[24,24,3]", "f32[]", "f32[]", "f32[]"]
    group = tf.zeros((4, 8, 8, 3)), tf.zeros((4, 5)), tf.zeros(4), tf.zeros((4, 4), tf.int32)
    found = _inputs(mixing.mix, *group)
    assert found == ["f32[4,8,8,3]", "f32[4,5]", "f32[4]", "s32[4,4]"]


@pytest.mark.parametrize("operation", ["AutoContrast", "Solarize"])
def test_pixels_are_float32_whatever_the_precision_of_the_networks(operation):
    import keras

    keras.config.set_dtype_policy("mixed_bfloat16")
    augment._kernel.cache_clear()  # as if no one had asked for it before
    pixels = np.random.RandomState(0).randint(20, 200, (21, 21, 3)).astype(np.uint8)
    pillow = {
        "AutoContrast": ImageOps.autocontrast(Image.fromarray(pixels)),
        "Solarize": ImageOps.solarize(Image.fromarray(pixels), 77),
    }
    found = augment._OPERATIONS[operation](tf.constant(pixels, tf.float32), 77.0, None)
    assert found.dtype == tf.float32
    assert np.abs(found - np.float32(pillow[operation])).max() <= 1


def test_blurring_adds_without_rounding(apply):
    # So that it does not hang on the order in which threads add.
    pixels = np.random.RandomState(0).randint(0, 256, (40, 40, 3)).astype(np.float64)
    box = augment._box(tf.constant(1.3)).numpy().astype(np.float64)
    assert box.sum() == pytest.approx(1.0)
    weights = np.round(np.convolve(np.convolve(box, box), box) * 2**15) / 2**15
    blurred = pixels
    for _ in range(2):
        padded = np.pad(blurred, [(6, 6), (0, 0), (0, 0)], "edge")
        blurred = sum(weight * padded[i : i + 40] for i, weight in enumerate(weights))
        blurred = np.floor(blurred + 0.5).transpose(1, 0, 2)
    np.testing.assert_array_equal(apply(pixels, "GaussianBlur", 1.3), np.minimum(blurred, 255))


_HASH = """
import hashlib, sys
import numpy as np, tensorflow as tf
threads = int(sys.argv[1])
tf.config.threading.set_intra_op_parallelism_threads(threads)
tf.config.threading.set_inter_op_parallelism_threads(threads)
from deit_tf import augment, policies
whole, rng = hashlib.sha256(), np.random.RandomState(0)
for size in (96, 224, 384):
    image = tf.constant(rng.randint(0, 256, (size, size, 3)), tf.float32)
    for code in range(len(policies.OPERATIONS)):
        arguments = tf.constant([1.3])
        found = augment.apply(image, tf.constant([code]), arguments, tf.constant([1.0, 2.0, 3.0]))
        whole.update(found.numpy().tobytes())
    box, seed = tf.constant([3, 4, 50, 60]), tf.constant([1, 2], tf.int64)
    whole.update(augment.erase(image, box, seed, (0.5,) * 3, (0.2,) * 3).numpy().tobytes())
print(whole.hexdigest())
"""


@pytest.mark.slow
def test_pixels_do_not_depend_on_how_many_threads_a_machine_has():
    found = {
        subprocess.run(
            [sys.executable, "-c", _HASH, str(threads)],
            capture_output=True,
            check=True,
            text=True,
        ).stdout
        for threads in (1, 2, 5)
    }
    assert len(found) == 1
    assert len(found.pop().strip()) == 64
