"""Each pass over the ONNX graph does its one thing, and changes no answer."""

import collections

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper, reference

from deit_tf import inference
from export import attend, fuse, onnxmodel, rewrite
from export.graph import Constant, Graph

DEPTH, TOKENS = 3, 18


@pytest.fixture(scope="module")
def converted(micro_run):
    """What tf2onnx makes of a micro DeiT with golden weights."""
    options = onnxmodel.Options()
    model = onnxmodel.converted(inference.open_run(micro_run), options)
    return onnx.version_converter.convert_version(model, 20)


@pytest.fixture
def rewritten(converted):
    """Function (*passes): the same after some passes, and how many operators of which kind."""

    def run(*passes, opset=20):
        model = onnx.version_converter.convert_version(converted, opset)
        graph = Graph(model)
        for each in passes:
            each(graph)
        graph.tidy()
        return model, collections.Counter(node.op_type for node in model.graph.node)

    return run


IMAGE = np.random.RandomState(0).randint(0, 256, (3, 64, 64, 3)).astype(np.uint8)


def _answers(model):
    session = onnxruntime.InferenceSession(
        model.SerializeToString(), providers=["CPUExecutionProvider"]
    )
    return session.run(["logits", "probabilities"], {"image": IMAGE})


@pytest.fixture(scope="module")
def expected(converted):
    return _answers(converted)


def _assert_same(model, expected):
    for found, value in zip(_answers(model), expected, strict=True):
        assert np.max(np.abs(found - value)) <= 1e-5 * np.max(np.abs(value))


def test_before_any_pass_there_is_nothing_to_fuse(converted):
    found = {node.op_type for node in converted.graph.node}
    assert not found & {"LayerNormalization", "Gelu", "Attention"}


def test_tensordots_are_matmuls(rewritten, converted, expected):
    model, found = rewritten(rewrite.matmuls)
    before = collections.Counter(node.op_type for node in converted.graph.node)
    assert before["Reshape"] - found["Reshape"] == 2 * 4 * DEPTH
    assert found["MatMul"] == before["MatMul"]
    assert found["Shape"] == 1  # of the batch, for the tokens
    _assert_same(model, expected)


def test_norms_are_one_operator(rewritten, expected):
    model, found = rewritten(rewrite.layer_norms)
    assert found["LayerNormalization"] == 2 * DEPTH + 1
    assert found["ReduceMean"] == found["Sqrt"] == 0
    _assert_same(model, expected)


def test_gelus_are_one_operator(rewritten, expected):
    model, found = rewritten(rewrite.gelus)
    assert (found["Gelu"], found["Erf"]) == (DEPTH, 0)
    _assert_same(model, expected)


def test_patches_are_a_product_of_raw_pixels(rewritten, expected):
    model, found = rewritten(rewrite.patches)
    assert found["Conv"] == 0
    assert model.graph.node[0].op_type == "Reshape"  # bytes are moved, and not floats
    _assert_same(model, expected)


@pytest.mark.parametrize(
    ("each", "kind", "opset"),
    [
        (attend.separate, "Softmax", 20),
        (attend.standard, "Attention", 23),
        (attend.contrib, "MultiHeadAttention", 20),
    ],
)
def test_attention_is_found_in_every_block(each, kind, opset, rewritten, expected):
    model, found = rewritten(rewrite.matmuls, each, opset=opset)
    assert found[kind] == DEPTH + (kind == "Softmax")
    assert found["Split"] == 0
    _assert_same(model, expected)


def test_norms_take_the_sum_before_them(rewritten, expected):
    model, found = rewritten(rewrite.matmuls, rewrite.layer_norms, fuse.skip_norms)
    assert (found["SkipLayerNormalization"], found["LayerNormalization"]) == (2 * DEPTH, 1)
    _assert_same(model, expected)


def test_gelus_take_their_bias(rewritten, expected):
    model, found = rewritten(rewrite.matmuls, rewrite.gelus, fuse.bias_gelus)
    assert (found["BiasGelu"], found["Gelu"]) == (DEPTH, 0)
    _assert_same(model, expected)


def test_all_that_portable_has_is_standard(rewritten, expected):
    model, _ = rewritten(
        rewrite.matmuls, rewrite.layer_norms, rewrite.gelus, rewrite.patches, attend.separate
    )
    onnx.checker.check_model(model, full_check=True)
    found = reference.ReferenceEvaluator(model).run(["logits"], {"image": IMAGE})[0]
    assert np.max(np.abs(found - expected[0])) <= 1e-5 * np.max(np.abs(expected[0]))


def _small(*nodes, constants=()):
    """A graph from x [2, 4] to y."""
    values = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, shape)
        for name, shape in (("x", (2, 4)), ("y", None))
    ]
    stored = [numpy_helper.from_array(np.float32(value), name) for name, value in constants]
    graph = helper.make_graph(nodes, "small", values[:1], values[1:], stored)
    return Graph(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)]))


def test_a_pattern_is_found_in_either_order_of_a_sum():
    nodes = [
        helper.make_node("Mul", ["x", "two"], ["double"]),
        helper.make_node("Add", ["double", "x"], ["y"]),
    ]
    graph = _small(*nodes, constants=[("two", 2.0)])
    for pattern in (("Add", "a", ("Mul", "a", 2.0)), ("Add", ("Mul", Constant("c"), "a"), "a")):
        ((name, found),) = graph.find(pattern)
        assert (name, found["a"]) == ("y", "x")
    for pattern in (("Add", "a", ("Mul", "a", 3.0)), ("Sub", "a", "b"), ("Add", "a", "a")):
        assert list(graph.find(pattern)) == []


def test_an_output_keeps_its_name_and_the_rest_is_dropped():
    nodes = [helper.make_node("Neg", ["x"], ["z"]), helper.make_node("Neg", ["z"], ["y"])]
    graph = _small(*nodes, constants=[("unused", 1.0)])
    graph.replace("y", graph.add("Identity", ["x"], "same"))
    graph.tidy()
    assert [node.op_type for node in graph.nodes] == ["Identity"]
    assert graph.nodes[0].output == ["y"]
    assert len(graph.model.graph.initializer) == 0


def test_what_is_like_a_gelu_and_is_none_stays():
    nodes = [
        helper.make_node("Mul", ["x", "root"], ["scaled"]),
        helper.make_node("Erf", ["scaled"], ["erf"]),
        helper.make_node("Add", ["erf", "one"], ["sum"]),
        helper.make_node("Mul", ["x", "half"], ["halved"]),
        helper.make_node("Mul", ["halved", "sum"], ["y"]),
    ]
    for root, kind in ((0.5**0.5, "Gelu"), (0.7, "Erf")):
        graph = _small(*nodes, constants=[("root", root), ("one", 1.0), ("half", 0.5)])
        rewrite.gelus(graph)
        graph.tidy()
        assert kind in [node.op_type for node in graph.nodes]
