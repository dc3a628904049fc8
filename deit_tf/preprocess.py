"""One image: decoding, the published evaluation geometry, the random resized crop.

Images are [h, w, 3] in 0–255: uint8 from `decode`, float32 with whole values from the two
geometries (Pillow, which the published accuracies were measured with, answers in whole values).
"""

import tensorflow as tf

# These make JPEG equal to Pillow's bit for bit; TensorFlow's defaults are 1 level off.
_AS_PILLOW = {"channels": 3, "dct_method": "INTEGER_ACCURATE", "fancy_upscaling": True}
# Columns decoded beyond a crop: interpolated colour needs a neighbour at the edge.
_MARGIN = 2


def decode(image_bytes):
    """Decodes JPEG, PNG, WebP or GIF (first frame) as RGB, whatever the file's name says.

    Grey, CMYK, palette and 16-bit files too, but no animated WebP. Alpha is dropped, EXIF's
    orientation is not applied; both as in the published evaluation.

    Args:
      image_bytes: string scalar.

    Returns:
      uint8 [h, w, 3], 0–255.
    """
    image = tf.cond(
        tf.io.is_jpeg(image_bytes),
        lambda: tf.io.decode_jpeg(image_bytes, **_AS_PILLOW),
        lambda: _decode_other(image_bytes),
    )
    image.set_shape((None, None, 3))
    return image


def _decode_other(image_bytes):
    """Decodes what is no JPEG; TensorFlow wants to be told of a WebP's alpha beforehand."""

    def decoded(channels):
        return tf.io.decode_image(image_bytes, channels=channels, expand_animations=False)

    return tf.cond(_has_webp_alpha(image_bytes), lambda: decoded(4)[..., :3], lambda: decoded(3))


def _has_webp_alpha(image_bytes):
    """Whether these are a WebP with an alpha channel, bool scalar.

    Reference: RFC 9649, sections 2.7.1 (VP8X flags) and 3.4 (VP8L's image header).
    """
    head = tf.strings.substr(image_bytes, 0, 32) + tf.constant(b"\0" * 32)
    head = tf.io.decode_raw(tf.strings.substr(head, 0, 32), tf.uint8)  # [32]
    webp = tf.reduce_all(head[8:15] == tf.constant(list(b"WEBPVP8"), tf.uint8))
    extended, lossless = (head[15] == ord(kind) for kind in "XL")
    flags = tf.where(extended, head[20], tf.where(lossless, head[24], tf.zeros_like(head[0])))
    return webp & (tf.bitwise.bitwise_and(flags, tf.constant(0x10, tf.uint8)) != 0)


def _decode_crop(image_bytes, choose_box):
    """Decodes a part of an image; of a JPEG that part alone, which is several times faster.

    Args:
      image_bytes: string scalar.
      choose_box: function (height, width) -> [top, left, height, width], int32 scalars.

    Returns:
      uint8 [h, w, 3], 0–255: bit for bit the part that `decode` would give.
    """

    def jpeg():
        height, width = tf.unstack(tf.io.extract_jpeg_shape(image_bytes)[:2])
        top, left, new_h, new_w = choose_box(height, width)
        start = tf.maximum(left - _MARGIN, 0)
        end = tf.minimum(left + new_w + _MARGIN, width)
        window = tf.stack([top, start, new_h, end - start])
        wide = tf.image.decode_and_crop_jpeg(image_bytes, window, **_AS_PILLOW)
        return wide[:, left - start : left - start + new_w]

    def other():
        image = _decode_other(image_bytes)
        top, left, new_h, new_w = choose_box(*tf.unstack(tf.shape(image)[:2]))
        return image[top : top + new_h, left : left + new_w]

    crop = tf.cond(tf.io.is_jpeg(image_bytes), jpeg, other)
    crop.set_shape((None, None, 3))
    return crop


