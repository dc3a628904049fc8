"""Passes over the ONNX graph that tf2onnx makes of our networks; each does one thing.

Keras' layers come out of TensorFlow as many small operators, of which ONNX Runtime fuses none. A
pass finds such a pattern and puts one operator in its place; where it finds none the graph stays as
it is, which is slower and as right.
"""

import numpy as np
from onnx import TensorProto

from export.graph import Constant

_CONTRIB = "com.microsoft"


def matmuls(graph):
    """A Dense on [B, T, D] is a MatMul: without the reshapes around it that tensordot writes."""
    inner = ("Reshape", "x", Constant("shape"))
    for name, found in graph.find(("Reshape", ("MatMul", inner, Constant("kernel")), "to")):
        if list(found["shape"]) != [-1, found["kernel"].shape[0]]:
            continue
        matmul = graph.maker(graph.maker(name).input[0])
        product = graph.add("MatMul", [found["x"], matmul.input[1]], matmul.name)
        if not _is_shape_of(graph, found["to"], found["x"]):  # another reshape, that stays
            product = graph.add("Reshape", [product, found["to"]], matmul.name)
        graph.replace(name, product)


def _is_shape_of(graph, shape, x):
    """Whether a shape is computed from that of a tensor, as tensordot's is."""
    node = graph.maker(shape)
    while node is not None and node.op_type in ("Cast", "Concat", "Gather"):
        node = graph.maker(node.input[0])
    return node is not None and node.op_type == "Shape" and node.input[0] == x


_MEAN = ("ReduceMean", "x", Constant("axes"))
_CENTRED = ("Sub", "x", _MEAN)
_VARIANCE = ("ReduceMean", ("Mul", _CENTRED, _CENTRED), Constant("axes"))
_STANDARD = ("Reciprocal", ("Sqrt", ("Add", _VARIANCE, Constant("epsilon"))))
_FACTOR = ("Mul", _STANDARD, Constant("gamma"))
_SHIFT = ("Mul", ("Neg", _MEAN), _FACTOR)
_NORM = ("Add", ("Mul", "x", _FACTOR), ("Add", _SHIFT, Constant("beta")))
_NORM_WITHOUT_BETA = ("Add", ("Mul", "x", _FACTOR), _SHIFT)  # as of a network that is untrained


def layer_norms(graph):
    """x·γ/σ + (β − μ·γ/σ), in thirteen operators, is a LayerNormalization (opset 17)."""
    for pattern in (_NORM, _NORM_WITHOUT_BETA):
        for name, found in graph.find(pattern):
            gamma = found["gamma"]
            if found["axes"].item() not in (-1, gamma.ndim - 1) or gamma.size != gamma.shape[-1]:
                continue
            beta = found.get("beta", np.zeros_like(gamma))
            inputs = [found["x"]]
            for value, kind in ((gamma, "gamma"), (beta, "beta")):
                inputs.append(graph.constant(value.ravel(), f"{name}/{kind}"))
            epsilon = found["epsilon"].item()
            node = graph.add("LayerNormalization", inputs, name, axis=-1, epsilon=epsilon)
            graph.replace(name, node)


_ERF = ("Erf", ("Mul", "x", 0.5**0.5))
_GELU = ("Mul", ("Mul", 0.5, "x"), ("Add", 1.0, _ERF))


def gelus(graph):
    """x/2·(1 + erf(x/√2)) is a Gelu (opset 20)."""
    for name, found in graph.find(_GELU):
        graph.replace(name, graph.add("Gelu", [found["x"]], name))


_PIXELS = ("Add", ("Mul", ("Cast", "image"), Constant("scale")), Constant("offset"))
_CONVOLVED = ("Conv", ("Transpose", _PIXELS), Constant("kernel"), Constant("bias"))
_PATCHES = ("Reshape", ("Transpose", _CONVOLVED), Constant("shape"))


def patches(graph):
    """A convolution that cuts patches is one MatMul of raw pixels, with the normalisation in it.

    (pixel·scale + offset)·W + b = pixel·(scale·W) + (offset·W + b), exactly: there is no padding.
    """
    for name, found in graph.find(_PATCHES):
        kernel = found["kernel"].transpose(2, 3, 1, 0).astype(np.float64)  # [P, P, 3, D]
        size, _, channels, width = kernel.shape
        side = round(found["shape"][1] ** 0.5)
        scale, offset = (
            np.broadcast_to(found[which].ravel(), channels)[:, np.newaxis]
            for which in ("scale", "offset")
        )
        bias = found["bias"] + (kernel * offset).sum((0, 1, 2))
        kernel = (kernel * scale).reshape(-1, width)
        x = graph.reshape(found["image"], (-1, side, size, side, size, channels), name)
        x = graph.add("Transpose", [x], name, perm=[0, 1, 3, 2, 4, 5])  # [B, S/P, S/P, P, P, 3]
        x = graph.reshape(x, (-1, side**2, len(kernel)), name)
        x = graph.add("Cast", [x], name, to=TensorProto.FLOAT)
        graph.replace(
            name, graph.linear(x, kernel.astype(np.float32), bias.astype(np.float32), name)
        )
