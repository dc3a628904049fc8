"""A SavedModel answers as its run, and one that does not is refused."""

import concurrent.futures
import dataclasses
import json
import shutil
import subprocess
import sys

import keras
import numpy as np
import pytest
import tensorflow as tf
from tensorflow.core.framework import tensor_pb2
from tensorflow.core.protobuf import saved_model_pb2

from deit_tf import config, inference, preprocess
from export import artefact, image_bytes, samples, savedmodel, served, verify
from serving import wire

OPTIONS = {"max_batch_size": 4, "max_pixels": 300_000, "with_attention": True, "top_k": 3}


@pytest.fixture(scope="module")
def found(micro_run):
    return inference.open_run(micro_run)


@pytest.fixture(scope="module")
def exported(micro_run, tmp_path_factory):
    """A version of a served model, and what was said of it."""
    models = tmp_path_factory.mktemp("models")
    path, line = savedmodel.export(micro_run, models / "micro", **OPTIONS)
    assert "top class the same on 100.0%" in line
    return path


@pytest.fixture(scope="module")
def opened(exported):
    return artefact.SavedModel(exported)


@pytest.fixture(scope="module")
def images(micro_run):
    return samples.encoded(micro_run, verify.IMAGES, OPTIONS["max_pixels"])


def test_a_version_is_there_whole_with_all_it_needs(exported):
    assert exported.name == "1"
    assert [path.name for path in exported.parent.iterdir()] == ["1"]
    beside = sorted(path.name for path in (exported / "assets.extra").iterdir())
    assert beside == ["manifest.json", "tf_serving_warmup_requests"]


def test_signatures_are_named_and_a_row_an_image(opened):
    told = opened.manifest.signatures
    assert told == opened.signatures()
    rows = {tensor.shape[0] for each in told.values() for tensor in each.outputs.values()}
    assert rows == {"batch"}
    shapes = {
        name: {key: tensor.shape[1:] for key, tensor in each.outputs.items()}
        for name, each in told.items()
    }
    named = {"probabilities": (7,), "class_ids": (3,), "class_names": (3,), "scores": (3,)}
    assert shapes == {
        "serving_default": named,
        "pixels": {"logits": (7,), **named},
        "features": {"cls": (48,), "dist": (48,)},
        "attention": {"cls": (4, 4), "dist": (4, 4)},
    }


def test_the_manifest_says_where_it_is_from(opened, found):
    told = opened.manifest
    assert told.labels[4] == "Käfer"
    assert (told.image_size, told.crop_fraction, told.fusion) == (64, 0.875, "logits")
    assert told.source["weights_sha256"] == found.manifest.source["weights_sha256"]
    assert told.versions["tensorflow"] == tf.__version__


@pytest.mark.parametrize("signature", ["features", "attention"])
def test_what_else_is_asked_is_the_networks(signature, opened, found, images):
    pixels = samples.pixels(images[:5], found.manifest)
    expected = getattr(found, signature)(pixels)
    answered = opened.call(signature, images[:5])
    for name, value in expected.items():
        np.testing.assert_allclose(answered[name], value, atol=1e-5)


def test_classes_are_named_the_likeliest_first(opened, found, images):
    answered = opened.call("serving_default", images[:6])
    expected = found.answer(samples.pixels(images[:6], found.manifest))["probabilities"]
    order = np.argsort(-np.asarray(expected), axis=-1)[:, :3]
    np.testing.assert_array_equal(answered["class_ids"], order)
    names = [[name.decode() for name in row] for row in answered["class_names"]]
    assert names == [[opened.manifest.labels[i] for i in row] for row in order]


def test_a_request_may_be_larger_than_a_batch(opened, images):
    whole = opened.call("serving_default", images)["probabilities"]
    parts = [opened.call("serving_default", [image])["probabilities"] for image in images[:9]]
    np.testing.assert_allclose(whole[:9], np.concatenate(parts), atol=1e-6)


