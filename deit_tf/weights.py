"""Weights as {path: array} into a network: exactly, or as the start of another training."""

import keras
import numpy as np

from deit_tf import resize
from deit_tf.config import InputError

_NAMED = 4  # of each kind of fault; the others are counted
_HEADS = ("head/", "head_dist/")


def of(network):
    """The weights of a network by path, without the network's own name: {path: array}."""
    number = keras.ops.convert_to_numpy
    return {path: number(variable) for path, variable in _variables(network).items()}


def _variables(network):
    """The variables of a network by path."""
    return {variable.path.split("/", 1)[1]: variable for variable in network.weights}


def assign(network, weights, source, name_of=str):
    """Puts weights into a network; all of them, and all that it has.

    Args:
      network: a network of ours, built.
      weights: {path: array}.
      source: what to call them in an error.
      name_of: a path -> what to call it in an error.

    Raises:
      InputError: a weight is missing, left over, of another shape, or not finite. Nothing has
        been assigned then.
    """
    variables = _variables(network)
    another = "of another shape (in Keras' layout)"
    faults = {"missing": [], "left over": [], another: [], "not finite": []}
    for path, variable in variables.items():
        if path not in weights:
            faults["missing"].append(name_of(path))
        elif weights[path].shape != tuple(variable.shape):
            shapes = f"{weights[path].shape}, not {tuple(variable.shape)}"
            faults[another].append(f"{name_of(path)} {shapes}")
        elif not np.isfinite(weights[path]).all():
            faults["not finite"].append(name_of(path))
    faults["left over"] = [name_of(path) for path in weights if path not in variables]
    if any(faults.values()):
        listed = [f"{kind}: {_some(names)}" for kind, names in faults.items() if names]
        raise InputError(f"{source} does not fit the network: {'; '.join(listed)}")
    for path, variable in variables.items():
        variable.assign(weights[path])


def _some(names):
    """The first names, and how many others there are."""
    rest = len(names) - _NAMED
    return ", ".join(names[:_NAMED]) + (f" and {rest} more" if rest > 0 else "")


def start(network, weights, source, same_classes, method="bicubic", name_of=str):
    """Puts weights into a network that may differ from theirs: the start of a fine-tuning.

    Another resolution resizes the position embedding; other classes leave the heads as they were
    initialised; a distillation token that only one of the two has is initialised, or dropped, with
    its position and its head. All else has to fit.

    Args:
      network: the network to train, built.
      weights: {path: array}.
      source: what to call them in an error.
      same_classes: whether the heads' outputs mean the same; only then they are kept.
      method: see `resize.matrix`.
      name_of: a path -> what to call it in an error.

    Returns:
      What was changed, a list of short texts.

    Raises:
      InputError: a weight that cannot be adapted; nothing has been assigned then.
    """
    fresh, weights, changes = of(network), dict(weights), []
    for head in _HEADS:
        kernel = f"{head}kernel"
        if kernel in weights and kernel in fresh:
            old, new = weights[kernel].shape[-1], fresh[kernel].shape[-1]
            if not same_classes or old != new:
                weights |= {path: fresh[path] for path in (kernel, f"{head}bias")}
                changes.append(f"{head[:-1]} is new ({old} classes before, {new} now)")
    if "tokens/pos_embed" in fresh and "tokens/pos_embed" in weights:
        changes += _adapt_tokens(weights, fresh, method)
    assign(network, weights, source, name_of)
    return changes


def _adapt_tokens(weights, fresh, method):
    """Makes positions and tokens those of the new network; returns what was changed."""
    changes, has, had = [], "tokens/dist_token" in fresh, "tokens/dist_token" in weights
    before, after = weights["tokens/pos_embed"], fresh["tokens/pos_embed"]
    if before.ndim != 3 or before.shape[-1] != after.shape[-1]:
        return []  # `assign` will name it
    first, new_patches = 1 + had, after.shape[1] - 1 - has
    if before.shape[1] - first != new_patches:
        changes.append(
            f"pos_embed resized ({method}) from {before.shape[1] - first} patches to {new_patches}"
        )
        before = resize.pos_embed(before, first, new_patches, method)
    distillation = ("tokens/dist_token", "head_dist/kernel", "head_dist/bias")
    position = before[:, 1:first]
    if has and not had:
        changes.append("the distillation token, its position and its head are new")
        weights |= {path: fresh[path] for path in distillation}
        position = after[:, 1:2]
    if had and not has:
        changes.append("the distillation token, its position and its head are dropped")
        for path in distillation:
            weights.pop(path, None)
        position = before[:, :0]
    weights["tokens/pos_embed"] = np.concatenate([before[:, :1], position, before[:, first:]], 1)
    return changes
