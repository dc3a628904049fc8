"""Every random decision of the input pipeline, as numbers.

`uniform` gives the numbers of a stream at some positions; the other functions turn them into
decisions by their laws. Arrays in, arrays out, a row a position; nothing here sees a pixel.
"""

import hashlib

import numpy as np
from scipy import special

# A run goes on under the laws that it began with: to be raised when one of them changes.
LAWS = 1

_TRIES = 10
CROP_NUMBERS = 2 * _TRIES + 2
ERASING_NUMBERS = 1 + 2 * _TRIES + 2
MIX_NUMBERS = 5

# Zhong et al. 2020, "Random erasing data augmentation", with timm's bounds.
_ERASED_AREA = (0.02, 1 / 3)
_ERASED_ASPECT = 1 / 0.3


def key(seed, epoch, name):
    """The key of a stream of draws, a whole number below 2^128."""
    text = f"{seed}/{epoch}/{name}".encode()
    return int.from_bytes(hashlib.sha256(text).digest()[:16], "little")


def uniform(stream, positions, numbers):
    """Uniform numbers at some positions of a stream; what comes before them costs nothing.

    Philox is a counter turned into random bits, which NumPy promises never to change.

    Args:
      stream: what `key` gave.
      positions: a `range` of step 1.
      numbers: how many a position.

    Returns:
      float64 [B, numbers], in [0, 1).

    Reference: Salmon et al. 2011, "Parallel random numbers: as easy as 1, 2, 3".
    """
    blocks = -(-numbers // 4)  # a count of Philox is four numbers
    bits = np.random.Philox(key=stream, counter=positions.start * blocks)
    raw = bits.random_raw(len(positions) * blocks * 4).reshape(len(positions), blocks * 4)
    return (raw[:, :numbers] >> np.uint64(11)) * 2.0**-53


def crop(numbers, min_area, max_aspect):
    """Random resized crops, before the size of the image is known: ten tries each.

    Args:
      numbers: uniform [B, CROP_NUMBERS].
      min_area: smallest area, of the image's; uniform up to 1.
      max_aspect: largest aspect; log-uniform between its inverse and itself.

    Returns:
      sides, float32 [B, 10, 2]: height and width of each try, for an image of area 1; corner,
      float32 [B, 2]: where in what is left free, top and left, 0–1.
    """
    area = min_area + (1.0 - min_area) * numbers[:, :_TRIES]
    root = np.sqrt(_log_uniform(numbers[:, _TRIES : 2 * _TRIES], max_aspect))  # of width / height
    sides = np.sqrt(area)[:, :, None] * np.stack([1.0 / root, root], axis=-1)
    return sides.astype(np.float32), numbers[:, 2 * _TRIES :].astype(np.float32)


def _log_uniform(numbers, largest):
    """Log-uniform between 1 / largest and largest."""
    return np.exp((2.0 * numbers - 1.0) * np.log(largest))


def erasing(numbers, rate, size):
    """Boxes to erase: area and aspect by their laws, ten tries to fit.

    Args:
      numbers: uniform [B, ERASING_NUMBERS].
      rate: how many of the images.
      size: side of the images, pixels.

    Returns:
      int32 [B, 4]: top, left, height, width; zeros where nothing is erased.
    """
    erased, rest = numbers[:, 0] < rate, numbers[:, 1:]
    smallest, largest = _ERASED_AREA
    area = size**2 * (smallest + (largest - smallest) * rest[:, :_TRIES])
    aspect = _log_uniform(rest[:, _TRIES : 2 * _TRIES], _ERASED_ASPECT)  # height / width
    sides = np.round(np.sqrt(np.stack([area * aspect, area / aspect], axis=-1)))
    fits = (sides < size).all(axis=-1)
    first = sides[np.arange(len(sides)), fits.argmax(axis=-1)]
    corner = np.floor(rest[:, 2 * _TRIES :] * (size - first + 1))
    found = erased & fits.any(axis=-1)
    return np.where(found[:, None], np.hstack([corner, first]), 0).astype(np.int32)


def keep(numbers, rates):
    """Which branch of which block runs.

    Args:
      numbers: uniform [B, 2 · depth].
      rates: drop path rate of each block.

    Returns:
      float32 [B, depth, 2] of 0 and 1: attention and MLP of each block.
    """
    branches = numbers.reshape(len(numbers), len(rates), 2)
    return (branches >= np.array(rates)[:, None]).astype(np.float32)


def mix(numbers, size, mixup_alpha, cutmix_alpha, mix_rate, cutmix_rate):
    """How images are mixed with their partners.

    Args:
      numbers: uniform [B, MIX_NUMBERS].
      size: side of the images, pixels.
      mixup_alpha: λ ~ Beta(mixup_alpha, mixup_alpha) under mixup; 0 is no mixup.
      cutmix_alpha: the same under cutmix.
      mix_rate: how many are mixed at all.
      cutmix_rate: how many of these by cutmix, where there is both.

    Returns:
      own, float32 [B]: λ, how much of an image is left, and of its label; from the area of the box
      as it was cut under cutmix; 1 where nothing is mixed.
      box, int32 [B, 4]: top, left, bottom, right of what the partner fills; zeros under mixup.

    Reference: Zhang et al. 2018, "mixup"; Yun et al. 2019, "CutMix", algorithm 1.
    """
    mixed = numbers[:, 0] < mix_rate
    both = mixup_alpha > 0 and cutmix_alpha > 0
    cut = numbers[:, 1] < (cutmix_rate if both else float(cutmix_alpha > 0))
    share = np.where(cut, _beta(numbers[:, 2], cutmix_alpha), _beta(numbers[:, 2], mixup_alpha))
    side = np.floor(size * np.sqrt(1.0 - share))[:, None]
    center = np.floor(numbers[:, 3:5] * size)
    corners = np.hstack([center - side // 2, center + (side + 1) // 2])
    box = np.where((mixed & cut)[:, None], np.clip(corners, 0, size), 0)
    inside = (box[:, 2] - box[:, 0]) * (box[:, 3] - box[:, 1]) / size**2
    own = np.where(mixed, np.where(cut, 1.0 - inside, share), 1.0)
    return own.astype(np.float32), box.astype(np.int32)


def _beta(numbers, alpha):
    """Uniform numbers as draws of Beta(alpha, alpha)."""
    return special.betaincinv(alpha, alpha, numbers) if alpha > 0 else np.ones_like(numbers)