def test_a_bad_image_fails_alone_among_concurrent_requests(opened, images):
    asked = [*images[:7], images[0][: len(images[0]) // 2]]
    expected = opened.call("serving_default", images[:7])["probabilities"]

    def ask(image):
        try:
            return opened.call("serving_default", [image])["probabilities"][0]
        except tf.errors.InvalidArgumentError as error:
            return str(error)

    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        for _ in range(3):
            *good, bad = pool.map(ask, asked)
            np.testing.assert_allclose(np.stack(good), expected, atol=1e-6)
            assert "Invalid JPEG data" in bad


def test_concurrent_requests_of_all_kinds_get_their_own_answers(opened, images):
    names = tuple(opened.manifest.signatures)
    sent = {
        name: samples.pixels(images[:1], opened.manifest) if name == "pixels" else images[:1]
        for name in names
    }
    expected = {name: opened.call(name, sent[name]) for name in names}
    with concurrent.futures.ThreadPoolExecutor(16) as pool:
        asked = names * 20
        for name, answered in zip(
            asked, pool.map(lambda name: opened.call(name, sent[name]), asked), strict=True
        ):
            assert set(answered) == set(expected[name])
            for key, value in answered.items():
                if value.dtype != object:
                    np.testing.assert_allclose(value, expected[name][key], atol=1e-5)


def test_the_largest_request_is_answered(opened, images):
    pixels = samples.pixels(images[:2], opened.manifest)
    many = np.tile(pixels, (served.LARGEST_REQUEST // 2, 1, 1, 1))
    answered = opened.call("pixels", many)["logits"]
    np.testing.assert_allclose(answered[-2:], answered[:2], atol=1e-5)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"max_batch_size": 1025}, "max_batch_size is 1025; give 1 or more, at most 1024"),
        ({"batch_timeout_micros": -1}, "batch_timeout_micros is -1; give 0 or more"),
        pytest.param(
            {"max_pixels": 1000},
            "max_pixels is 1000: none of the images that would be compared",
            marks=pytest.mark.slow,
        ),
    ],
)
def test_options_out_of_range_are_one_line_and_leave_nothing(options, says, micro_run, tmp_path):
    with pytest.raises(config.InputError, match=says):
        savedmodel.export(micro_run, tmp_path / "models", **options)
    assert list((tmp_path / "models").iterdir()) == []


_ASK = """
import resource, sys
import tensorflow as tf
loaded = tf.saved_model.load(sys.argv[1])
serve = loaded.signatures["serving_default"]
peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
ask = lambda path: serve(image_bytes=tf.constant([open(path, "rb").read()]))
ask(sys.argv[2])
before = peak()
try:
    ask(sys.argv[3])
except tf.errors.InvalidArgumentError as error:
    print(peak() - before, error)
"""


@pytest.mark.slow
def test_a_pixel_bomb_is_refused_before_it_is_decoded(exported, images, bomb, tmp_path):
    for name, content in (("good", images[0]), ("bomb", bomb)):
        (tmp_path / name).write_bytes(content)
    arguments = [exported, tmp_path / "good", tmp_path / "bomb"]
    found = subprocess.run(
        [sys.executable, "-c", _ASK, *map(str, arguments)], capture_output=True, text=True
    )
    memory, _, says = found.stdout.partition(" ")
    assert "too many pixels; at most 300000 are taken" in says, found.stderr
    assert "400000000" in says
    assert int(memory) < 200e6


def test_a_warm_up_request_for_every_signature_and_batch_size(exported, opened):
    file = exported / "assets.extra" / "tf_serving_warmup_requests"
    asked = []
    for record in tf.data.TFRecordDataset(str(file)):
        request = wire.PredictionLog.FromString(record.numpy()).predict_log.request
        signature = request.model_spec.signature_name
        (takes, sent), *_ = request.inputs.items()
        # TensorFlow's own reading of our message
        value = tf.make_ndarray(tensor_pb2.TensorProto.FromString(sent.SerializeToString()))
        assert takes in opened.manifest.signatures[signature].inputs
        opened.call(signature, value)
        asked.append((signature, len(value)))
    names = ("serving_default", "pixels", "features", "attention")
    assert sorted(asked) == sorted((name, size) for name in names for size in (1, 2, 4))


