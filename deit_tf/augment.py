"""One training image: flip, rotation and shift, the operations of the policies, random erasing.

Every function takes and returns one float32 image [S, S, 3] in 0–255, and is told what `draws` and
`policies` have drawn. The operations answer in whole values, as Pillow's.
"""

import functools
import math

import tensorflow as tf

from deit_tf import policies


def flip(image, flipped):
    """Mirrors the image left to right where `flipped`, a bool scalar, says so."""
    return tf.cond(flipped, lambda: tf.reverse(image, [1]), lambda: image)


@tf.function(jit_compile=True)
def rotate_shift(image, degrees, right, down):
    """Rotates about the centre and shifts, both at once and bilinear; edges are repeated.

    Args:
      image: float32 [S, S, 3], 0–255.
      degrees: counter-clockwise, float scalar.
      right: pixels, float scalar.
      down: pixels, float scalar.

    Returns:
      float32 [S, S, 3], 0–255.
    """
    size = image.shape[0]
    return _bilinear(image, *_sources(size, _rotation(size, degrees, right, down)))


def apply(image, operations, arguments, fill):
    """Carries out what a policy has drawn for an image.

    The operations that move pixels interpolate bilinearly as Pillow's; the released recipe does so
    by bicubic, which TensorFlow's projective transform does not have.

    Args:
      image: float32 [S, S, 3], whole values in 0–255.
      operations: int32 [n], indices of `policies.OPERATIONS`.
      arguments: float32 [n].
      fill: float32 [3], colour of what comes from outside the image, 0–255.

    Returns:
      float32 [S, S, 3], whole values in 0–255.
    """
    for operation, value in zip(tf.unstack(operations), tf.unstack(arguments), strict=True):
        carried_out = functools.partial(_carry_out, operation, image, value, fill)
        image = tf.cond(operation > 0, carried_out, lambda image=image: image)
    return image


@tf.function(jit_compile=True)  # three times as fast as without
def _carry_out(operation, image, value, fill):
    """One operation on an image."""
    branches = [
        functools.partial(_OPERATIONS[name], image, value, fill) for name in policies.OPERATIONS
    ]
    return tf.switch_case(operation, branches)


def erase(image, box, seed, mean, std):
    """Fills a box with noise that is standard normal where the network has normalised it.

    Args:
      image: float32 [S, S, 3], 0–255.
      box: int32 [4]: top, left, height, width; no height is nothing to erase.
      seed: integer [2], of the noise.
      mean: what the network subtracts, three numbers in units of 0–1.
      std: what it divides by.

    Returns:
      float32 [S, S, 3]; the noise is not cut off at 0 and 255.
    """
    top, left, height, width = tf.unstack(box)

    def erased():
        noise = tf.random.stateless_normal(tf.stack([height, width, 3]), seed)
        noise = 255.0 * (tf.constant(mean, tf.float32) + tf.constant(std, tf.float32) * noise)
        bottom, right = top + height, left + width
        rows = [image[top:bottom, :left], noise, image[top:bottom, right:]]
        return tf.concat([image[:top], tf.concat(rows, axis=1), image[bottom:]], axis=0)

    return tf.ensure_shape(tf.cond(height > 0, erased, lambda: image), image.shape)


_BLUR_REACH = 6  # pixels: three boxes of two each


@functools.cache
def _kernel(name):
    """A layer of keras-cv, of which we use the pixel kernel; its random state is left alone."""
    import keras_cv  # seconds, and only for these operations

    # In float32, whatever precision the networks have.
    return getattr(keras_cv.layers, name)(value_range=(0, 255), dtype="float32")


# The operations, by Pillow 12. Each takes (image, argument, fill).


def _nothing(image, value, fill):
    return image


def _autocontrast(image, value, fill):
    return tf.floor(_kernel("AutoContrast").augment_images(image[tf.newaxis])[0])


def _equalize(image, value, fill):
    # Not keras-cv's: it leaves out another bin than Pillow does, and is up to 17 levels off.
    levels = tf.unstack(tf.cast(image, tf.int32), axis=-1)
    channels = [tf.gather(_equalizing(channel), channel) for channel in levels]
    return tf.cast(tf.stack(channels, axis=-1), tf.float32)


