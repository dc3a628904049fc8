"""An ONNX file answers as its run, for every target and precision; one that does not is refused."""

import collections
import dataclasses
import json
import shutil

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper, reference

from deit_tf import config, inference, manifest
from export import artefact, graph, onnxmodel, samples, verify
from serving.onnx_session import OnnxSession

DEPTH = 3
KINDS = [
    {},
    {"standard_attention": True},
    {"with_attention": True},
    {"precision": "float16"},
    {"precision": "float16", "with_attention": True},
    {"precision": "float16", "standard_attention": True},
    {"precision": "int8"},
    {"precision": "int8", "with_attention": True},
    {"target": "cpu"},
    {"target": "cpu", "precision": "int8"},
    {"target": "cpu", "with_attention": True},
    {"target": "cuda", "precision": "float16"},
    {"target": "cuda"},
]


def _name(kind):
    return "_".join(name if value is True else value for name, value in kind.items()) or "portable"


@pytest.fixture(scope="module")
def found(micro_run):
    return inference.open_run(micro_run)


@pytest.fixture(scope="module")
def exported(micro_run, tmp_path_factory):
    """Function of a kind: the file, and what was said of it."""
    folder, files = tmp_path_factory.mktemp("onnx"), {}

    def export(kind):
        name = _name(kind)
        if name not in files:
            path = folder / f"{name}.onnx"
            options = onnxmodel.Options(**kind)
            files[name] = path, onnxmodel.export(micro_run, path, options)
        return files[name]

    return export


@pytest.fixture(scope="module")
def pixels(micro_run, found):
    return samples.pixels(samples.encoded(micro_run, verify.IMAGES), found.manifest)


SLOW = ({"precision": "int8", "with_attention": True}, {"target": "cpu", "with_attention": True})


@pytest.mark.parametrize(
    "kind",
    [pytest.param(kind, marks=[pytest.mark.slow] * (kind in SLOW)) for kind in KINDS],
    ids=_name,
)
def test_answers_as_its_run(kind, exported, found, pixels):
    path, line = exported(kind)
    assert "36 images" in line
    session = OnnxSession(path)
    expected = np.asarray(found.answer(pixels)["logits"])
    allowed = {"float32": 1e-5, "float16": 5e-3, "int8": 0.1}[kind.get("precision", "float32")]
    for batch in (1, 5):  # of any size
        answered = session.run(pixels[:batch])
        assert answered["logits"].dtype == answered["probabilities"].dtype == np.float32
        error = np.max(np.abs(answered["logits"] - expected[:batch]))
        assert error <= allowed * np.max(np.abs(expected))


@pytest.mark.parametrize(
    ("target", "precision"),
    [
        ("cuda", "float16"),
        pytest.param("portable", "float16", marks=pytest.mark.slow),
        pytest.param("portable", "int8", marks=pytest.mark.slow),
        pytest.param("cuda", "float32", marks=pytest.mark.slow),
    ],
)
def test_the_mean_of_the_softmaxes_is_exported_too(target, precision, micro_run, tmp_path):
    options, path = onnxmodel.Options(precision, target), tmp_path / "deit.onnx"
    onnxmodel.export(micro_run, path, options, fusion="softmax")
    assert OnnxSession(path).manifest.fusion == "softmax"


def test_names_types_and_manifest(exported, found):
    path, _ = exported({"target": "cuda", "precision": "float16"})
    session = OnnxSession(path)
    told = session.manifest
    assert told.signatures == {"pixels": session.signature()}
    assert told.signatures["pixels"] == manifest.Signature(
        {"image": manifest.Tensor("uint8", ("batch", 64, 64, 3))},
        {name: manifest.Tensor("float32", ("batch", 7)) for name in ("logits", "probabilities")},
    )
    assert (told.precision, told.target) == ("float16", "cuda")
    assert told.labels == found.manifest.labels
    assert told.source == found.manifest.source
    assert {"tf2onnx", "onnx", "onnxruntime-gpu"} <= set(told.versions)


def test_portable_is_standard_operators_alone(exported, pixels):
    for kind in ({}, {"standard_attention": True}, {"with_attention": True}):
        model = onnx.load(exported(kind)[0])
        assert {each.domain for each in model.opset_import} == {""}
        onnx.checker.check_model(model, full_check=True)
        session = OnnxSession(exported(kind)[0])
        evaluated = reference.ReferenceEvaluator(model).run(["logits"], {"image": pixels[:2]})[0]
        np.testing.assert_allclose(evaluated, session.run(pixels[:2])["logits"], atol=1e-5)


