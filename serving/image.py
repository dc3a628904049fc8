"""What the network sees of an image: the published evaluation geometry by Pillow.

The twin of `deit_tf.preprocess` without TensorFlow: it decodes to the same bits, and resizes to
within half a grey level in the mean.
"""

import io
import math
import os
import pathlib

import numpy as np
from PIL import Image

from deit_tf import manifest as manifests
from deit_tf.manifest import InputError

SUFFIXES = (".jpg", ".jpeg", ".png", ".webp")
MAX_PIXELS = 50_000_000
_BICUBIC, _REACH = Image.Resampling.BICUBIC, 2  # pixels to each side
_FORMATS = ("JPEG", "PNG", "WEBP")


def listed(images):
    """One image, or several, as a list.

    Args:
      images: a path, bytes of a file, or uint8 [h, w, 3]; a list of such; or uint8 [B, h, w, 3].

    Raises:
      InputError: an array of another type or rank.
    """
    if isinstance(images, np.ndarray):
        images = checked(images, ranks=(3, 4))
    one = isinstance(images, (str, os.PathLike, bytes)) or getattr(images, "ndim", 0) == 3
    return [images] if one else list(images)


def view(image, manifest, max_pixels=MAX_PIXELS):
    """What the network sees of an image.

    Args:
      image: a path, bytes of a file (see `decode`), or uint8 [h, w, 3]. An array that has the
        network's size already is taken as it is.
      manifest: the `manifest.Manifest`.
      max_pixels: of a larger file nothing is decoded.

    Returns:
      uint8 [S, S, 3].

    Raises:
      InputError: there is no such file, it cannot be decoded, or the array is no image.
    """
    if manifest.filter != manifests.FILTER:
        raise InputError(
            f"images are to be resized by {manifest.filter}, this version knows"
            f" {manifests.FILTER} alone; update deit-tf"
        )
    side = manifest.image_size
    if isinstance(image, (str, os.PathLike, bytes)):
        return center_crop(decode(content(image), max_pixels), side, manifest.crop_fraction)
    pixels = checked(image)
    if pixels.shape[:2] == (side, side):
        return pixels
    return center_crop(Image.fromarray(pixels), side, manifest.crop_fraction)


def content(image):
    """The bytes of a file, of a path to one.

    Raises:
      InputError: there is no such file.
    """
    if isinstance(image, bytes):
        return image
    try:
        return pathlib.Path(image).read_bytes()
    except (OSError, ValueError) as error:  # a zero byte in a name is no value for a path
        reason = getattr(error, "strerror", None) or error
        raise InputError(f"cannot be read: {reason}") from error


def checked(image, ranks=(3,)):
    """An array, once it is an image: uint8 [h, w, 3]; or one of those that `ranks` allows.

    Raises:
      InputError: it is none.
    """
    try:
        found = np.asarray(image)
    except ValueError as error:  # rows of different lengths
        raise InputError("a list of lists is no image; give uint8 [h, w, 3], 0–255") from error
    sides = found.shape[-3:]
    if found.dtype != np.uint8 or found.ndim not in ranks or sides[2] != 3 or 0 in sides:
        raise InputError(
            f"{found.dtype} {list(found.shape)} is no image; give uint8 [h, w, 3], 0–255"
        )
    return found


def decode(encoded, max_pixels=MAX_PIXELS):
    """Decodes JPEG, PNG or WebP as RGB, as `deit_tf.preprocess` does.

    Grey, CMYK, palette and 16-bit files too, but no animated WebP. Alpha is dropped, EXIF's
    orientation is not applied.

    Args:
      encoded: bytes of a file.
      max_pixels: of a larger image nothing is decoded.

    Returns:
      A `PIL.Image.Image` of mode RGB.

    Raises:
      InputError: it is none of these, too large, or damaged.
    """
    try:
        image = Image.open(io.BytesIO(encoded), formats=_FORMATS)
        _check_size(image, max_pixels)
        image.load()
    except Image.UnidentifiedImageError as error:
        raise InputError("it is neither JPEG, PNG nor WebP, or its header is damaged") from error
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise InputError(f"it has too many pixels; at most {max_pixels} are taken") from error
    except InputError:
        raise
    except Exception as error:  # Pillow has no class of its own for them all
        raise InputError(f"it is damaged: {' '.join(str(error).split())}") from error
    if image.mode.startswith("I"):  # 16 bits, which Pillow would clip
        return Image.fromarray((np.asarray(image) >> 8).astype(np.uint8)).convert("RGB")
    if image.mode == "RGB":
        return image
    return image.convert("RGBA").convert("RGB")  # drops alpha, and does not warn of palettes


def _check_size(image, max_pixels):
    """Raises InputError where a header tells of too many pixels, or of an animated WebP."""
    width, height = image.size
    if width * height > max_pixels:
        raise InputError(
            f"it has too many pixels; at most {max_pixels} are taken, and it has {width * height}"
        )
    if image.format == "WEBP" and image.is_animated:
        raise InputError("it is an animated WebP; give one picture")


def center_crop(image, size, crop_fraction):
    """The published evaluation geometry: shorter side to size / crop_fraction, centre crop.

    Args:
      image: a `PIL.Image.Image` of mode RGB.
      size: side of the result, pixels.
      crop_fraction: 0.875 for the published accuracies.

    Returns:
      uint8 [size, size, 3].
    """
    short = int(size / crop_fraction)
    scaled = [side * short // min(image.size) for side in image.size]
    corner = [round((side - size) / 2) for side in scaled]
    (left, right), (top, bottom) = (
        [edge * before / after for edge in (first, first + size)]
        for first, before, after in zip(corner, image.size, scaled, strict=True)
    )
    # The crop alone is resized, from the part that it is of: a strip of a million pixels by one
    # would be gigabytes. Columns first: Pillow itself takes another order in each version.
    reach = math.ceil(_REACH * max(1.0, image.height / scaled[1])) + 1
    first = max(0, math.floor(top) - reach)
    last = min(image.height, math.ceil(bottom) + reach)
    columns = image.resize((size, last - first), _BICUBIC, (left, first, right, last))
    seen = columns.resize((size, size), _BICUBIC, (0, top - first, size, bottom - first))
    return np.asarray(seen)