def _resize(image, height, width):
    """Bicubic with antialiasing, rounded and clipped, as Pillow's (mean ≤ 0.5 level off).

    `tf.image.resize` bit for bit, a third faster: first the rows and then the columns, each as
    rows of whole vectors.
    """
    rows = _resize_rows(image, height)
    columns = _resize_rows(tf.transpose(rows, (1, 0, 2)), width)  # [width, height, 3]
    resized = tf.transpose(columns, (1, 0, 2))
    return tf.clip_by_value(tf.round(resized), 0.0, 255.0)


def _resize_rows(image, height):
    """Another number of rows: [h, w, 3] as [1, h, 1, 3 w], float32 [height, w, 3]."""
    before, width, _ = tf.unstack(tf.shape(image))
    resized = tf.raw_ops.ScaleAndTranslate(
        images=tf.reshape(image, (1, before, 1, 3 * width)),
        size=tf.stack([height, 1]),
        scale=tf.stack([tf.cast(height, tf.float32) / tf.cast(before, tf.float32), 1.0]),
        translation=(0.0, 0.0),
        kernel_type="keyscubic",
        antialias=True,
    )
    return tf.reshape(resized, (height, width, 3))


def center_crop(image, size, crop_fraction):
    """The published evaluation geometry: shorter side to size / crop_fraction, centre crop.

    Args:
      image: [h, w, 3], 0–255.
      size: side of the result, pixels.
      crop_fraction: 0.875 for the published accuracies (256 → 224, 438 → 384).

    Returns:
      float32 [size, size, 3], 0–255.
    """
    short = int(size / crop_fraction)
    height, width = tf.unstack(tf.shape(image)[:2])
    longer = tf.maximum(height, width) * short // tf.minimum(height, width)
    new_height = tf.where(height <= width, short, longer)
    new_width = tf.where(height <= width, longer, short)
    resized = _resize(image, new_height, new_width)
    top = _half(new_height - size)
    left = _half(new_width - size)
    crop = tf.slice(resized, tf.stack([top, left, 0]), (size, size, 3))
    return tf.ensure_shape(crop, (size, size, 3))


def _half(margin):
    """Half a margin, rounded half to even as Python does."""
    return tf.cast(tf.round(tf.cast(margin, tf.float32) / 2.0), tf.int32)


def _crop_box(height, width, sides, corner, max_aspect):
    """Top, left, height and width of a random crop; int32 scalars.

    The first try that fits into the image; if none does, the whole image, cut at its centre to
    the nearest allowed aspect.
    """
    whole = tf.cast(tf.stack([height, width]), tf.float32)  # [2]
    tried = tf.round(sides * tf.sqrt(whole[0] * whole[1]))  # [10, 2]
    fits = tf.reduce_all((tried >= 1.0) & (tried <= whole), axis=-1)

    def first():
        cut = tried[tf.argmax(tf.cast(fits, tf.int32))]
        free = whole - cut
        return tf.concat([tf.minimum(tf.floor(corner * (free + 1.0)), free), cut], axis=0)

    def centre():
        cut = tf.minimum(whole, tf.round(whole[::-1] * max_aspect))
        return tf.concat([tf.floor(0.5 * (whole - cut)), cut], axis=0)

    return tf.unstack(tf.cast(tf.cond(tf.reduce_any(fits), first, centre), tf.int32), 4)


def random_resized_crop(image_bytes, size, sides, corner, max_aspect):
    """A random part of an encoded image, decoded and resized to a square.

    Args:
      image_bytes: string scalar; see `decode`.
      size: side of the result, pixels.
      sides: float32 [10, 2], what `draws.crop` has drawn: height and width of ten tries.
      corner: float32 [2], too.
      max_aspect: largest aspect of the part, where no try fits.

    Returns:
      float32 [size, size, 3], 0–255.

    Reference: Szegedy et al. 2015, "Going deeper with convolutions", section 6, with
    torchvision's ten tries.
    """

    def box(height, width):
        return _crop_box(height, width, sides, corner, max_aspect)

    resized = _resize(_decode_crop(image_bytes, box), size, size)
    return tf.ensure_shape(resized, (size, size, 3))
