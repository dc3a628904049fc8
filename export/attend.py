"""Passes that write attention anew: for a CPU, by the standard, by ONNX Runtime's operator."""

import dataclasses

import numpy as np

from export.graph import Constant

_QUERY = ("Squeeze", "query")
_SCORES = ("MatMul", ("Mul", "asked", Constant("scale")), ("Transpose", ("Squeeze", "key")))
_MIXED = ("MatMul", ("Softmax", _SCORES), ("Squeeze", "value"))
_ATTENTION = ("Reshape", ("Transpose", _MIXED), Constant("shape"))
_PRODUCT = ("MatMul", "x", Constant("kernel"))
_SPLIT = ("Transpose", ("Reshape", ("Add", _PRODUCT, Constant("bias")), Constant("parts")))
_SPLIT_WITHOUT_BIAS = ("Transpose", ("Reshape", _PRODUCT, Constant("parts")))


@dataclasses.dataclass(frozen=True)
class _Attention:
    """Where a graph attends: the tokens, and what makes queries, keys and values of them."""

    name: str  # of the tensor [B, T, D] that it answers
    x: str  # of the tokens
    first: int | None  # how many of them ask; None is all
    tokens: int
    heads: int
    scale: float
    kernels: tuple  # three arrays [D, D]
    biases: tuple  # three arrays [D]


def _attentions(graph):
    """Yields an `_Attention` for every one in a graph."""
    for name, found in graph.find(_ATTENTION):
        first = _asked(graph, found)
        split = graph.maker(found.get("query"))
        if split is None or list(split.output) != [found[n] for n in ("query", "key", "value")]:
            continue
        made = {}
        if not any(
            graph.match(pattern, split.input[0], made) for pattern in (_SPLIT, _SPLIT_WITHOUT_BIAS)
        ):
            continue
        _, tokens, _, heads, _ = made["parts"].tolist()
        kernel = made["kernel"]
        bias = made.get("bias", np.zeros(kernel.shape[1], kernel.dtype))
        parts = np.split(kernel, 3, axis=1), np.split(bias, 3)
        scale = found["scale"].item()
        yield _Attention(name, made["x"], first, tokens, heads, scale, *map(tuple, parts))


def _asked(graph, found):
    """How many tokens ask, where it is not all; names the query in `found`."""
    sliced = ("Slice", _QUERY, Constant("starts"), Constant("ends"), Constant("axes"))
    if graph.match(sliced, found["asked"], found):
        return int(found["ends"].ravel()[list(found["axes"].ravel()).index(2)])
    graph.match(_QUERY, found["asked"], found)
    return None


def _projected(graph, found, scale=1.0, biases=True):
    """Queries, keys and values, [B, T, D] each, by a MatMul of their own."""
    kernels = (found.kernels[0] * np.float32(scale), *found.kernels[1:])
    added = (found.biases[0] * np.float32(scale), *found.biases[1:])
    asking = graph.first(found.x, found.first, f"{found.name}/first") if found.first else found.x
    return [
        graph.linear(x, kernel, bias if biases else None, f"{found.name}/{kind}")
        for x, kernel, bias, kind in zip(
            (asking, found.x, found.x), kernels, added, ("query", "key", "value"), strict=True
        )
    ]


def separate(graph):
    """Three MatMuls instead of one, the scale within the first: nothing is split or copied."""
    for found in list(_attentions(graph)):
        width, heads, name = len(found.kernels[0]), found.heads, found.name
        turned = []
        tokens = (found.first or found.tokens, found.tokens, found.tokens)
        orders = ((0, 2, 1, 3), (0, 2, 3, 1), (0, 2, 1, 3))
        for x, count, order in zip(
            _projected(graph, found, found.scale), tokens, orders, strict=True
        ):
            x = graph.reshape(x, (-1, count, heads, width // heads), name)
            turned.append(graph.add("Transpose", [x], name, perm=order))
        query, key, value = turned  # [B, H, T, D/H], [B, H, D/H, T], [B, H, T, D/H]
        weights = graph.add("Softmax", [graph.add("MatMul", [query, key], name)], name, axis=-1)
        mixed = graph.add("MatMul", [weights, value], name)
        mixed = graph.add("Transpose", [mixed], name, perm=(0, 2, 1, 3))  # [B, T, H, D/H]
        graph.replace(name, graph.reshape(mixed, (-1, tokens[0], width), name))


def standard(graph):
    """The standard's Attention (opset 23)."""
    for found in list(_attentions(graph)):
        heads = {"q_num_heads": found.heads, "kv_num_heads": found.heads, "scale": found.scale}
        projected = _projected(graph, found)
        graph.replace(found.name, graph.add("Attention", projected, found.name, **heads))


def contrib(graph):
    """ONNX Runtime's MultiHeadAttention, queries, keys and values apart.

    With packed weights, its Attention does not take the flash kernel for as few tokens as ours.
    """
    for found in list(_attentions(graph)):
        bias = graph.constant(np.concatenate(found.biases), f"{found.name}/bias")
        node = graph.add(
            "MultiHeadAttention",
            [*_projected(graph, found, biases=False), bias],
            found.name,
            domain="com.microsoft",
            num_heads=found.heads,
            scale=found.scale,
        )
        graph.replace(found.name, node)
