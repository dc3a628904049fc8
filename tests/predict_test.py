"""`python -m serving.predict` as a person uses it."""

import contextlib
import fcntl
import json
import os
import pathlib
import pty
import shutil
import struct
import subprocess
import sys
import termios
import venv

import pytest
import sklearn.datasets

from serving import predict

ROOT = pathlib.Path(__file__).parent.parent
PHOTOS = sorted((pathlib.Path(sklearn.datasets.__file__).parent / "images").glob("*.jpg"))


@pytest.fixture(scope="module")
def model(artefacts):
    return f"--model={artefacts('micro', 'onnx')}"


@pytest.fixture
def folder(tmp_path):
    """Two photographs at different depths, a bad one, and what is no image."""
    (tmp_path / "deep" / "er").mkdir(parents=True)
    shutil.copy(PHOTOS[0], tmp_path / "china.JPG")
    shutil.copy(PHOTOS[1], tmp_path / "deep" / "er" / "flower.jpg")
    (tmp_path / "deep" / "bad.png").write_bytes(b"no png")
    (tmp_path / "notes.txt").write_text("no image")
    return tmp_path


def test_a_table_that_goes_on_after_a_bad_image(command, model, folder):
    answer = command("serving.predict", model, "--device=cpu", "--top_k=2", folder)
    assert answer.returncode == 1
    assert answer.stderr == ""
    rows = answer.stdout.splitlines()
    assert [row.split()[0] for row in rows] == [
        f"{folder}/{name}" for name in ("china.JPG", "deep/bad.png", "deep/er/flower.jpg")
    ]
    assert [row.split()[1] for row in rows] == ["bee", "error:", "Käfer"]
    assert rows[2].endswith("Käfer 30.3%  bee 26.1%")
    assert rows[1].endswith("it is neither JPEG, PNG nor WebP, or its header is damaged")
    words = zip(rows, ("bee", "error", "Käfer"), strict=True)
    assert len({row.index(word) for row, word in words}) == 1


def test_lines_of_json(command, model, folder):
    answer = command("serving.predict", model, "--device=cpu", "--top_k=2", "--json", folder)
    assert answer.returncode == 1
    first, bad, last = map(json.loads, answer.stdout.splitlines())
    assert first["image"] == f"{folder}/china.JPG"
    assert [one["id"] for one in first["classes"]] == [0, 1]
    assert last["classes"][0]["name"] == "Käfer"
    assert last["classes"][0]["score"] == pytest.approx(0.303, abs=1e-3)
    assert set(bad) == {"image", "error"}


def test_what_is_wrong_is_one_line(command, model, folder, tmp_path):
    (tmp_path / "empty").mkdir()
    cases = [
        (("--top_k=1",), 2, "the following arguments are required: IMAGE|DIR"),
        ((folder,), 2, "--backend=onnx needs --model"),
        (("--backend=rest", model, folder), 2, "--backend=rest needs --target"),
        ((model, "--target=x:1", folder), 2, "--target is not for --backend=onnx"),
        ((model, "--tls", "--", folder), 2, "--tls is for --backend=grpc"),
        ((model, "--top_k=0", folder), 2, "--top_k is 0; give at least 1"),
        ((model, "--frob", folder), 2, "unrecognized arguments: --frob"),
        (("--model=none.onnx", folder), 1, "none.onnx is no ONNX file"),
        ((model, "--device=gpu", folder), 1, "choose one of auto, cuda"),
        ((model, tmp_path / "empty"), 1, "has no images in it; they end in .jpg"),
        (("--backend=grpc", "--target=127.0.0.1:9", folder), 1, "UNAVAILABLE"),
    ]
    for flags, code, says in cases:
        answer = command("serving.predict", *flags)
        assert answer.returncode == code, answer.stderr
        assert says in answer.stderr
        assert answer.stderr.count("\n") == 1
        assert answer.stdout == ""
    answer = command("serving.predict", "--model=none.onnx", "--debug", folder)
    assert "Traceback" in answer.stderr


def test_images_are_found_to_any_depth(folder):
    names = [path.name for path in predict.found([folder, folder / "notes.txt"])]
    assert names == ["china.JPG", "bad.png", "flower.jpg", "notes.txt"]


def test_a_terminal_sees_progress_and_a_file_does_not(model, folder):
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 80, 0, 0))
    arguments = [sys.executable, "-m", "serving.predict", model, "--device=cpu", str(folder)]
    answer = subprocess.run(arguments, cwd=ROOT, stdout=subprocess.PIPE, stderr=theirs, text=True)
    os.close(theirs)
    assert len(answer.stdout.splitlines()) == 3
    seen = b""
    with contextlib.suppress(OSError):  # EIO, when all is read; a read answers a part
        while part := os.read(ours, 1 << 16):
            seen += part
    os.close(ours)
    assert b"3/3" in seen


def test_whoever_reads_may_leave(model, folder):
    line = f"{sys.executable} -m serving.predict {model} --device=cpu {folder} | head -1"
    answer = subprocess.run(line, shell=True, cwd=ROOT, capture_output=True, text=True)
    assert answer.stdout.count("\n") == 1
    assert answer.stderr == ""


@pytest.mark.slow
def test_where_training_is_not_installed(artefacts, tmp_path):
    """A bare environment with serving/requirements.txt alone predicts."""
    venv.create(tmp_path / "venv", with_pip=True)
    python = tmp_path / "venv" / "bin" / "python"
    shutil.copytree(ROOT, tmp_path / "source", ignore=shutil.ignore_patterns(".*", "runs", "data"))
    install = [python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    requirements = ROOT / "serving" / "requirements.txt"
    subprocess.run([*install, "-r", requirements], check=True)
    subprocess.run([*install, "--no-deps", tmp_path / "source"], check=True)
    listed = subprocess.run(
        [python, "-m", "pip", "list", "--format=json"], capture_output=True, text=True, check=True
    )
    assert not {each["name"] for each in json.loads(listed.stdout)} & {"tensorflow", "keras"}
    onnx = artefacts("micro", "onnx")
    answer = subprocess.run(
        [python, "-m", "serving.predict", f"--model={onnx}", "--json", *PHOTOS],
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert (answer.returncode, answer.stderr) == (0, "")
    classes = [json.loads(line)["classes"] for line in answer.stdout.splitlines()]
    assert [each[0]["name"] for each in classes] == ["bee", "Käfer"]
    from serving import onnx_session

    expected = onnx_session.OnnxClassifier(onnx, "cpu").predict(PHOTOS)
    for found, wanted in zip(classes, expected, strict=True):
        assert [one["id"] for one in found] == list(wanted.class_ids)
        assert [one["score"] for one in found] == pytest.approx(wanted.scores, abs=1e-4)
