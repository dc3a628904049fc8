"""An exported file answers for images, on the device that was asked for or not at all."""

import concurrent.futures
import dataclasses
import importlib.util
import pathlib
import subprocess
import sys

import numpy as np
import pytest
import sklearn.datasets
import tensorflow as tf

from deit_tf.manifest import InputError
from serving import image, onnx_session
from serving.onnx_session import OnnxClassifier, OnnxSession, read_manifest

PHOTOS = sorted((pathlib.Path(sklearn.datasets.__file__).parent / "images").glob("*.jpg"))
HAS_GPU = bool(tf.config.list_physical_devices("GPU"))
HAS_OPENVINO = importlib.util.find_spec("openvino") is not None


@pytest.fixture(scope="module")
def path(artefacts):
    return artefacts("micro", "onnx")


@pytest.fixture(scope="module")
def classifier(path):
    return OnnxClassifier(path, "cpu", batch_size=4)


@pytest.fixture(scope="module")
def pixels():
    return np.random.RandomState(0).randint(0, 256, (11, 64, 64, 3)).astype(np.uint8)


def _nearly(found, expected):
    """Whether predictions are the same to a float's last digits."""
    for one, other in zip(found, expected, strict=True):
        assert one.class_ids == other.class_ids
        np.testing.assert_allclose(one.scores, other.scores, atol=1e-6)


def test_the_likeliest_classes_by_name(classifier, path, pixels):
    answered = OnnxSession(path).run(pixels)["probabilities"]
    found = classifier.predict(pixels, top_k=3)
    labels = read_manifest(path).labels
    for one, row in zip(found, answered, strict=True):
        assert one.class_ids == tuple(np.argsort(-row)[:3])
        assert one.class_names == tuple(labels[i] for i in one.class_ids)
        np.testing.assert_allclose(one.scores, np.sort(row)[:-4:-1], atol=1e-6)


def test_images_of_any_kind_are_answered_alike(classifier, pixels):
    content = PHOTOS[0].read_bytes()
    (expected,) = classifier.predict(content)
    decoded = np.asarray(image.decode(content))
    seen = image.view(content, classifier.manifest)
    for one in (PHOTOS[0], str(PHOTOS[0]), decoded, seen, [content], [seen], decoded[None]):
        _nearly(classifier.predict(one), [expected])
    _nearly(classifier.predict(list(pixels)), classifier.predict(pixels))
    mixed = [pixels[0], PHOTOS[0], pixels[1], content]
    _nearly(classifier.predict(mixed), [classifier.predict(one)[0] for one in mixed])
    assert classifier.predict([]) == []
    assert classifier.predict(pixels[:0]) == []


def test_a_bad_image_is_told_of_in_its_place(classifier, pixels):
    content = PHOTOS[0].read_bytes()
    images = [pixels[0], content[:20_000], b"", *pixels[1:6], "none.jpg", np.zeros((3, 3)), content]
    found = classifier.predict(images)
    errors = {i: one.error for i, one in enumerate(found) if one.error}
    assert errors == {
        1: errors[1],
        2: "it is neither JPEG, PNG nor WebP, or its header is damaged",
        8: "cannot be read: No such file or directory",
        9: "float64 [3, 3] is no image; give uint8 [h, w, 3], 0–255",
    }
    assert errors[1].startswith("it is damaged: image file is truncated")
    good = [one for one in found if not one.error]
    _nearly(good, [*classifier.predict(pixels[:6]), *classifier.predict(content)])
    assert [found[i].class_ids for i in errors] == [()] * 4


def test_filled_up_batches_on_tensors_of_their_own_answer_the_same(path, pixels):
    """As a CUDA graph has them; here in the CPU's memory, from several threads."""
    expected = OnnxSession(path).run(pixels)
    session = OnnxSession(path, batch=4)
    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        for size in (1, 3, 4):
            starts = range(0, len(pixels) - size, size)
            answers = pool.map(lambda i, n=size: session.run(pixels[i : i + n]), starts)
            for start, answered in zip(starts, answers, strict=True):
                for name, value in answered.items():
                    wanted = expected[name][start : start + size]
                    np.testing.assert_allclose(value, wanted, atol=1e-5)


def test_pixels_of_another_type_or_too_many_are_refused(path):
    for session in (OnnxSession(path), OnnxSession(path, batch=4)):
        with pytest.raises(InputError, match="pixels are float32; give uint8"):
            session.run(np.zeros((2, 64, 64, 3), np.float32))
    with pytest.raises(InputError, match="5 images are given; at most 4 at once"):
        session.run(np.zeros((5, 64, 64, 3), np.uint8))


