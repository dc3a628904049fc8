"""RandAugment and 3-Augment: which operations an image gets, and how strongly.

A policy turns uniform numbers into operations and arguments by its law; `augment.apply` carries
them out. The strings are timm's.
"""

import dataclasses
import re

import numpy as np
from scipy import special

from deit_tf.config import InputError

# The order is the number of an operation; 0 leaves the image alone.
OPERATIONS = (
    "Nothing",
    "AutoContrast",
    "Equalize",
    "Invert",
    "Rotate",  # degrees, counter-clockwise
    "Posterize",  # bits kept
    "Solarize",  # level from which on pixels are inverted
    "SolarizeAdd",  # added to pixels below 128
    "Color",  # these four: 0 is no colour, contrast, light, detail; 1 is as it is
    "Contrast",
    "Brightness",
    "Sharpness",
    "ShearX",  # pixels a row
    "ShearY",
    "TranslateX",  # of the width
    "TranslateY",
    "Desaturate",  # share of the colour that goes
    "GaussianBlur",  # deviation, pixels
)

_ENHANCE = ("Color", "Contrast", "Brightness", "Sharpness")
_LARGEST = {"Rotate": 30.0, "ShearX": 0.3, "ShearY": 0.3, "TranslateX": 0.45, "TranslateY": 0.45}
# The sets of operations by timm's names, with their weights.
_CLASSIC = dict.fromkeys(OPERATIONS[1:16], 1.0)
_WEIGHTS = {
    "Rotate": 3.0,
    "ShearX": 2.0,
    "ShearY": 2.0,
    "TranslateX": 1.0,
    "TranslateY": 1.0,
    "Color": 0.25,
    "Sharpness": 0.25,
    "AutoContrast": 0.25,
    "Solarize": 0.05,
    "SolarizeAdd": 0.05,
    "Contrast": 0.05,
    "Brightness": 0.05,
    "Equalize": 0.05,
    "Posterize": 0.05,
    "Invert": 0.05,
}
_THREE = {"Solarize": 1.0, "Desaturate": 1.0, "GaussianBlur": 1.0}
_THREE_WEIGHTED = {
    "Solarize": 6.0,
    "Desaturate": 6.0,
    "GaussianBlur": 6.0,
    "Rotate": 3.0,
    "ShearX": 2.0,
    "ShearY": 2.0,
    "Posterize": 1.0,
    "AutoContrast": 1.0,
    "Color": 1.0,
    "Sharpness": 1.0,
    "Contrast": 1.0,
    "Brightness": 1.0,
    "Equalize": 1.0,
    "Invert": 1.0,
}
_SETS = {"tweights": _WEIGHTS, "t3a": _THREE, "t3aw": _THREE_WEIGHTED}
# In the string, and in RandAugment.
_NAMES = {
    "m": "level",
    "n": "count",
    "p": "rate",
    "mstd": "deviation",
    "mmax": "largest",
    "inc": "increasing",
}
_SECTION = re.compile(r"(m|n|p|mstd|mmax|inc)(\d+(?:\.\d*)?|\.\d+)")
_WHOLE = ("m", "n", "mmax", "inc")
_FORM = "rand-m9-mstd0.5-inc1 (of m, n, p, mstd, mmax, inc, tweights, t3a, t3aw), 3a, or nothing"


def argument(operation, level, sign, increasing):
    """The argument of an operation at a level.

    Args:
      operation: one of `OPERATIONS`.
      level: float [...], 0–10, or more where a policy says mmax.
      sign: -1 or 1 [...], for operations that go either way.
      increasing: whether a higher level is always more; if not, posterize and solarize weaken
        with the level, and the four enhancements run from 0.1 to 1.9.

    Returns:
      float [...].

    Reference: timm's auto_augment.py; Cubuk et al. 2020, "RandAugment".
    """
    part = np.asarray(level) / 10.0
    if operation == "Posterize":
        bits = np.floor(4 * part)
        return np.maximum(4 - bits, 0) if increasing else bits
    if operation == "Solarize":
        threshold = np.minimum(np.floor(256 * part), 256)
        return 256 - threshold if increasing else threshold
    if operation == "SolarizeAdd":
        return np.minimum(np.floor(110 * part), 128)
    if operation in _ENHANCE:
        return np.maximum(1.0 + 0.9 * part * sign, 0.1) if increasing else 0.1 + 1.8 * part
    if operation in ("Desaturate", "GaussianBlur"):
        weakest, strongest = (0.5, 1.0) if operation == "Desaturate" else (0.1, 2.0)
        return np.minimum(weakest + (strongest - weakest) * part, strongest)
    return _LARGEST.get(operation, 0.0) * part * sign