def test_nothing_in_it_must_be_compiled_or_is_python(opened):
    graph = opened.graph.graph_def
    kinds = {node.op for each in graph.library.function for node in each.node_def}
    assert {"BatchFunction", "ScaleAndTranslate", "DecodeJpeg", "Erf"} <= kinds
    assert not any("PyFunc" in kind for kind in kinds)


def _write(found, folder):
    """A SavedModel as it is written, without proof."""
    folder.mkdir()
    manifest = served.write(found, folder, served.Options(max_batch_size=2))
    _seal(folder, manifest)
    return folder


def _seal(folder, manifest):
    """Writes the manifest with the digest of what is there: only values can tell."""
    manifest = dataclasses.replace(manifest, digest=artefact.digest_of(folder))
    (folder / served.MANIFEST).write_text(manifest.to_json(), "utf-8")


def _faulty(found, answer):
    """The run with another answer."""
    other = inference.Inference(found.network, found.manifest)
    other.answer = answer
    return other


@pytest.mark.slow
def test_a_weight_scaled_is_refused(found, micro_run, tmp_path):
    other = inference.open_run(micro_run)
    kernel = other.network.blocks[1].mlp.fc1.kernel
    kernel.assign(1.3 * kernel)
    with pytest.raises(verify.ValuesError, match=r"does not answer as its run: logits within"):
        verify.verify(_write(other, tmp_path / "model"), found, micro_run)


def test_another_filter_is_refused_and_nothing_is_left(micro_run, tmp_path, monkeypatch):
    def bilinear(content, manifest, max_pixels):
        image = preprocess.decode(content)
        size = tf.shape(image)[:2]
        short = manifest.image_size / manifest.crop_fraction
        scaled = tf.cast(size, tf.float32) * short / tf.cast(tf.reduce_min(size), tf.float32)
        resized = tf.image.resize(image, tf.cast(scaled, tf.int32))
        side = manifest.image_size
        cropped = tf.image.resize_with_crop_or_pad(resized, side, side)
        return tf.cast(tf.round(cropped), tf.uint8)

    monkeypatch.setattr(image_bytes, "view", bilinear)  # the planted fault
    with pytest.raises(verify.PreprocessingError, match="it decodes or resizes otherwise"):
        savedmodel.export(micro_run, tmp_path / "models")
    assert list((tmp_path / "models").iterdir()) == []


@pytest.mark.slow
def test_operators_that_a_server_lacks_are_refused(found, micro_run, tmp_path):
    def by_python(image):
        answered = found.answer(image)
        logits = tf.numpy_function(lambda x: x, [answered["logits"]], tf.float32)
        return {**answered, "logits": tf.ensure_shape(logits, (None, 7))}

    with pytest.raises(verify.OperatorsError, match="no operator PyFunc"):
        verify.verify(_write(_faulty(found, by_python), tmp_path / "python"), found, micro_run)
    compiled = tf.function(found.answer, jit_compile=True)
    with pytest.raises(verify.OperatorsError, match="must be compiled by XLA"):
        verify.verify(_write(_faulty(found, compiled), tmp_path / "xla"), found, micro_run)


@pytest.fixture
def edited(exported, tmp_path):
    """Function (edit): a copy whose saved_model.pb a function has changed, sealed anew."""

    def edit(change):
        folder = tmp_path / "edited"
        shutil.copytree(exported, folder)
        path = folder / "saved_model.pb"
        whole = saved_model_pb2.SavedModel.FromString(path.read_bytes())
        change(whole.meta_graphs[0])
        path.write_bytes(whole.SerializeToString())
        _seal(folder, artefact.SavedModel(exported).manifest)
        return folder

    return edit


@pytest.mark.slow
def test_other_tokens_are_refused(found, micro_run, tmp_path):
    other = inference.Inference(found.network, found.manifest)
    other.features = lambda image: {k: -v for k, v in found.features(image).items()}
    with pytest.raises(verify.ValuesError, match="answers another cls"):
        verify.verify(_write(other, tmp_path / "model"), found, micro_run)


