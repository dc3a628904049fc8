"""What an exported artefact says of itself. Standard library only; travels with it as JSON.

A SavedModel has it as assets.extra/manifest.json, an ONNX file in its metadata, under `KEY`.
"""

import dataclasses
import json

from deit_tf.config import InputError

KEY = "deit_tf.manifest"
PRECISIONS = ("float32", "float16", "int8")
FORMAT = 1
FILTER = "bicubic, antialiased"  # Pillow's BICUBIC, TensorFlow's bicubic with antialias=True


@dataclasses.dataclass(frozen=True)
class Tensor:
    """One input or output.

    Attributes:
      dtype: "uint8", "string", "float32" or "int32".
      shape: its axes; "batch" for the images of a request, which may be any number.
    """

    dtype: str
    shape: tuple

    def __post_init__(self):
        object.__setattr__(self, "shape", tuple(self.shape))


@dataclasses.dataclass(frozen=True)
class Signature:
    """What one call takes and answers: {name: `Tensor`} each."""

    inputs: dict
    outputs: dict


@dataclasses.dataclass(frozen=True)
class Manifest:
    """All that a client must know, and where the artefact is from.

    Attributes:
      model: the network's name, a key of `config.VARIANTS`.
      image_size: side of the square that the network sees, pixels.
      crop_fraction: side of that square over the shorter side of the resized image.
      filter: how an image is resized, `FILTER`.
      mean: what the network subtracts, in units of 0–1; inside the artefact, not for the client.
      std: what it divides by, too.
      fusion: how both heads are one answer: "logits", "softmax", or "" where there is one head.
      classes: the data set's own names of the classes, in their order.
      labels: the names that people read.
      precision: "float32", "float16" or "int8".
      target: what it was made for: "savedmodel", "portable", "cpu" or "cuda".
      max_pixels: of a larger encoded image it decodes nothing; 0 where it takes pixels alone.
      signatures: {name: `Signature`}; "pixels" is always there.
      source: where the weights are from: run directory, checkpoint, its SHA-256, whether they are a
        moving average.
      versions: of what it was made with.
      digest: SHA-256 of all of the artefact but this manifest.
    """

    model: str
    image_size: int
    crop_fraction: float
    mean: tuple
    std: tuple
    fusion: str
    classes: tuple
    labels: tuple
    source: dict
    versions: dict
    precision: str = "float32"
    target: str = ""
    max_pixels: int = 0
    signatures: dict = dataclasses.field(default_factory=dict)
    digest: str = ""
    filter: str = FILTER
    format: int = FORMAT

    def to_json(self):
        """The manifest as a text."""
        return json.dumps(dataclasses.asdict(self), indent=2, ensure_ascii=False) + "\n"


def from_json(text, source):
    """The manifest that `to_json` wrote.

    Args:
      text: JSON.
      source: what it was found in, for the errors.

    Raises:
      config.InputError: it is none, or that of another version.
    """
    try:
        values = json.loads(text)
        if values["format"] != FORMAT:
            raise InputError(
                f"{source} has a manifest of format {values['format']!r}, this version reads"
                f" {FORMAT}; export it anew"
            )
        signatures = {
            name: Signature(*(_tensors(found[part]) for part in ("inputs", "outputs")))
            for name, found in values["signatures"].items()
        }
        tuples = {name: tuple(values[name]) for name in ("mean", "std", "classes", "labels")}
        found = Manifest(**{**values, **tuples, "signatures": signatures})
        if found.precision not in PRECISIONS or not isinstance(found.source, dict):
            raise ValueError(f"precision {found.precision!r}, source {found.source!r}")
        return found
    except InputError:
        raise
    except (KeyError, TypeError, AttributeError, ValueError, RecursionError) as error:
        raise InputError(f"{source} has a manifest that cannot be read: {error!r}") from error


def _tensors(values):
    return {name: Tensor(found["dtype"], found["shape"]) for name, found in values.items()}
