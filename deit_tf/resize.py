"""Resizing by two matrices: position embeddings to another grid, a batch to another resolution.

NumPy makes the matrices, so that the result does not depend on what TensorFlow, PyTorch or XLA
call bicubic: TensorFlow's has the coefficient -0.5, PyTorch's -0.75.
"""

import math

import numpy as np

from deit_tf.config import InputError

METHODS = ("bicubic", "antialias", "bilinear")


def matrix(before, after, method="bicubic"):
    """How much each old sample weighs in each new one, along one axis; half-pixel centres.

    Args:
      before: old number of samples.
      after: new number of samples.
      method: "bicubic" is PyTorch's (coefficient -0.75, the edge repeated; the released DeiT
        resizes its position embedding so); "antialias" the bicubic of timm, Pillow and
        `tf.image.resize(antialias=True)` (-0.5, wider where it shrinks, cut off and made to sum
        to 1 at the edge); "bilinear" without antialiasing.

    Returns:
      float64 [after, before]; rows sum to 1.

    Raises:
      InputError: another method.
    """
    if method not in METHODS:
        raise InputError(f"method is {method!r}; choose one of {', '.join(METHODS)}")
    shrinks = max(before / after, 1.0) if method == "antialias" else 1.0
    radius = shrinks * (1 if method == "bilinear" else 2)
    weights = np.zeros((after, before))
    scale, half = np.float32(before / after), np.float32(0.5)  # PyTorch has its centres in float32
    for i in range(after):
        center = float(scale * np.float32(i + 0.5) - half)
        first, last = math.floor(center - radius) + 1, math.ceil(center + radius)
        for j in range(first, last):
            weight = _kernel(abs(j - center) / shrinks, method)
            if method != "antialias":
                weights[i, min(max(j, 0), before - 1)] += weight
            elif 0 <= j < before:
                weights[i, j] += weight
    return weights / weights.sum(axis=1, keepdims=True)


def _kernel(x, method):
    """Weight of a sample at distance x >= 0."""
    if method == "bilinear":
        return max(1.0 - x, 0.0)
    a = -0.75 if method == "bicubic" else -0.5
    if x < 1:
        return (a + 2) * x**3 - (a + 3) * x**2 + 1
    return a * (x**3 - 5 * x**2 + 8 * x - 4) if x < 2 else 0.0


def pos_embed(values, prefix, patches, method="bicubic"):
    """A position embedding for another number of patches; square grids, row by row.

    Args:
      values: float [1, prefix + N, D].
      prefix: positions before the patches (class token, distillation token), which are left alone.
      patches: number of patches wanted.
      method: see `matrix`.

    Returns:
      float32 [1, prefix + patches, D].

    Raises:
      InputError: a number of patches that is no square.

    Reference: Touvron et al. 2021, section 6, "Fine-tuning at different resolution".
    """
    tokens, old = values[:, :prefix], values[:, prefix:]
    before, after = math.isqrt(old.shape[1]), math.isqrt(patches)
    if before**2 != old.shape[1] or after**2 != patches:
        raise InputError(
            f"a position embedding of {old.shape[1]} patches cannot become one of {patches}: both"
            " must be squares"
        )
    if before != after:
        weights = matrix(before, after, method)
        square = old.reshape(before, before, -1).astype(np.float64)
        square = np.einsum("ai,bj,ijd->abd", weights, weights, square, optimize=True)
        old = square.reshape(1, patches, -1)
    return np.concatenate([tokens, old], axis=1).astype(np.float32)
