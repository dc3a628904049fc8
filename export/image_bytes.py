"""Encoded images in a served graph: one that is too large is refused before it is decoded.

JPEG, PNG and WebP. A GIF's frame may be larger than its header says, and TensorFlow decodes every
frame of it.
"""

import tensorflow as tf

from deit_tf import preprocess

_HEAD = 32  # bytes in which PNG and WebP say how large they are
LARGEST_ASPECT = 100  # a strip is resized to a far larger one, and cropped after that


def _number(head, start, count, big=False):
    """A whole number of so many bytes, float64 scalar: no product of two of them overflows."""
    digits = tf.cast(head[start : start + count], tf.float64)
    powers = [256.0**i for i in range(count)]
    return tf.reduce_sum(digits * tf.constant(powers[::-1] if big else powers, tf.float64))


def _png(head):
    """Width and height. Reference: PNG specification, section 11.2.2 (IHDR)."""
    return _number(head, 16, 4, big=True), _number(head, 20, 4, big=True)


def _webp_extended(head):
    """Reference: RFC 9649, section 2.7.1 (VP8X)."""
    return _number(head, 24, 3) + 1.0, _number(head, 27, 3) + 1.0


def _webp_lossless(head):
    """Reference: RFC 9649, section 3.4 (VP8L): twice 14 bits."""
    bits = _number(head, 21, 4)
    return tf.math.floormod(bits, 2**14) + 1.0, tf.math.floormod(bits // 2**14, 2**14) + 1.0


def _webp_lossy(head):
    """Reference: RFC 6386, section 9.1: twice 14 bits and 2 of scaling."""
    return tuple(tf.math.floormod(_number(head, start, 2), 2**14) for start in (26, 28))


_RIFF = {8: b"WEBP"}
_KINDS = (
    ({0: b"\x89PNG\r\n\x1a\n", 12: b"IHDR"}, _png),
    ({**_RIFF, 12: b"VP8X"}, _webp_extended),
    ({**_RIFF, 12: b"VP8L"}, _webp_lossless),
    ({**_RIFF, 12: b"VP8 "}, _webp_lossy),
)


def sides(image_bytes):
    """Width and height that an image says it has, without decoding it.

    Args:
      image_bytes: string scalar.

    Returns:
      float64 [2]; zeros for what is neither JPEG, PNG nor WebP.
    """

    def jpeg():
        shape = tf.io.extract_jpeg_shape(image_bytes)  # height, width, channels
        return tf.cast(tf.stack([shape[1], shape[0]]), tf.float64)

    return tf.cond(tf.io.is_jpeg(image_bytes), jpeg, lambda: _sides_of_others(image_bytes))


def _sides_of_others(image_bytes):
    """`sides` of what is no JPEG."""
    padded = tf.strings.substr(image_bytes, 0, _HEAD) + tf.constant(b"\0" * _HEAD)
    head = tf.io.decode_raw(tf.strings.substr(padded, 0, _HEAD), tf.uint8)  # [32]
    found = tf.zeros(2, tf.float64)
    for magic, size in _KINDS:
        found = tf.where(_begins(head, magic), tf.stack(size(head)), found)
    return found


def _begins(head, magic):
    """Whether a head has these bytes at these places."""
    places = [start + i for start, word in magic.items() for i in range(len(word))]
    wanted = tf.constant([byte for word in magic.values() for byte in word], tf.uint8)
    return tf.reduce_all(tf.gather(head, places) == wanted)


def view(image_bytes, manifest, max_pixels):
    """What the network sees of an encoded image: the evaluation geometry.

    Args:
      image_bytes: string scalar; see `preprocess.decode`.
      manifest: the `manifest.Manifest`.
      max_pixels: of a larger image nothing is decoded.

    Returns:
      uint8 [S, S, 3].

    Raises:
      tf.errors.InvalidArgumentError: it is too large, a strip, damaged, or of no known format.
    """
    found = sides(image_bytes)
    count = tf.reduce_prod(found)
    checks = [
        tf.debugging.Assert(
            count > 0, ["an image is neither JPEG, PNG nor WebP, or its header is damaged"]
        ),
        tf.debugging.Assert(
            count <= max_pixels,
            [f"an image has too many pixels; at most {max_pixels} are taken, and it has", count],
        ),
        tf.debugging.Assert(
            tf.reduce_max(found) <= LARGEST_ASPECT * tf.reduce_min(found),
            [f"an image has one side more than {LARGEST_ASPECT} times the other:", found],
        ),
    ]
    with tf.control_dependencies(checks):
        image = preprocess.decode(tf.identity(image_bytes))
    seen = preprocess.center_crop(image, manifest.image_size, manifest.crop_fraction)
    return tf.cast(seen, tf.uint8)  # whole values, 0–255
