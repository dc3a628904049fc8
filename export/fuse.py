"""Passes that put ONNX Runtime's own operators in, for which its CUDA provider has kernels."""

from export.graph import Constant

_CONTRIB = "com.microsoft"
_BRANCH = ("Add", "product", Constant("bias"))  # the end of a Dense


def bias_gelus(graph):
    """A bias and the Gelu after it are a BiasGelu."""
    for name, found in graph.find(("Gelu", _BRANCH)):
        bias = graph.constant(found["bias"], f"{name}/bias")
        inputs = [found["product"], bias]
        graph.replace(name, graph.add("BiasGelu", inputs, name, domain=_CONTRIB))


def skip_norms(graph):
    """A bias, the sum with what a branch left, and the norm after it are a SkipLayerNormalization.

    It answers both: the norm, and the sum that goes on.
    """
    for name, found in graph.find(("LayerNormalization", "sum", "gamma", "beta")):
        if not graph.match(("Add", "x", _BRANCH), found["sum"], found):
            continue
        if graph.maker(found["product"]).op_type != "MatMul":
            continue
        bias = graph.constant(found["bias"], f"{name}/bias")
        normed, summed = graph.add(
            "SkipLayerNormalization",
            [found["x"], found["product"], found["gamma"], found["beta"], bias],
            name,
            domain=_CONTRIB,
            outputs=(True, False, False, True),
            epsilon=graph.attribute(name, "epsilon"),
        )
        graph.replace(name, normed)
        graph.replace(found["sum"], summed)
