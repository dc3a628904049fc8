"""Downloads from a real server on this machine."""

import functools
import hashlib
import http.server
import socket
import threading

import pytest

from deit_tf import config, published


@pytest.fixture
def server(tmp_path):
    """A folder, and the URL under which it is served."""
    folder = tmp_path / "served"
    folder.mkdir()

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *args):
            pass

    handler = functools.partial(Quiet, directory=folder)
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as running:
        threading.Thread(target=running.serve_forever, daemon=True).start()
        yield folder, f"http://127.0.0.1:{running.server_port}/"
        running.shutdown()


@pytest.fixture(autouse=True)
def _cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def _publish(folder, monkeypatch, content):
    """Puts a file where its name's checksum holds; returns its name."""
    name = f"deit_tiny-{hashlib.sha256(content).hexdigest()[:8]}.pth"
    (folder / name).write_bytes(content)
    monkeypatch.setitem(published.FILES, "deit_tiny_patch16_224", name)
    return name


def test_a_file_is_fetched_once_and_verified(server, tmp_path, monkeypatch):
    folder, url = server
    name = _publish(folder, monkeypatch, bytes(3_000_000))
    path = published.fetch("deit_tiny_patch16_224", url)
    assert path == tmp_path / "cache" / "deit_tf" / name
    assert path.read_bytes() == bytes(3_000_000)
    (folder / name).unlink()
    assert published.fetch("deit_tiny_patch16_224", url) == path
    path.write_bytes(b"other")
    with pytest.raises(config.InputError, match="it was not the published file, and is removed"):
        published.fetch("deit_tiny_patch16_224", url)
    assert not path.exists()


def test_another_file_under_the_name_is_not_kept(server, monkeypatch):
    folder, url = server
    name = _publish(folder, monkeypatch, b"true")
    (folder / name).write_bytes(b"false")
    with pytest.raises(config.InputError, match="has the checksum"):
        published.fetch("deit_tiny_patch16_224", url)
    assert list(published.cache_dir().iterdir()) == []


def test_what_cannot_be_fetched_is_one_line(server):
    _, url = server
    for base in (url, "http://127.0.0.1:9/"):
        with pytest.raises(config.InputError, match=r"cannot be downloaded \(.*\); fetch it where"):
            published.fetch("deit_base_patch16_224", base)
    assert list(published.cache_dir().iterdir()) == []


def test_an_answer_that_breaks_off_is_not_kept(monkeypatch):
    """What proxies do: a body that is cut, and something that is no HTTP at all."""
    for said, words in (
        (b"HTTP/1.0 200 OK\r\nContent-Length: 100\r\n\r\nshort", "95 bytes were left"),
        (b"nonsense\r\n\r\n", "nonsense"),
    ):
        with socket.create_server(("127.0.0.1", 0)) as listening:
            threading.Thread(target=_say, args=(listening, said), daemon=True).start()
            url = f"http://127.0.0.1:{listening.getsockname()[1]}/"
            with pytest.raises(config.InputError, match=rf"cannot be downloaded \({words}"):
                published.fetch("deit_base_patch16_224", url)
    assert list(published.cache_dir().iterdir()) == []


def _say(listening, said):
    """Answers one request, whatever it is."""
    connection, _ = listening.accept()
    with connection:
        connection.recv(10_000)
        connection.sendall(said)


def test_a_cache_that_cannot_be_written_says_so(monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", "/proc/none")
    with pytest.raises(config.InputError, match=r"the cache /proc/none/deit_tf cannot be written"):
        published.fetch("deit_base_patch16_224")


def test_every_published_network_has_its_file():
    names = {name for name in config.VARIANTS if name.startswith("deit_")} | {"regnety_160"}
    assert set(published.FILES) == names
    for name, file in published.FILES.items():
        assert file.startswith(f"{name}-")
        assert len(file.removeprefix(f"{name}-").removesuffix(".pth")) == 8
