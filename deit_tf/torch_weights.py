"""Weights of the PyTorch originals: official, timm's and Hugging Face's names -> ours.

Weights are {path: array}: the path of a variable without its network's name, as
"blocks_0/attn/qkv/kernel", the array float32 in Keras' layout. safetensors files need no PyTorch.
"""

import importlib.metadata
import importlib.util
import math
import pathlib
import pickle
import re

import numpy as np

from deit_tf import config as configuration
from deit_tf.config import InputError

_PYTORCH = (".pth", ".pt", ".bin", ".ckpt")
_NEEDS_TORCH = (
    "is a PyTorch file, and PyTorch is not installed; pip install torch, or give the same weights"
    " as .safetensors"
)

# Hugging Face's names, of hub files and of transformers 5 in memory -> the official ones.
_TO_THE_OFFICIAL_NAME = tuple(
    (re.compile(pattern), name)
    for pattern, name in (
        (r"^(deit\.|vit\.)?embeddings\.cls_token$", "cls_token"),
        (r"^(deit\.|vit\.)?embeddings\.distillation_token$", "dist_token"),
        (r"^(deit\.|vit\.)?embeddings\.position_embeddings$", "pos_embed"),
        (r"^(deit\.|vit\.)?embeddings\.patch_embeddings\.projection\.", "patch_embed.proj."),
        (r"^(deit\.|vit\.)?(encoder\.layer|layers)\.(\d+)\.", r"blocks.\3."),
        (r"^(blocks\.\d+\.)attention\.(attention\.)?(q|k|v)(uery|ey|alue|_proj)\.", r"\1attn.\3."),
        (r"^(blocks\.\d+\.)attention\.(output\.dense|o_proj)\.", r"\1attn.proj."),
        (r"^(blocks\.\d+\.)layernorm_before\.", r"\1norm1."),
        (r"^(blocks\.\d+\.)layernorm_after\.", r"\1norm2."),
        (r"^(blocks\.\d+\.)intermediate\.dense\.", r"\1mlp.fc1."),
        (r"^(blocks\.\d+\.)output\.dense\.", r"\1mlp.fc2."),
        (r"^(deit\.|vit\.)?layernorm\.", "norm."),
        (r"^(cls_)?classifier\.", "head."),
        (r"^distillation_classifier\.", "head_dist."),
        (r"^head\.fc\.", "head."),  # a RegNetY's
    )
)

_TO_OURS = (
    (r"^blocks\.(\d+)\.", r"blocks_\1."),
    (r"^(s\d)\.(b\d+)\.", r"\1_\2."),
    (r"(norm\d?|bn)\.weight$", r"\1.gamma"),
    (r"(norm\d?|bn)\.bias$", r"\1.beta"),
    (r"\.weight$", ".kernel"),
    (r"\.running_mean$", ".moving_mean"),
    (r"\.running_var$", ".moving_variance"),
)
_TO_OFFICIAL = (
    (r"^blocks_(\d+)\.", r"blocks.\1."),
    (r"^(s\d)_(b\d+)\.", r"\1.\2."),
    (r"(norm\d?|bn)\.gamma$", r"\1.weight"),
    (r"(norm\d?|bn)\.beta$", r"\1.bias"),
    (r"\.kernel$", ".weight"),
    (r"\.moving_mean$", ".running_mean"),
    (r"\.moving_variance$", ".running_var"),
)


def is_file(path):
    """Whether a path is one of a file of weights, or of any file, rather than of a run."""
    path = pathlib.Path(path)
    return path.is_file() or (path.suffix in (".safetensors", *_PYTORCH) and not path.is_dir())


def check(path):
    """Raises InputError where a file cannot be one of weights; opens nothing.

    Args:
      path: a .safetensors file, or PyTorch's .pth, .pt, .bin or .ckpt.
    """
    path = pathlib.Path(path)
    if path.suffix not in (".safetensors", *_PYTORCH):
        raise InputError(
            f"{path} is no file of weights: give a .safetensors, {', '.join(_PYTORCH[:-1])} or"
            f" {_PYTORCH[-1]} file"
        )
    if not path.is_file():
        raise InputError(f"there is no file {path}")
    if path.suffix in _PYTORCH:
        check_torch(path)


