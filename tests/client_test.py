"""Clients of TF Serving answer as the network, and tell of bad images and of refusals.

Against the stand-in of tests/standin.py; what they do where a server misbehaves: server_test.py.
"""

import concurrent.futures
import json
import pathlib
import subprocess
import venv

import numpy as np
import pytest
import sklearn.datasets

from deit_tf import inference, preprocess
from deit_tf.manifest import InputError
from serving import image
from serving.client import GrpcClient, RestClient
from serving.onnx_session import OnnxClassifier
from serving.server import ServerError

PHOTOS = sorted((pathlib.Path(sklearn.datasets.__file__).parent / "images").glob("*.jpg"))
CONTENTS = [path.read_bytes() for path in PHOTOS]
KINDS = {"grpc": GrpcClient, "rest": RestClient}


@pytest.fixture(scope="module")
def connect(standin):
    """Function (kind, size, **facts): a client of the stand-in."""
    clients = []

    def make(kind, size="micro", **facts):
        target = getattr(standin(size), kind)
        clients.append(KINDS[kind](target, **{"name": size, "attempts": 1, **facts}))
        return clients[-1]

    yield make
    for client in clients:
        client.close()


@pytest.fixture(params=KINDS)
def kind(request):
    return request.param


@pytest.fixture
def client(connect, kind):
    return connect(kind)


def _centred(probabilities):
    logits = np.log(probabilities)
    return logits - logits.mean(-1, keepdims=True)


def _check_agreement(answered, expected):
    """Raises where probabilities [B, K] are not those of the logits [B, K], from JPEG."""
    wanted = expected - expected.mean(-1, keepdims=True)
    assert np.abs(_centred(answered) - wanted).max() <= 5e-3 * np.abs(wanted).max()
    np.testing.assert_array_equal(np.argsort(-answered)[:, :5], np.argsort(-expected)[:, :5])