def _equalizing(channel):
    """The level that takes the place of each in a channel, int32 [256]."""
    levels = tf.range(256)
    flat, none = tf.reshape(channel, [-1]), tf.constant([], tf.int32)
    counts = tf.raw_ops.DenseBincount(input=flat, size=256, weights=none)
    # Not counts[...]: XLA takes an index in brackets for a constant, and compiles for every image.
    last = tf.gather(counts, tf.reduce_max(channel))
    step = (tf.reduce_sum(counts) - last) // 255
    width = tf.maximum(step, 1)
    below = tf.cumsum(counts, exclusive=True)
    return tf.where(step > 0, tf.minimum((below + width // 2) // width, 255), levels)


def _solarize(image, value, fill):
    threshold = {"thresholds": value, "additions": 0.0}
    return _kernel("Solarization").augment_images(image[tf.newaxis], threshold)[0]


def _invert(image, value, fill):
    return 255.0 - image


def _posterize(image, value, fill):
    step = tf.pow(2.0, 8.0 - value)  # keras-cv's has its bits built in, and cannot keep none
    return step * tf.floor(image / step)


def _solarize_add(image, value, fill):
    return tf.minimum(image + value * tf.cast(image < 128.0, tf.float32), 255.0)


def _gray(image):
    """Pillow's luminance, [S, S, 1]; its whole-number arithmetic is exact in float32."""
    red, green, blue = tf.split(image, 3, axis=-1)
    return tf.floor((19595.0 * red + 38470.0 * green + 7471.0 * blue + 32768.0) / 65536.0)


def _blend(degenerate, image, factor):
    """Between two images, or beyond them, cut off as Pillow does."""
    return tf.floor(tf.clip_by_value(degenerate + factor * (image - degenerate), 0.0, 255.0))


def _color(image, value, fill):
    return _blend(_gray(image), image, value)


def _desaturate(image, value, fill):
    return _blend(_gray(image), image, 1.0 - value)


def _contrast(image, value, fill):
    gray = tf.cast(_gray(image), tf.int32)  # whole numbers: their sum does not hang on its order
    mean = tf.cast(tf.reduce_sum(gray), tf.float64) / gray.shape.num_elements()
    return _blend(tf.cast(tf.floor(mean + 0.5), tf.float32), image, value)


def _brightness(image, value, fill):
    return _blend(0.0, image, value)


def _sharpness(image, value, fill):
    if image.shape[0] < 3:
        return image  # all edge, which stays
    rows = image[:-2] + image[1:-1] + image[2:]
    sums = rows[:, :-2] + rows[:, 1:-1] + rows[:, 2:] + 4.0 * image[1:-1, 1:-1]
    inner = tf.floor(sums / 13.0 + 0.5)
    inner = tf.concat([image[1:-1, :1], inner, image[1:-1, -1:]], axis=1)
    return _blend(tf.concat([image[:1], inner, image[-1:]], axis=0), image, value)


def _gaussian_blur(image, value, fill):
    size, steps = image.shape[0], tf.range(-_BLUR_REACH, _BLUR_REACH + 1)
    box = _box(value)
    bell = _convolve(_convolve(box, box), box)
    # Of so few digits that sums are exact: threads share them out, and may add in any order.
    weights = tf.round(bell * 2.0**15) / 2.0**15
    # Row i takes from rows i - reach to i + reach; beyond the edge the image goes on.
    taken = tf.clip_by_value(tf.range(size)[:, tf.newaxis] + steps, 0, size - 1)
    blur = tf.einsum("k,ikj->ij", weights, tf.one_hot(taken, size))
    for _ in range(2):  # rows, and columns as rows
        image = tf.floor(tf.einsum("ij,jkc->kic", blur, image) + 0.5)
    return tf.minimum(image, 255.0)


def _box(deviation):
    """Pillow's box with soft ends, float32 [5], of which three make a bell of this deviation.

    Reference: Gwosdek et al. 2011, "Theoretical foundations of Gaussian convolution by extended
    box filtering", with deviations up to 2.
    """
    variance = tf.square(deviation) / 3.0
    whole = tf.floor((tf.sqrt(12.0 * variance + 1.0) - 1.0) / 2.0)
    end = (2.0 * whole + 1.0) * (whole * (whole + 1.0) - 3.0 * variance)
    end /= 6.0 * (variance - tf.square(whole + 1.0))
    distance = tf.abs(tf.range(-2.0, 3.0))
    box = tf.where(distance <= whole, 1.0, tf.where(distance == whole + 1.0, end, 0.0))
    return box / (2.0 * (whole + end) + 1.0)


def _convolve(one, other):
    """The convolution of two kernels."""
    longer = other.shape[0] - 1
    return sum(other[i] * tf.pad(one, [[i, longer - i]]) for i in range(longer + 1))


def _rotate(image, value, fill):
    return _move(image, _rotation(image.shape[0], value, 0.0, 0.0), fill)


def _shear_x(image, value, fill):
    return _move(image, [1.0, value, 0.0, 0.0, 1.0, 0.0], fill)


def _shear_y(image, value, fill):
    return _move(image, [1.0, 0.0, 0.0, value, 1.0, 0.0], fill)


def _translate_x(image, value, fill):
    return _move(image, [1.0, 0.0, value * image.shape[1], 0.0, 1.0, 0.0], fill)


def _translate_y(image, value, fill):
    return _move(image, [1.0, 0.0, 0.0, 0.0, 1.0, value * image.shape[0]], fill)


def _rotation(size, degrees, right, down):
    """Where the point (x, y) of a rotated and shifted image comes from, as `_transform` wants."""
    angle, center = degrees * (math.pi / 180.0), size / 2.0
    cos, sin = tf.cos(angle), tf.sin(angle)
    c = center - cos * (center + right) + sin * (center + down)
    f = center - sin * (center + right) - cos * (center + down)
    return [cos, -sin, c, sin, cos, f]


def _move(image, matrix, fill):
    """An affine transform in whole values; a colour where a pixel's centre comes from outside."""
    x, y = _sources(image.shape[0], matrix)
    inside = (x >= 0.0) & (x < image.shape[1]) & (y >= 0.0) & (y < image.shape[0])
    moved = tf.floor(_bilinear(image, x, y) + 1e-3)  # Pillow cuts off; the rest is rounding
    return tf.where(inside[:, :, tf.newaxis], moved, fill)


def _sources(size, matrix):
    """Where the centres of the pixels of a transformed image come from.

    Args:
      size: S.
      matrix: a, b, c, d, e, f: the point (x, y) of the result comes from
        (a x + b y + c, d x + e y + f).

    Returns:
      x and y, float32 [S, S], pixels from the upper left corner.
    """
    a, b, c, d, e, f = matrix
    x = tf.range(0.5, size)  # [S]
    y = x[:, tf.newaxis]  # [S, 1]
    return a * x + b * y + c, d * x + e * y + f


def _bilinear(image, x, y):
    """The image at points [S, S]; beyond its edge it goes on as at the edge."""
    left, top = tf.floor(x - 0.5), tf.floor(y - 0.5)
    right_share, bottom_share = (
        (x - 0.5 - left)[:, :, tf.newaxis],
        (y - 0.5 - top)[:, :, tf.newaxis],
    )
    height, width, channels = image.shape
    pixels = tf.reshape(image, (height * width, channels))

    def row(y):
        start = tf.cast(tf.clip_by_value(y, 0.0, height - 1.0), tf.int32) * width
        ends = [tf.cast(tf.clip_by_value(left + i, 0.0, width - 1.0), tf.int32) for i in (0, 1)]
        first, second = (tf.gather(pixels, start + end) for end in ends)
        return first + right_share * (second - first)

    upper, lower = row(top), row(top + 1.0)
    return upper + bottom_share * (lower - upper)


_OPERATIONS = {
    "Nothing": _nothing,
    "AutoContrast": _autocontrast,
    "Equalize": _equalize,
    "Invert": _invert,
    "Rotate": _rotate,
    "Posterize": _posterize,
    "Solarize": _solarize,
    "SolarizeAdd": _solarize_add,
    "Color": _color,
    "Contrast": _contrast,
    "Brightness": _brightness,
    "Sharpness": _sharpness,
    "ShearX": _shear_x,
    "ShearY": _shear_y,
    "TranslateX": _translate_x,
    "TranslateY": _translate_y,
    "Desaturate": _desaturate,
    "GaussianBlur": _gaussian_blur,
}
