"""An ONNX model in float16 or int8."""

import pathlib
import tempfile

import numpy as np
import onnx
from onnx import TensorProto, numpy_helper
from onnxruntime.quantization import QuantType, quantize_dynamic

from export.graph import Graph


def convert(model, precision):
    """A model in another precision; inputs and outputs keep their types.

    Args:
      model: an `onnx.ModelProto` in float32.
      precision: "float32", "float16" or "int8".

    Returns:
      An `onnx.ModelProto`.
    """
    return {"float32": lambda model: model, "float16": _half, "int8": _int8}[precision](model)


def _half(model):
    """float16 up to the last norm; the heads and what becomes of them stay float32."""
    graph = Graph(model)
    kept = _after_norm(graph)
    names = {node.name for node in kept}
    outputs = [output.name for output in model.graph.output]
    for node in kept:  # what they share with others they get for themselves
        for i, name in enumerate(node.input):
            if graph.maker(name) is None:
                node.input[i] = graph.constant(graph.value(name), name)
    mine = {name for node in kept for name in node.input}
    for tensor in model.graph.initializer:
        if tensor.data_type == TensorProto.FLOAT and tensor.name not in mine:
            value = numpy_helper.to_array(tensor).astype(np.float16)
            tensor.CopyFrom(numpy_helper.from_array(value, tensor.name))
    for node in list(graph.nodes):
        if node.op_type != "Cast" or node.name in names:
            continue
        if graph.attribute(node.output[0], "to") == TensorProto.FLOAT:
            node.attribute[0].i = TensorProto.FLOAT16
    for node in kept:
        for i, name in enumerate(node.input):
            made = graph.maker(name)
            if made is not None and made.name not in names:
                node.input[i] = graph.add("Cast", [name], name, to=TensorProto.FLOAT)
    for name in outputs:  # maps of attention, where they are wanted
        if graph.maker(name).name not in names:
            graph.replace(name, graph.add("Cast", [name], name, to=TensorProto.FLOAT))
    graph.tidy()
    return model


def _int8(model):
    """Weights of the blocks in int8, a scale a column; what they meet is quantised as it comes.

    The patches see raw pixels and the heads decide: both stay float32.
    """
    with tempfile.TemporaryDirectory() as folder:
        paths = [pathlib.Path(folder) / name for name in ("before.onnx", "after.onnx")]
        onnx.save(model, paths[0])
        quantize_dynamic(
            *paths,
            op_types_to_quantize=["MatMul"],
            per_channel=True,
            weight_type=QuantType.QInt8,
            nodes_to_exclude=_first_and_last(model),
        )
        quantised = onnx.load(paths[1])
    Graph(quantised).tidy()
    return quantised


def _first_and_last(model):
    """Names of the MatMuls of the patches and of the heads."""
    products = [node.name for node in model.graph.node if node.op_type == "MatMul"]
    heads = {node.name for node in _after_norm(Graph(model))}
    return [products[0], *(name for name in products if name in heads)]


def _after_norm(graph):
    """The nodes after the last norm that make logits and probabilities."""
    found, names = {}, ["logits"]
    while names:
        node = graph.maker(names.pop())
        if node is not None and "LayerNormalization" not in node.op_type:
            found[node.name] = node
            names += node.input
    return [*found.values(), *graph.users("logits")]