@dataclasses.dataclass(frozen=True)
class RandAugment:
    """`count` operations an image, each with probability `rate`, at about one level.

    Attributes:
      level: mean of the level, 0–10.
      deviation: of the level, normal; above 100 the level is uniform up to `level`.
      largest: the level is cut off here, and at 0.
      count: operations drawn; with replacement where all weigh the same.
      rate: probability that a drawn operation is carried out.
      increasing: see `argument`.
      weights: {operation: weight}.
    """

    level: float = 10.0
    deviation: float = 0.0
    largest: float = 10.0
    count: int = 2
    rate: float = 0.5
    increasing: bool = False
    weights: dict = dataclasses.field(default_factory=_CLASSIC.copy)

    @property
    def numbers(self):
        """Uniform numbers that an image needs."""
        return 3 * self.count + (self.count if self.all_alike else len(self.weights))

    @property
    def all_alike(self):
        """Whether all operations weigh the same, and are drawn with replacement."""
        return len(set(self.weights.values())) == 1

    def draw(self, numbers):
        """Operations and arguments.

        Args:
          numbers: uniform [B, self.numbers].

        Returns:
          operations, int32 [B, count], indices of `OPERATIONS`; arguments, float32 [B, count].
        """
        n = self.count
        fires, levels, signs, choices = np.split(numbers, [n, 2 * n, 3 * n], axis=-1)
        drawn, level = self._choose(choices), self._levels(levels)
        sign = np.where(signs < 0.5, -1.0, 1.0)
        operations, arguments = np.zeros(drawn.shape, np.int32), np.zeros(drawn.shape, np.float32)
        for i, name in enumerate(self.weights):
            here = (fires < self.rate) & (drawn == i)
            operations[here] = OPERATIONS.index(name)
            arguments[here] = argument(name, level, sign, self.increasing)[here]
        return operations, arguments

    def _choose(self, numbers):
        """Indices into weights, int [B, count]; without replacement where the weights differ."""
        weights = np.array(list(self.weights.values()))
        if self.all_alike:
            return (numbers * len(weights)).astype(int)
        # Efraimidis & Spirakis 2006: the smallest of such keys are a weighted sample.
        return np.argsort(-np.log1p(-numbers) / weights, axis=-1)[:, : self.count]

    def _levels(self, numbers):
        levels = numbers * self.level
        if self.deviation <= 100:
            normal = special.ndtri(np.maximum(numbers, 2.0**-54))
            levels = self.level + self.deviation * normal
        return np.clip(levels, 0.0, self.largest)


@dataclasses.dataclass(frozen=True)
class ThreeAugment:
    """One of grey, solarize and blur an image. Reference: Touvron et al. 2022, "DeiT III"."""

    numbers = 2

    def draw(self, numbers):
        """As `RandAugment.draw`, with one operation an image."""
        which = (3 * numbers[:, :1]).astype(int)
        codes = [OPERATIONS.index(name) for name in ("Desaturate", "Solarize", "GaussianBlur")]
        radius = 0.1 + 1.9 * numbers[:, 1:]
        arguments = np.choose(which, [np.ones_like(radius), np.full_like(radius, 128.0), radius])
        return np.array(codes, np.int32)[which], arguments.astype(np.float32)


@dataclasses.dataclass(frozen=True)
class ColorJitter:
    """Brightness, contrast and colour in random order, each enhanced by 1 ± up to `strength`."""

    strength: float
    numbers = 6

    def draw(self, numbers):
        """As `RandAugment.draw`, with three operations an image."""
        order, factors = np.argsort(numbers[:, :3], axis=-1), numbers[:, 3:]
        codes = [OPERATIONS.index(name) for name in ("Brightness", "Contrast", "Color")]
        arguments = np.maximum(1.0 + self.strength * (2.0 * factors - 1.0), 0.0)
        return np.array(codes, np.int32)[order], arguments.astype(np.float32)


def parse(text):
    """The policy that a string stands for.

    Args:
      text: as `rand-m9-mstd0.5-inc1`; `3a`; or nothing.

    Returns:
      A `RandAugment`, a `ThreeAugment`, or None.

    Raises:
      InputError: another string.
    """
    if text in ("", "3a"):
        return ThreeAugment() if text else None
    kind, *sections = text.split("-")
    facts = dict(_section(section, text) for section in sections) if kind == "rand" else {}
    if kind != "rand":
        raise InputError(f"auto_augment is {text!r}; give {_FORM}")
    if len(facts) < len(sections):
        raise InputError(f"auto_augment is {text!r}, which says one thing twice; give {_FORM}")
    if "weights" in facts:
        facts["increasing"] = True  # timm's sets are of such operations, whatever inc says
    return _checked(RandAugment(**facts), text)


def _section(section, text):
    """One part of a string as (field of `RandAugment`, value)."""
    if section in _SETS:
        return "weights", _SETS[section]
    found = _SECTION.fullmatch(section)
    if not found:
        raise InputError(f"auto_augment is {text!r}, whose {section!r} is not known; give {_FORM}")
    name, number = found.groups()
    if name in _WHOLE and not number.isdigit():
        raise InputError(f"auto_augment is {text!r}, whose {name} must be a whole number")
    return _NAMES[name], int(number) if name in _WHOLE else float(number)


def _checked(policy, text):
    """The policy, or InputError where a number of it is out of range."""
    most = len(policy.weights)
    if policy.rate > 1:
        raise InputError(f"auto_augment is {text!r}, whose p must be between 0 and 1")
    if policy.count < 1:
        raise InputError(f"auto_augment is {text!r}, whose n must be at least 1")
    if policy.count > most and not policy.all_alike:
        raise InputError(f"auto_augment is {text!r}, whose n must be at most {most}: none repeats")
    return policy