def check_torch(path):
    """Raises InputError where PyTorch, which opens this file, is not installed, or unsafe."""
    if importlib.util.find_spec("torch") is None:
        raise InputError(f"{path} {_NEEDS_TORCH}")
    version = importlib.metadata.version("torch")
    if tuple(map(int, re.findall(r"\d+", version)[:2])) < (2, 6):
        raise InputError(
            f"{path} is a PyTorch file, and PyTorch {version} may run code from it"
            " (CVE-2025-32434); install 2.6 or newer"
        )


def read(path):
    """The weights in a file.

    Args:
      path: see `check`. A PyTorch file holds tensors by their names, perhaps under the key `model`
        or `state_dict`, and nothing else: it is opened without running code of its own.

    Returns:
      {path: float32 array} in our names and layout, left as the file has them where the name is
      unknown. Counters of batches, which nothing here needs, are left out.

    Raises:
      InputError: the file is missing, damaged, of another kind, or holds more than tensors.
    """
    check(path)
    tensors = _read_safetensors(path) if str(path).endswith(".safetensors") else _read_torch(path)
    tensors = _renamed(path, tensors, _official)
    tensors = _renamed(path, _join_queries_keys_values(tensors), _our_path)
    return {
        name: _our_layout(value)
        for name, value in tensors.items()
        if not name.endswith("num_batches_tracked")
    }


def _renamed(path, tensors, rename):
    """Tensors under other names; an InputError where two of them are one."""
    names = {}
    for name in tensors:
        other = names.setdefault(rename(name), name)
        if other != name:
            raise InputError(f"{path}: {other} and {name} are the same weight")
    return {new: tensors[old] for new, old in names.items()}


def _read_safetensors(path):
    """Tensors of a safetensors file; bfloat16 is widened."""
    import ml_dtypes  # noqa: F401  # makes bfloat16 known to NumPy
    import safetensors

    try:
        with safetensors.safe_open(path, "np") as file:
            return {name: np.asarray(file.get_tensor(name), np.float32) for name in file.keys()}  # noqa: SIM118
    except (safetensors.SafetensorError, OSError, ValueError, TypeError, AttributeError) as error:
        raise InputError(f"{path} is no whole safetensors file: {error}") from error


def _read_torch(path):
    """Tensors of a PyTorch file; its pickle may build tensors and containers, nothing else."""
    import torch

    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        if re.search("unsupported (global|class)", str(error), re.IGNORECASE):
            raise InputError(
                f"{path} holds more than tensors and is not opened, for it could run code; save"
                " its state_dict() alone"
            ) from error
        raise InputError(f"{path} is no whole PyTorch file") from error
    except Exception as error:  # an unpickler fed with anything else fails in any way
        raise InputError(f"{path} is no whole PyTorch file ({type(error).__name__})") from error
    for key in ("model", "state_dict"):
        if isinstance(content, dict) and isinstance(content.get(key), dict):
            content = content[key]
    if not isinstance(content, dict) or not content:
        raise InputError(f"{path} holds no tensors by name, but a {type(content).__name__}")
    for name, value in content.items():
        if not isinstance(value, torch.Tensor):
            raise InputError(f"{path}: {name} is no tensor, but a {type(value).__name__}")
        if not isinstance(name, str) or value.layout != torch.strided or value.is_complex():
            raise InputError(f"{path}: {name} is no dense tensor of real numbers with a name")
    return {name: value.detach().float().numpy() for name, value in content.items()}


def _official(name):
    """The official name of a tensor."""
    for pattern, replacement in _TO_THE_OFFICIAL_NAME:
        name = pattern.sub(replacement, name)
    return name