def test_maps_show_where_both_tokens_look(exported, found, pixels):
    answered = OnnxSession(exported({"with_attention": True})[0]).run(pixels[:3])
    for name, value in found.attention(pixels[:3]).items():
        np.testing.assert_allclose(answered[f"attention_{name}"], value, atol=1e-5)


def _count(path):
    """How many operators of which kind a file has."""
    return collections.Counter(node.op_type for node in onnx.load(path).graph.node)


def _assert_fused(path, depth):
    """The graph for CUDA is as small as it can be."""
    found = _count(path)
    fused = ("MultiHeadAttention", "BiasGelu", "SkipLayerNormalization")
    assert [found[kind] for kind in fused] == [depth, depth, 2 * depth]
    assert sum(found.values()) <= 10 * depth + 35


def test_cuda_is_fused(exported):
    _assert_fused(exported({"target": "cuda"})[0], DEPTH)
    _assert_fused(exported({"target": "cuda", "precision": "float16"})[0], DEPTH)


def test_int8_leaves_patches_and_heads_alone(exported):
    found = _count(exported({"precision": "int8"})[0])
    assert found["MatMulInteger"] == 6 * DEPTH  # query, key, value, projection, twice the MLP
    # Of two activations each, and the patches and both heads.
    assert found["MatMul"] == 2 * DEPTH + 3


def test_float16_halves_the_file(exported):
    sizes = [exported(kind)[0].stat().st_size for kind in ({}, {"precision": "float16"})]
    assert sizes[1] < 0.7 * sizes[0]


def test_what_excludes_each_other_is_said():
    for given, says in (
        ({"target": "cuda", "with_attention": True}, "answers no weights"),
        ({"target": "cuda", "precision": "int8"}, "give --precision=float16"),
        ({"target": "cpu", "precision": "float16"}, "by way of float32"),
        ({"standard_attention": True, "target": "cpu"}, "give --target=portable"),
        ({"precision": "fp16"}, "choose one of float32, float16, int8"),
    ):
        with pytest.raises(config.InputError, match=says):
            onnxmodel.Options(**given)


@pytest.fixture
def edited(exported, tmp_path):
    """Function (change, kind): a copy of a file that a function has changed, sealed anew."""

    def edit(change, kind=None):
        path = tmp_path / "edited.onnx"
        shutil.copy(exported(kind or {})[0], path)
        model = onnx.load(path)
        told = manifest.from_json(
            {each.key: each.value for each in model.metadata_props}[manifest.KEY], path
        )
        change(model)
        told = dataclasses.replace(told, digest=artefact.digest_of_graph(model))
        helper.set_model_props(model, {manifest.KEY: told.to_json()})
        onnx.save(model, path)
        return path

    return edit


def _scale_a_weight(model):
    whole = graph.Graph(model)
    products = [node.input[1] for node in whole.nodes if node.op_type == "MatMul"]
    kernel = [name for name in products if whole.value(name) is not None][5]
    tensor = next(each for each in model.graph.initializer if each.name == kernel)
    tensor.CopyFrom(numpy_helper.from_array(np.float32(1.3) * whole.value(kernel), kernel))


def _rename_an_output(model):
    for node in model.graph.node:
        for names in (node.input, node.output):
            for i, name in enumerate(names):
                if name == "logits":
                    names[i] = "logit"
    next(each for each in model.graph.output if each.name == "logits").name = "logit"


def _round_the_gelu(model):
    for node in model.graph.node:
        if node.op_type == "Gelu":
            node.attribute.append(helper.make_attribute("approximate", "tanh"))


def _break_the_gelu(model):
    for node in model.graph.node:
        if node.op_type == "Gelu":
            node.op_type = "Erfc"  # as tf2onnx leaves what it does not know, and exits 0


def _turn_a_map(model):
    node = next(each for each in model.graph.node if "attention_dist" in each.output)
    node.output[0] = "before"
    turn = helper.make_node("Transpose", ["before"], ["attention_dist"], perm=(0, 2, 1))
    model.graph.node.append(turn)


def _change_a_shape(model):
    model.graph.output[0].type.tensor_type.shape.dim[1].dim_value = 8


@pytest.mark.parametrize(
    ("change", "error"),
    [
        (_scale_a_weight, verify.ValuesError),
        (_rename_an_output, verify.NamesError),
        (_round_the_gelu, verify.ValuesError),
        (_break_the_gelu, verify.LoadError),
        (_change_a_shape, verify.ShapesError),
    ],
)
def test_what_differs_is_refused_by_its_name(change, error, edited, found, micro_run):
    with pytest.raises(error):
        verify.verify(edited(change), found, micro_run)


