"""What is answered for one image."""

import dataclasses

import numpy as np


@dataclasses.dataclass(frozen=True)
class Prediction:
    """The likeliest classes of an image, the likeliest first; or why there are none.

    Attributes:
      class_ids: numbers of the classes, their places in the manifest's labels.
      class_names: the names that people read.
      scores: probabilities, 0–1.
      error: what is wrong with the image, one line; "" for a good one, and the rest is empty else.
    """

    class_ids: tuple = ()
    class_names: tuple = ()
    scores: tuple = ()
    error: str = ""


def likeliest(probabilities, labels, top_k):
    """Predictions from probabilities; of equal ones the class of the lower number comes first.

    Args:
      probabilities: float32 [B, K].
      labels: the K names.
      top_k: how many classes are named, at most all of them.

    Returns:
      A list of B `Prediction`.
    """
    count = min(top_k, len(labels))
    edges = np.partition(probabilities, -count, axis=-1)[:, -count]  # [B]
    return [
        _named(row, edge, labels, count) for row, edge in zip(probabilities, edges, strict=True)
    ]


def _named(row, edge, labels, count):
    """The prediction from one image's probabilities, of which `count` are no less than `edge`."""
    if not np.isfinite(row).all():
        return Prediction(error="the network's answer is no number; export it in float32")
    candidates = np.flatnonzero(row >= edge)
    ids = candidates[np.argsort(-row[candidates], kind="stable")][:count]
    names = tuple(labels[i] for i in ids)
    return Prediction(tuple(ids.tolist()), names, tuple(row[ids].tolist()))