def _join_queries_keys_values(tensors):
    """Puts a block's three matrices, or biases, into the one that the original has."""
    joined = {}
    for name in tensors:
        block = re.fullmatch(r"(blocks\.\d+\.attn\.)q\.(weight|bias)", name)
        if block:
            parts = [tensors.get(f"{block[1]}{which}.{block[2]}") for which in "qkv"]
            whole = f"{block[1]}qkv.{block[2]}" in tensors  # then q, k and v are left over
            if all(part is not None for part in parts) and not whole:
                joined[f"{block[1]}qkv.{block[2]}"] = np.concatenate(parts)
    done = {name.replace("qkv", which) for name in joined for which in "qkv"}
    return {**{name: value for name, value in tensors.items() if name not in done}, **joined}


def _our_path(name):
    """`blocks.0.attn.qkv.weight` -> `blocks_0/attn/qkv/kernel`."""
    if name in ("cls_token", "dist_token", "pos_embed"):
        return f"tokens/{name}"
    for pattern, replacement in _TO_OURS:
        name = re.sub(pattern, replacement, name)
    return name.replace(".", "/")


def official_name(path):
    """`blocks_0/attn/qkv/kernel` -> `blocks.0.attn.qkv.weight`, for people."""
    name = path.removeprefix("tokens/").replace("/", ".")
    for pattern, replacement in _TO_OFFICIAL:
        name = re.sub(pattern, replacement, name)
    return name


def _our_layout(value):
    """PyTorch's layout -> Keras': convolutions [h, w, in, out], dense layers [in, out]."""
    if value.ndim == 4:
        return value.transpose(2, 3, 1, 0)
    return value.T if value.ndim == 2 else value


def network_of(weights, source, model=None, **changes):
    """The name and the facts of the network that has such weights.

    Args:
      weights: what `read` gave.
      source: what to call them in an error.
      model: a name from `config.VARIANTS`; None reads the network off the shapes. Heads are then
        taken to be 64 wide, as in every published DeiT.
      **changes: fields of its configuration that differ.

    Returns:
      A model's name, and a `config.DeiTConfig` or `config.RegNetYConfig`.

    Raises:
      InputError: they are no DeiT's and no known RegNetY's, or a field that the network lacks.
    """
    if model is not None:
        return model, configuration.network(model, **changes)
    name, shapes = _guess(weights, source)
    return name, configuration.network(name, **{**shapes, **changes})


def _guess(weights, source):
    """A model's name, and the fields of its configuration that shapes show."""
    try:
        changes = {"num_classes": weights["head/bias"].shape[0]}
        if "stem/conv/kernel" in weights:
            depth = len({path.split("/")[0] for path in weights if re.match(r"s\d_b\d", path)})
            family, changes = configuration.RegNetYConfig, {**changes, "depth": depth}
        else:
            family, changes = configuration.DeiTConfig, {**changes, **_deit_facts(weights)}
    except KeyError as error:
        raise InputError(f"{source} holds no DeiT's weights: it has no {error}") from error
    except (IndexError, TypeError) as error:
        raise InputError(f"{source} holds no DeiT's weights: shapes are others") from error
    for name, facts in configuration.VARIANTS.items():
        if name != "deit" and isinstance(facts, family):
            same = {field for field, value in changes.items() if getattr(facts, field) == value}
            if same | {"num_classes"} == set(changes):
                return name, changes
    if family is configuration.RegNetYConfig:
        raise InputError(f"{source} is no known RegNetY: it has {changes['depth']} blocks")
    return "deit", changes


def _deit_facts(weights):
    """The facts of a DeiT that its weights' shapes show."""
    patch_size, width = (weights["patch_embed/proj/kernel"].shape[i] for i in (0, 3))
    distilled = "tokens/dist_token" in weights
    positions = weights["tokens/pos_embed"].shape[1] - 1 - distilled
    if width % 64:
        raise InputError(
            f"a DeiT {width} wide does not show how many heads it has; give --model=deit and all"
            " that differs from deit_tiny, as --heads"
        )
    return {
        "image_size": math.isqrt(positions) * patch_size,
        "patch_size": patch_size,
        "width": width,
        "depth": len({path.split("/")[0] for path in weights if path.startswith("blocks_")}),
        "heads": width // 64,
        "mlp_ratio": weights["blocks_0/mlp/fc1/kernel"].shape[1] / width,
        "distilled": distilled,
    }