def test_another_map_is_refused(edited, found, micro_run):
    with pytest.raises(verify.ValuesError, match="answers another attention_dist"):
        verify.verify(edited(_turn_a_map, {"with_attention": True}), found, micro_run)


def test_int8_may_be_off_but_must_decide_alike(edited, found, micro_run, pixels):
    logits = np.asarray(found.answer(pixels)["logits"])
    shift = np.zeros(7, np.float32)  # smaller than what int8 may be off
    shift[np.bincount(logits.argmax(-1), minlength=7).argmax()] = -0.085 * np.abs(logits).max()

    def nudge(model):
        node = next(each for each in model.graph.node if "logits" in each.output)
        node.output[0] = "before"
        model.graph.initializer.append(numpy_helper.from_array(shift, "shift"))
        model.graph.node.append(helper.make_node("Add", ["before", "shift"], ["logits"]))
        graph.Graph(model).tidy()

    with pytest.raises(verify.ValuesError, match="top class the same on"):
        verify.verify(edited(nudge, {"precision": "int8"}), found, micro_run)


def test_as_many_images_are_compared_as_are_asked_for(exported, found, micro_run):
    for count in (3, 40):
        line = verify.verify(exported({})[0], found, micro_run, count)
        assert f"{count} images" in line


def test_a_damaged_file_is_refused(exported, found, micro_run, tmp_path):
    model = onnx.load(exported({})[0])
    _scale_a_weight(model)
    onnx.save(model, tmp_path / "damaged.onnx")
    with pytest.raises(verify.DamagedError, match="export it anew"):
        verify.verify(tmp_path / "damaged.onnx", found, micro_run)


def test_the_commands(micro_run, command, tmp_path):
    path = tmp_path / "folder" / "deit.onnx"
    answer = command("export.onnxmodel", f"--run_dir={micro_run}", f"--output={path}")
    assert answer.stdout == f"{path}\n", answer.stderr
    assert [each.name for each in path.parent.iterdir()] == ["deit.onnx"]
    answer = command("export.verify", f"--run_dir={micro_run}", f"--artefact={path}")
    assert answer.stdout.startswith(f"{path}: logits within"), answer.stderr
    for flags, says in (
        ((f"--run_dir={tmp_path}", "--output=x.onnx"), "is no run directory"),
        ((f"--run_dir={micro_run}", f"--output={tmp_path}"), "is a folder"),
        ((f"--run_dir={micro_run}", "--output=x.onnx", "--target=gpu"), "choose one of portable"),
        ((f"--run_dir={micro_run}", f"--output={path}/x.onnx"), "can no longer be written"),
    ):
        answer = command("export.onnxmodel", *flags)
        assert answer.returncode == 1
        assert says in answer.stderr.splitlines()[-1]


def test_accuracy_of_the_artefact_itself(exported, digits_config, data_dir, command, tmp_path):
    """On digits: an untrained network, whose accuracy Keras and the file agree on."""
    from deit_tf import checkpoint, rundir

    whole = digits_config()
    labels = [str(i) for i in range(10)]
    rundir.begin(tmp_path / "run", whole, {}, labels, labels)
    checkpoint.build_network(whole.network).save_weights(tmp_path / "run" / rundir.WEIGHTS)
    path = tmp_path / "deit.onnx"
    onnxmodel.export(tmp_path / "run", path, onnxmodel.Options())
    data = ("--dataset=digits", f"--data_dir={data_dir}")
    answer = command("export.evaluate", f"--artefact={path}", *data, "--json")
    measured = json.loads(answer.stdout)
    answer = command("deit_tf.evaluate", f"--run_dir={tmp_path / 'run'}", "--json")
    expected = json.loads(answer.stdout)
    assert measured["images"] == expected["images"] == 397
    for name in ("top1", "top5"):
        assert measured["artefact"][name] == expected["fused"][name]
    assert abs(measured["artefact"]["loss"] - expected["fused"]["loss"]) <= 1e-5


def test_the_version_of_the_file_fits_its_operators(exported):
    for kind, version in (({}, 9), ({"standard_attention": True}, 11)):
        assert onnx.load(exported(kind)[0]).ir_version >= version


def test_a_name_that_is_no_text_is_named(micro_run, tmp_path):
    shutil.copytree(micro_run, tmp_path / "run")
    path = tmp_path / "run" / "config.json"
    record = json.loads(path.read_text())
    record["labels"][2] = "caf\udce9"  # as a folder is called in Latin-1
    path.write_text(json.dumps(record))
    with pytest.raises(config.InputError, match=r"'caf\\udce9' is no UTF-8 text; give names"):
        inference.open_run(tmp_path / "run")