def test_an_output_renamed_is_refused(edited, found, micro_run):
    def rename(graph):
        outputs = graph.signature_def["pixels"].outputs
        outputs["logit"].CopyFrom(outputs["logits"])
        del outputs["logits"]

    with pytest.raises(verify.NamesError, match="outputs of pixels"):
        verify.verify(edited(rename), found, micro_run)


@pytest.mark.parametrize(
    ("kind", "error"), [("Tanh", verify.ValuesError), ("Errf", verify.LoadError)]
)
def test_a_broken_gelu_is_refused(kind, error, edited, found, micro_run):
    def break_gelu(graph):
        for function in graph.graph_def.library.function:
            for node in function.node_def:
                if node.op == "Erf":
                    node.op = kind

    with pytest.raises(error):
        verify.verify(edited(break_gelu), found, micro_run)


def test_a_damaged_file_is_refused(exported, found, micro_run, tmp_path):
    folder = tmp_path / "damaged"
    shutil.copytree(exported, folder)
    path = folder / "variables" / "variables.data-00000-of-00001"
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    with pytest.raises(verify.DamagedError, match="export it anew"):
        verify.verify(folder, found, micro_run)


def test_another_run_is_told(exported, found, micro_run, tmp_path):
    shutil.copytree(micro_run, tmp_path / "other")
    network = inference.open_run(micro_run).network
    network.head.bias.assign_add(keras.ops.ones_like(network.head.bias))
    network.save_weights(tmp_path / "other" / "network.weights.h5")
    other = inference.open_run(tmp_path / "other")
    with pytest.raises(verify.VerificationError, match="checkpoint: its weights_sha256 is"):
        verify.verify(exported, other, tmp_path / "other")


def test_the_commands_say_what_is_wrong_in_one_line(micro_run, command, tmp_path):
    half = tmp_path / "half"
    half.mkdir()
    (half / "config.json").write_text(json.dumps({"config": {}}))
    cases = [
        ((f"--run_dir={tmp_path / 'none'}", f"--output={tmp_path / 'm'}"), "is no run directory"),
        ((f"--run_dir={half}", f"--output={tmp_path / 'm'}"), "cannot be read"),
        ((f"--run_dir={micro_run}",), "no output; give --run_dir=DIR and --output=models/NAME"),
    ]
    for flags, says in cases:
        answer = command("export.savedmodel", *flags)
        assert answer.returncode == 1
        assert says in answer.stderr.splitlines()[-1]
        assert "Traceback" not in answer.stderr
    assert not (tmp_path / "m").exists()


@pytest.mark.slow
def test_the_next_version_has_the_next_number(exported, micro_run, command):
    output = exported.parent
    answer = command("export.savedmodel", f"--run_dir={micro_run}", f"--output={output}")
    assert answer.stdout == f"{output}/2\n", answer.stderr
    answer = command("export.verify", f"--run_dir={micro_run}", f"--artefact={output}")
    assert answer.stdout.startswith(f"{output}: logits within"), answer.stderr
    shutil.rmtree(output / "2")


def test_a_network_of_one_head_is_exported_and_a_teacher_is_not(digits_config, tmp_path):
    from deit_tf import checkpoint, rundir

    cases = {
        "plain": (
            "deit",
            {"image_size": 32, "patch_size": 16, "width": 16, "heads": 2, "depth": 1},
        ),
        "regnet": ("regnety_tiny", {"depth": 2, "initial_width": 16.0, "group_width": 16}),
    }
    for name, (model, changes) in cases.items():
        facts = config.network(model, **changes)
        whole = dataclasses.replace(digits_config(), model=model, network=facts)
        folder = tmp_path / name
        folder.mkdir()
        labels = [str(i) for i in range(facts.num_classes)]
        rundir.begin(folder, whole, {}, labels, labels)
        checkpoint.build_network(facts).save_weights(folder / rundir.WEIGHTS)
        if name == "regnet":
            with pytest.raises(config.InputError, match="holds a regnety_tiny, a teacher"):
                savedmodel.export(folder, tmp_path / "models")
            continue
        path, _ = savedmodel.export(folder, tmp_path / "models" / name, max_batch_size=2)
        told = artefact.SavedModel(path)
        assert told.manifest.fusion == ""
        assert set(told.signatures()["features"].outputs) == {"cls"}
