"""The page of the demo: what it draws, and what a person sees in a browser."""

import base64
import importlib.util
import io
import json
import os
import pathlib
import re
import shutil
import socket
import subprocess
import sys
import threading

import numpy as np
import PIL.Image
import pytest

from serving import demo, image, page
from serving.onnx_session import OnnxClassifier
from serving.prediction import Prediction

ROOT = pathlib.Path(__file__).parent.parent
FLAGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
GOOD = Prediction((4, 1, 0), ("Käfer", "<b>cat</b>", "bee"), (0.75, 0.2496, 0.0004))


@pytest.fixture
def seen():
    return np.random.RandomState(0).randint(0, 256, (48, 48, 3)).astype(np.uint8)


def _drawn(html):
    """The pictures in HTML, as arrays, by their names."""
    found = re.findall(r'<img src="data:image/png;base64,([^"]+)" alt="([^"]+)"', html)
    return {
        name: np.asarray(PIL.Image.open(io.BytesIO(base64.b64decode(text)))) for text, name in found
    }


def test_bars_are_as_long_as_classes_are_likely():
    html = page.bars(GOOD)
    assert re.findall(r"width:([\d.]+)%", html) == ["75.00", "24.96", "0.04"]
    assert re.findall(r'deit-score">([^<]+)<', html) == ["75.0%", "25.0%", "0.0%"]
    names = re.findall(r'deit-name">(.*?)</span>', html)
    assert names == ["Käfer", "&lt;b&gt;cat&lt;/b&gt;", "bee"]