@pytest.mark.parametrize("size", ["micro", pytest.param("tiny", marks=pytest.mark.slow)])
def test_keras_onnx_grpc_and_rest_agree(size, artefacts, connect, monkeypatch):
    found = inference.open_run(artefacts(size, "run"))
    facts = (found.manifest.image_size, found.manifest.crop_fraction)
    seen = [preprocess.center_crop(preprocess.decode(one), *facts) for one in CONTENTS]
    pixels = np.stack(seen).astype(np.uint8)
    expected = np.asarray(found.answer(pixels)["logits"])
    onnx = OnnxClassifier(artefacts(size, "onnx"), "cpu")
    clients = {kind: connect(kind, size) for kind in KINDS}
    top = [tuple(np.argsort(-row)[:5].tolist()) for row in expected]
    for client in (onnx, *clients.values()):
        assert [one.class_ids for one in client.predict(PHOTOS)] == top
        assert [one.class_ids for one in client.predict(pixels)] == top
    for client in clients.values():
        answered = client.call("serving_default", CONTENTS)["probabilities"]
        _check_agreement(answered, expected)
        logits = client.call("pixels", pixels)["logits"]
        assert np.abs(logits - expected).max() <= 1e-5 * np.abs(expected).max()
    logits = onnx.run(pixels)["logits"]
    assert np.abs(logits - expected).max() <= 1e-5 * np.abs(expected).max()

    def of_onnx():
        views = np.stack([image.view(one, found.manifest) for one in PHOTOS])
        return onnx.run(views)["probabilities"]

    _check_agreement(of_onnx(), expected)

    def bilinear(picture, size, crop_fraction):
        import tensorflow as tf

        short = int(size / crop_fraction)
        scaled = [side * short // min(picture.size) for side in picture.size]
        resized = tf.image.resize(np.asarray(picture), scaled[::-1])  # without antialiasing
        return tf.image.resize_with_crop_or_pad(resized, size, size).numpy().astype(np.uint8)

    monkeypatch.setattr(image, "center_crop", bilinear)  # the planted fault
    with pytest.raises(AssertionError):
        _check_agreement(of_onnx(), expected)
    views = np.stack([image.view(one, found.manifest) for one in PHOTOS])
    for client in clients.values():
        with pytest.raises(AssertionError):
            _check_agreement(client.call("pixels", views)["probabilities"], expected)


def test_names_and_scores_are_the_servers(client):
    answered = client.call("serving_default", CONTENTS)
    for i, one in enumerate(client.predict(PHOTOS, top_k=3)):
        assert one.class_names == tuple(answered["class_names"][i, :3])
        assert one.scores == tuple(answered["scores"][i, :3].tolist())
        assert one.class_ids == tuple(np.argsort(-answered["probabilities"][i])[:3])
    assert "Käfer" in client.predict(PHOTOS[1])[0].class_names


def test_bad_images_are_told_of_and_the_others_are_answered(client):
    """Though the server refuses a whole request for one of them."""
    rng = np.random.RandomState(0)
    pixels = rng.randint(0, 256, (64, 64, 3)).astype(np.uint8)
    images = [PHOTOS[0], CONTENTS[1][:20_000], b"", pixels, "none.jpg", pixels[:40], b"hello"]
    images += [CONTENTS[1], np.zeros((64, 64, 3))]
    found = client.predict(images)
    says = {
        1: "Invalid JPEG data",
        2: "neither JPEG, PNG nor WebP",
        4: "cannot be read: No such file",
        6: "neither JPEG, PNG nor WebP",
        8: "float64 [64, 64, 3] is no image",
    }
    for i, one in enumerate(found):
        assert (says[i] in one.error and "\n" not in one.error) if i in says else not one.error
        assert "{{" not in one.error
    assert [found[0], found[7]] == [client.predict(PHOTOS[0])[0], client.predict(PHOTOS[1])[0]]


def test_as_onnx_from_arrays(client, artefacts):
    onnx = OnnxClassifier(artefacts("micro", "onnx"), "cpu")
    rng = np.random.RandomState(0)
    pixels = rng.randint(0, 256, (5, 64, 64, 3)).astype(np.uint8)
    for images in (pixels, pixels[0], list(pixels), [image.decode(one) for one in CONTENTS]):
        images = [np.asarray(one) for one in images] if isinstance(images, list) else images
        for one, other in zip(client.predict(images), onnx.predict(images), strict=True):
            assert one.class_ids == other.class_ids
            np.testing.assert_allclose(one.scores, other.scores, atol=2e-3)


def test_many_images_are_several_requests(connect, kind):
    pixels = np.random.RandomState(0).randint(0, 256, (9, 64, 64, 3)).astype(np.uint8)
    whole, parts = (connect(kind, batch_size=n).predict(pixels) for n in (32, 2))
    assert [one.class_ids for one in whole] == [one.class_ids for one in parts]
    assert connect(kind).predict([]) == []


def test_status_and_signatures(connect, client, kind):
    assert client.status() == [(1, "AVAILABLE", "")]
    told = client.signatures()
    assert set(told) == {"serving_default", "pixels", "features", "attention"}
    assert told["pixels"].inputs["image"].shape == ("batch", 64, 64, 3)
    assert told["serving_default"].outputs["class_names"].dtype == "string"
    assert told == connect({"grpc": "rest", "rest": "grpc"}[kind]).signatures()
    for facts in ({"version": 1}, {"label": "stable"}):
        assert connect(kind, **facts).predict(PHOTOS)[1].class_names[0] == "Käfer"
    client.wait_until_ready(5)


def test_other_signatures(client, artefacts):
    found = inference.open_run(artefacts("micro", "run"))
    facts = (found.manifest.image_size, found.manifest.crop_fraction)
    seen = preprocess.center_crop(preprocess.decode(CONTENTS[0]), *facts).numpy()[None]
    answered = client.call("attention", CONTENTS[:1])
    for name, value in found.attention(seen.astype(np.uint8)).items():
        np.testing.assert_allclose(answered[name], value, atol=1e-5)


def test_what_the_server_refuses_is_one_line_with_its_words(connect, client, kind):
    cases = [
        (lambda: connect(kind, name="other").predict(PHOTOS), "NOT_FOUND: Servable not found for"),
        (lambda: connect(kind, version=7).predict(PHOTOS), "Specific(micro, 7)"),
        (lambda: connect(kind, label="new").predict(PHOTOS), "servable version label: new"),
        (lambda: connect(kind, label="new").wait_until_ready(0.5), "version label: new"),
        (lambda: client.call("nope", CONTENTS), 'Serving signature key "nope" not found.'),
        (lambda: client.call("pixels", np.zeros((1, 64, 64), np.uint8)), "shape (None, 64, 64, 3)"),
        (lambda: client.call("pixels", np.zeros((1, 64, 64, 3), np.float32)), "uint8"),
        (lambda: client.call("pixels", CONTENTS), "input size does not match signature: 1!=1"),
    ]
    for ask, says in cases:
        with pytest.raises(ServerError) as error:
            ask()
        assert says in str(error.value)
        assert "\n" not in str(error.value)
        assert client._target in str(error.value)
    for facts, says in (
        ({"version": 1, "label": "stable"}, "version and label are both given"),
        ({"target": "ftp://there"}, "target is 'ftp://there'"),
        ({"target": "there:abc"}, "target is 'there:abc'"),
        ({"timeout": 0}, "timeout is out of its range"),
        ({"batch_size": 0}, "batch_size is out of its range"),
    ):
        if "target" not in facts or kind == "rest":
            with pytest.raises(InputError, match=says):
                KINDS[kind](**{"target": "127.0.0.1:1", **facts})
    with pytest.raises(InputError, match="names 5 classes; ask for no more, or export with"):
        client.predict(PHOTOS, top_k=6)
    with pytest.raises(InputError, match="top_k is 0"):
        client.predict(PHOTOS, top_k=0)


def test_the_command_answers_alike_by_every_backend(command, artefacts, standin):
    targets = standin("micro")
    answers = []
    for flags in (
        (f"--model={artefacts('micro', 'onnx')}", "--device=cpu"),
        ("--backend=grpc", f"--target={targets.grpc}", "--name=micro", "--label=stable"),
        ("--backend=rest", f"--target={targets.rest}", "--name=micro", "--version=1"),
    ):
        answer = command("serving.predict", *flags, "--json", "--batch_size=1", *PHOTOS)
        assert (answer.returncode, answer.stderr) == (0, "")
        answers.append([json.loads(line) for line in answer.stdout.splitlines()])
    for rows in zip(*answers, strict=True):
        assert len({row["image"] for row in rows}) == 1
        named = [[(one["id"], one["name"]) for one in row["classes"]] for row in rows]
        assert named[0] == named[1] == named[2]
        scores = np.array([[one["score"] for one in row["classes"]] for row in rows])
        assert np.ptp(scores, axis=0).max() <= 2e-3


def test_one_client_serves_many_threads(client):
    expected = client.predict(PHOTOS)
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        answers = pool.map(lambda i: client.predict(PHOTOS[i % 2]), range(40))
        for i, found in enumerate(answers):
            np.testing.assert_allclose(found[0].scores, expected[i % 2].scores, atol=1e-5)
    assert abs(expected[0].scores[0] - expected[1].scores[0]) > 1e-3


_OTHER = """
import json, sys
import numpy as np
from ovmsclient import make_grpc_client, make_http_client
grpc, rest, *photos = sys.argv[1:]
images = [open(photo, "rb").read() for photo in photos]
for client in (make_grpc_client(grpc), make_http_client(rest)):
    status = client.get_model_status("micro", 1)  # it takes 0 for the newest, TF Serving does not
    told = make_grpc_client(grpc).get_model_metadata("micro", 1)  # by REST it speaks OpenVINO's
    answered = client.predict({"image_bytes": images}, "micro", 1)
    print(json.dumps([str(status), sorted(told["inputs"]), answered["probabilities"].tolist()]))
"""


@pytest.mark.slow
def test_a_client_of_others_is_answered_alike(standin, connect, tmp_path):
    """What says that the stand-in is faithful: ovmsclient knows TF Serving, and not us."""
    venv.create(tmp_path / "venv", with_pip=True)
    python = tmp_path / "venv" / "bin" / "python"
    install = [python, "-m", "pip", "install", "--quiet", "ovmsclient==2023.1"]
    if subprocess.run(install, capture_output=True, check=False).returncode:
        pytest.skip("ovmsclient cannot be installed here")
    targets = standin("micro")
    answered = subprocess.run(
        [python, "-c", _OTHER, targets.grpc, targets.rest, *PHOTOS], capture_output=True, text=True
    )
    lines = answered.stdout.splitlines()
    assert len(lines) == 2, answered.stderr
    expected = connect("grpc").call("serving_default", CONTENTS)["probabilities"]
    for status, inputs, probabilities in map(json.loads, lines):
        assert "AVAILABLE" in status
        assert inputs == ["image_bytes"]
        np.testing.assert_allclose(probabilities, expected, atol=1e-6)
