"""One training image: flip, rotation, shift.

Every function takes and returns one float32 image [S, S, 3] in 0–255 and a `seed`, integer [2];
the same seed gives the same pixels.
"""

import math

import tensorflow as tf


def random_flip(image, seed, rate):
    """Mirrors the image left to right with probability `rate`."""
    flipped = tf.random.stateless_uniform((), seed) < rate
    return tf.where(flipped, tf.reverse(image, [1]), image)


def random_rotate_shift(image, seed, degrees, fraction):
    """Rotates about the centre and shifts, both at once and bilinear; edges are repeated.

    Args:
      image: float32 [S, S, 3], 0–255.
      seed: integer [2].
      degrees: largest rotation, either way; uniform; counter-clockwise is positive.
      fraction: largest shift in each direction over the side, either way; uniform.

    Returns:
      float32 [S, S, 3], 0–255.
    """
    size = image.shape[0]
    draws = tf.random.stateless_uniform((3,), seed, -1.0, 1.0)
    angle = draws[0] * (degrees * math.pi / 180.0)
    cos, sin = tf.cos(angle), tf.sin(angle)
    center = (size - 1) / 2.0
    right, down = draws[1] * fraction * size, draws[2] * fraction * size
    # The pixel (x, y) of the result comes from (cos x - sin y + c, sin x + cos y + f).
    c = center - cos * (center + right) + sin * (center + down)
    f = center - sin * (center + right) - cos * (center + down)
    transform = tf.stack([cos, -sin, c, sin, cos, f, 0.0, 0.0])
    return tf.raw_ops.ImageProjectiveTransformV3(
        images=image[tf.newaxis],
        transforms=transform[tf.newaxis],
        output_shape=(size, size),
        fill_value=0.0,
        interpolation="BILINEAR",
        fill_mode="NEAREST",
    )[0]