def test_heat_is_where_the_patch_is():
    attention = np.full((4, 4), 0.01, np.float32)
    attention[1, 2] = 0.3
    found = page.heat(attention)
    assert found.shape == (page.SIDE, page.SIDE)
    assert found.min() == 0
    assert 0.99 < found.max() <= 1
    centres = found[page.SIDE // 8 :: page.SIDE // 4, page.SIDE // 8 :: page.SIDE // 4]
    assert np.unravel_index(centres.argmax(), centres.shape) == (1, 2)
    others = np.delete(centres.ravel(), 4 + 2)
    assert centres[1, 2] > 0.8
    assert others.max() < 0.1


def test_a_map_that_is_the_same_everywhere_is_cold():
    np.testing.assert_array_equal(page.heat(np.full((3, 3), 0.2, np.float32)), 0)


def test_the_picture_shines_through_the_heat(seen):
    attention = np.float32([[0, 0, 1, 1]] * 4)
    found = page.overlay(seen, attention).astype(float)
    grey = np.asarray(PIL.Image.fromarray(page.enlarged(seen)).convert("L"), float)[..., None]
    for row, column, color in ((9, -1, (252, 255, 164)), (-1, 9, (0, 0, 4))):  # most, least
        expected = 0.65 * np.array(color) + 0.35 * grey[row, column]
        np.testing.assert_allclose(found[row, column], expected, atol=0.51)


def test_a_page_shows_the_picture_and_a_map_a_token(seen):
    maps = {token: np.random.RandomState(i).rand(3, 3) for i, token in enumerate(page.CAPTIONS)}
    html = page.render(page.Answer(GOOD, seen, maps, "no maps"))
    drawn = _drawn(html)
    assert list(drawn) == ["What the network sees", "Class token", "Distillation token"]
    np.testing.assert_array_equal(drawn["What the network sees"], page.enlarged(seen))
    np.testing.assert_array_equal(drawn["Class token"], page.overlay(seen, maps["cls"]))
    np.testing.assert_array_equal(drawn["Distillation token"], page.overlay(seen, maps["dist"]))
    assert html.startswith(page.bars(GOOD))
    assert "no maps" not in html


def test_without_maps_the_page_says_why(seen):
    html = page.render(page.Answer(GOOD, seen, note="ask <others>"))
    assert list(_drawn(html)) == ["What the network sees"]
    assert "ask &lt;others&gt;" in html
    assert _drawn(page.render(page.Answer(GOOD))) == {}


def test_what_is_wrong_stands_alone_and_is_no_html():
    html = page.render(page.Answer(Prediction(error="<script> is no image")))
    assert html == '<p class="deit-error" role="alert">&lt;script&gt; is no image</p>'


def test_examples_are_photographs_or_a_folders_images(tmp_path):
    assert [path.name for path in demo.examples(None)] == ["china.jpg", "flower.jpg"]
    with pytest.raises(demo.InputError, match=r"has no images; give a folder of \.jpg"):
        demo.examples(tmp_path)
    for name in ("b.PNG", "a.jpg", "notes.txt"):
        (tmp_path / name).touch()
    assert [path.name for path in demo.examples(tmp_path)] == ["a.jpg", "b.PNG"]


def test_the_command_says_what_is_wrong_in_one_line(command, tmp_path):
    answer = command("serving.demo", f"--model={tmp_path / 'none.onnx'}")
    assert (answer.returncode, answer.stdout) == (1, "")
    assert answer.stderr == f"error: {tmp_path / 'none.onnx'} is no ONNX file\n"


@pytest.fixture(scope="module")
def exported(micro_run, tmp_path_factory):
    """Function (with_attention): an ONNX file."""
    from export import onnxmodel

    folder, files = tmp_path_factory.mktemp("onnx"), {}

    def export(with_attention):
        if with_attention not in files:
            files[with_attention] = folder / f"{with_attention}.onnx"
            options = onnxmodel.Options(with_attention=with_attention)
            onnxmodel.export(micro_run, files[with_attention], options)
        return files[with_attention]

    return export


@pytest.fixture
def photographs():
    return demo.examples(None)


def _rows(classifier, path):
    """What the bars must say."""
    (named,) = classifier.predict([path])
    return [
        (name, f"{100 * score:.1f}%")
        for name, score in zip(named.class_names, named.scores, strict=True)
    ]


@pytest.mark.slow
def test_a_server_says_what_the_file_does(exported, micro_run, photographs, tmp_path):
    """TF Serving's stand-in, by gRPC and by REST, with the manifest and without."""
    from export import savedmodel

    folder, _ = savedmodel.export(micro_run, tmp_path / "deit", with_attention=True)
    manifest = folder / "assets.extra" / "manifest.json"
    local = demo.Local(exported(True))
    arguments = [sys.executable, ROOT / "tests" / "standin.py", f"--model={folder}"]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with subprocess.Popen(arguments, **pipes, text=True) as server:
        ports = json.loads(server.stdout.readline())
        for target in (f"http://127.0.0.1:{ports['rest']}", f"127.0.0.1:{ports['grpc']}"):
            remote = demo.Remote(target, "stable", manifest)
            for path in photographs:
                found, expected = remote.answer(path), local.answer(path)
                assert found.prediction.class_names == expected.prediction.class_names
                np.testing.assert_allclose(
                    found.prediction.scores, expected.prediction.scores, atol=5e-3
                )
                np.testing.assert_array_equal(found.seen, expected.seen)
                assert list(found.maps) == list(expected.maps) == ["cls", "dist"]
                for token, expected_map in expected.maps.items():
                    np.testing.assert_allclose(found.maps[token], expected_map, atol=5e-3)
            remote.client.close()
            blind = demo.Remote(target, "stable")
            answer = blind.answer(photographs[0])
            assert (answer.seen, answer.maps) == (None, {})
            assert "--manifest=" in answer.note
            blind.client.close()
        (tmp_path / "half.jpg").write_bytes(photographs[0].read_bytes()[:20_000])
        remote = demo.Remote(target)
        says = demo.shown(remote, tmp_path / "half.jpg")
        assert says.startswith('<p class="deit-error"')
        assert "Invalid JPEG data" in says
        remote.client.close()
        server.stdin.close()
    with pytest.raises(demo.InputError, match="UNAVAILABLE"):
        demo.Remote(target)


@pytest.mark.slow
def test_without_gradio_the_command_says_what_to_install(exported):
    script = "import sys; sys.modules['gradio'] = None; from serving import demo;"
    script += " sys.exit(demo.main(sys.argv[1:]))"
    answer = subprocess.run(
        [sys.executable, "-c", script, f"--model={exported(True)}"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert answer.returncode == 1
    assert answer.stderr == "error: Gradio is missing; pip install -r requirements-demo.txt\n"


@pytest.fixture
def browser():
    """A headless Chromium with nothing in it."""
    for name in ("gradio", "playwright"):
        if not importlib.util.find_spec(name):
            pytest.skip(f"{name} is not installed: pip install -r requirements-demo.txt playwright")
    chromium = shutil.which("chromium")
    if not chromium:
        pytest.skip("chromium is not installed: apt install chromium")
    from playwright import sync_api

    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=FLAGS)
        yield browser
        browser.close()


@pytest.fixture
def outside():
    """A proxy that nobody should ask: its address, and who did."""
    asked = []
    with socket.create_server(("127.0.0.1", 0)) as server:

        def listen():
            while True:
                try:
                    connection, _ = server.accept()
                except OSError:  # it is closed
                    return
                with connection:
                    asked.append(connection.recv(200))

        thread = threading.Thread(target=listen)
        thread.start()
        yield f"http://127.0.0.1:{server.getsockname()[1]}", asked
        server.shutdown(socket.SHUT_RDWR)
    thread.join()


@pytest.fixture
def served(outside):
    """Function of arguments: the address of a demo that is running; it ends with the test."""
    proxy, asked = outside
    running = []
    environment = {
        **os.environ,
        **dict.fromkeys(("HTTP_PROXY", "HTTPS_PROXY", "http_proxy", "https_proxy"), proxy),
        **dict.fromkeys(("NO_PROXY", "no_proxy"), "127.0.0.1,localhost"),
    }

    def start(*arguments):
        with socket.create_server(("127.0.0.1", 0)) as free:
            port = free.getsockname()[1]
        process = subprocess.Popen(
            [sys.executable, "-m", "serving.demo", f"--port={port}", *map(str, arguments)],
            cwd=ROOT,
            env=environment,
            stdout=subprocess.PIPE,
            text=True,
        )
        running.append(process)
        address = process.stdout.readline().strip()
        assert address == f"http://127.0.0.1:{port}"
        return address

    yield start
    for process in running:
        process.terminate()
        process.wait()
        process.stdout.close()
    assert asked == []  # no analytics, no look for a newer version


def _opened(browser, address):
    """A browser's page at an address, and the addresses that it asks."""
    view, asked = browser.new_page(viewport={"width": 1280, "height": 760}), []
    view.on("request", lambda request: asked.append(request.url))
    view.set_default_timeout(120_000)  # milliseconds; others may be at work on this machine
    view.goto(address)
    view.wait_for_selector("input[type=file]", state="attached")
    return view, asked


def _shown(view):
    """What the bars say: (name, score) from the top."""
    names, scores = (view.locator(f".deit-{part}").all_inner_texts() for part in ("name", "score"))
    return list(zip(names, scores, strict=True))


@pytest.mark.slow
def test_a_person_sees_what_it_is_and_where_the_tokens_look(
    browser, served, exported, photographs, tmp_path, capsys
):
    classifier = OnnxClassifier(exported(True))
    china, flower = photographs
    rows = {path: _rows(classifier, path) for path in photographs}
    assert rows[china] != rows[flower]
    address = served(f"--model={exported(True)}")
    view, asked = _opened(browser, address)

    view.set_input_files("input[type=file]", china)
    view.wait_for_selector("img[alt='Distillation token']")
    assert _shown(view) == rows[china]
    assert rows[china][0][0] == view.locator(".deit-name").first.inner_text()
    pixels = image.view(china, classifier.manifest)
    maps = classifier.run(pixels[None])
    drawn = _drawn(view.locator(".deit-pictures").inner_html())
    np.testing.assert_array_equal(drawn["What the network sees"], page.enlarged(pixels))
    for token, (title, _) in page.CAPTIONS.items():
        expected = page.overlay(pixels, maps[f"attention_{token}"][0])
        np.testing.assert_array_equal(drawn[title], expected)
    assert (drawn["Class token"] != drawn["Distillation token"]).any()
    bars = [box.bounding_box()["width"] for box in view.locator(".deit-bar").all()]
    track = view.locator(".deit-track").first.bounding_box()["width"]
    shares = [float(score.removesuffix("%")) / 100 for _, score in rows[china]]
    np.testing.assert_allclose(np.array(bars) / track, shares, atol=0.01)
    for picture in view.locator(".deit-pictures img").all():
        assert picture.bounding_box()["width"] > 150
    shot = tmp_path / "demo.png"
    view.screenshot(path=shot, full_page=True)
    with capsys.disabled():
        sys.stdout.write(f"\nscreenshot: {shot}\n")

    view.locator("button img[src$='flower.jpg']").click()
    view.wait_for_function(
        "row => document.querySelector('.deit-score')?.innerText == row", arg=rows[flower][0][1]
    )
    assert _shown(view) == rows[flower]
    assert {url for url in asked if not url.startswith((address, "data:", "blob:"))} == set()


@pytest.mark.slow
def test_a_person_sees_what_is_wrong_with_an_image(
    browser, served, exported, photographs, tmp_path
):
    (tmp_path / "half.jpg").write_bytes(photographs[0].read_bytes()[:20_000])
    view, _ = _opened(browser, served(f"--model={exported(True)}"))
    view.set_input_files("input[type=file]", tmp_path / "half.jpg")
    view.wait_for_selector("[role=alert].deit-error")
    assert view.locator(".deit-error").inner_text().startswith("it is damaged: ")
    assert _shown(view) == []


@pytest.mark.slow
def test_a_port_that_is_taken_is_said_in_one_line(exported, command):
    pytest.importorskip("gradio", reason="pip install -r requirements-demo.txt")
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        answer = command("serving.demo", f"--model={exported(True)}", f"--port={port}")
    assert answer.returncode == 1
    says = f"error: nothing can listen at 127.0.0.1:{port}; give another --port\n"
    assert answer.stderr == says


@pytest.mark.slow
def test_without_attention_there_are_bars_and_the_picture(browser, served, exported, tmp_path):
    classifier = OnnxClassifier(exported(False))
    view, _ = _opened(browser, served(f"--model={exported(False)}"))
    grey = tmp_path / "grey.png"  # 16 bits, which Gradio itself would make white
    ramp = np.linspace(0, 65535, 100 * 90).reshape(100, 90).astype(np.uint16)
    PIL.Image.fromarray(ramp).save(grey)
    view.set_input_files("input[type=file]", grey)
    view.wait_for_selector("img[alt='What the network sees']")
    assert _shown(view) == _rows(classifier, grey)
    drawn = _drawn(view.locator(".deit-pictures").inner_html())["What the network sees"]
    np.testing.assert_array_equal(drawn, page.enlarged(image.view(grey, classifier.manifest)))
    assert view.locator(".deit-pictures img").count() == 1
    assert "export it --with_attention" in view.locator(".deit-note").inner_text()