def test_tensorrt_keeps_engines_of_other_weights_apart(path):
    manifest = read_manifest(path)
    other = dataclasses.replace(manifest, digest="0123456789abcdef" * 4)
    kept = [
        onnx_session._for_tensorrt(path, each, onnx_session.Options())["trt_engine_cache_path"]
        for each in (manifest, other)
    ]
    assert kept[1] == f"{path}.tensorrt-0123456789abcdef"
    assert kept[0] != kept[1]


def test_a_device_that_is_not_there_is_an_error(path, capfd):
    if HAS_GPU:
        assert OnnxClassifier(path, "cuda").device == OnnxClassifier(path).device == "cuda"
        return
    with pytest.raises(InputError, match="device is cuda, but ONNX Runtime has only CPUExec"):
        OnnxClassifier(path, "cuda")
    with pytest.raises(InputError, match="does not run on tensorrt"):
        OnnxClassifier(path, "tensorrt")
    assert OnnxClassifier(path).device == "cpu"
    assert capfd.readouterr() == ("", "")  # what ONNX Runtime says of it is in the error


@pytest.mark.skipif(HAS_OPENVINO, reason="openvino is here")
def test_openvino_is_named_where_it_lacks(path):
    with pytest.raises(InputError, match="pip install openvino"):
        OnnxClassifier(path, "openvino")


@pytest.mark.slow
@pytest.mark.skipif(not HAS_OPENVINO, reason="openvino is optional")
@pytest.mark.parametrize("size", ["micro", "tiny"])
def test_openvino_answers_as_onnx_runtime(size, artefacts):
    path = artefacts(size, "onnx")
    side = read_manifest(path).image_size
    noise = np.random.RandomState(0).randint(0, 256, (9, side, side, 3)).astype(np.uint8)
    seen = [image.view(photo, read_manifest(path)) for photo in PHOTOS]
    images = np.concatenate([noise, seen])
    expected = OnnxSession(path).run(images)["logits"]
    for precision, allowed in (("float32", 1e-5), (None, 5e-2)):
        classifier = OnnxClassifier(path, "openvino", precision=precision)
        found = classifier.run(images)["logits"]
        assert np.abs(found - expected).max() <= allowed * np.abs(expected).max()
    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        once = classifier.predict(images)
        for again in pool.map(classifier.predict, [images] * 4):
            _nearly(again, once)


def test_what_is_asked_wrongly_is_said(path, classifier, pixels, tmp_path):
    (tmp_path / "text.onnx").write_text("no graph")
    for given, says in (
        (("none.onnx",), "none.onnx is no ONNX file"),
        ((tmp_path / "text.onnx",), "text.onnx does not run on cpu"),
        ((path, "gpu"), "device is 'gpu'; choose one of auto, cuda, tensorrt, cpu, openvino"),
    ):
        with pytest.raises(InputError, match=says):
            OnnxClassifier(*given)
    for options, says in (
        ({"batch_size": 0}, "batch_size is 0; give at least 1"),
        ({"precision": "fp16"}, "choose one of float32, bfloat16"),
        ({"precision": "float32"}, "for openvino alone"),
        ({"cuda_graph": True}, "cuda_graph and device cpu do not go together"),
    ):
        with pytest.raises(InputError, match=says):
            OnnxClassifier(path, "cpu", **options)
    with pytest.raises(InputError, match="top_k is 0; give at least 1"):
        classifier.predict(pixels, top_k=0)
    for wrong in (pixels.astype(np.float32), pixels[..., 0, 0]):
        with pytest.raises(InputError, match="is no image; give uint8"):
            classifier.predict(wrong)


def test_a_file_without_manifest_is_told(path, tmp_path):
    import onnx

    model = onnx.load(path)
    del model.metadata_props[:]
    onnx.save(model, tmp_path / "bare.onnx")
    with pytest.raises(InputError, match=r"no manifest; export it by export\.onnxmodel"):
        OnnxClassifier(tmp_path / "bare.onnx", "cpu")


def test_nothing_of_serving_loads_tensorflow():
    script = "import sys, serving.predict, serving.client, serving.onnx_session, serving.wire"
    loaded = subprocess.run(
        [sys.executable, "-c", f"{script}; print([*sys.modules])"],
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    for heavy in ("tensorflow", "keras", "export", "absl", "openvino"):
        assert f"'{heavy}'" not in loaded
