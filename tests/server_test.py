"""What clients do where a server is busy, slow, broken or not to be trusted.

Against servers of a few lines: each does as it is told, then well, and says when it was asked.
"""

import concurrent.futures
import http.server
import json
import queue
import shutil
import subprocess
import threading
import time

import grpc
import numpy as np
import pytest

from deit_tf.manifest import InputError
from serving import wire
from serving.client import GrpcClient, RestClient
from serving.server import ServerError

KINDS = {"grpc": GrpcClient, "rest": RestClient}


@pytest.fixture(params=KINDS)
def kind(request):
    return request.param


_GRPC = {"ok": None, "busy": "UNAVAILABLE", "full": "RESOURCE_EXHAUSTED", "bad": "INVALID_ARGUMENT"}
_HTTP = {"ok": 200, "busy": 503, "full": 429, "bad": 400, "gone": 404}


def _outputs():
    return {
        "probabilities": np.array([[0.25, 0.75]], np.float32),
        "class_ids": np.array([[1, 0]], np.int32),
        "scores": np.array([[0.75, 0.25]], np.float32),
    }


class _Grpc(grpc.GenericRpcHandler):
    def __init__(self, script, asked):
        self.script, self.asked = script, asked

    def service(self, details):
        def answer(request, context):
            self.asked.append(time.monotonic())
            what = self.script.get_nowait() if not self.script.empty() else "ok"
            if what == "slow":
                time.sleep(1.0)
            elif _GRPC[what]:
                context.abort(grpc.StatusCode[_GRPC[what]], f"the server is {what}")
            if details.method.endswith("Status"):
                made = wire.StatusResponse()
                made.model_version_status.add(version=1, state=30)
                return made.SerializeToString()
            made = wire.PredictResponse()
            for name, value in _outputs().items():
                made.outputs[name].CopyFrom(wire.tensor(value))
            made.outputs["class_names"].dtype = 7
            made.outputs["class_names"].string_val.extend([b"bee", b"ant"])
            for size in (1, 2):
                made.outputs["class_names"].tensor_shape.dim.add(size=size)
            return made.SerializeToString()

        return grpc.unary_unary_rpc_method_handler(answer)


class _Rest(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self):
        self._answer({"model_version_status": [
            {"version": "1", "state": "AVAILABLE", "status": {"error_message": ""}}
        ]})  # fmt: skip

    def do_POST(self):
        outputs = {name: value.tolist() for name, value in _outputs().items()}
        self._answer({"outputs": {**outputs, "class_names": [["bee", "ant"]]}})

    def _answer(self, value):
        self.rfile.read(int(self.headers.get("Content-Length", 0)))
        self.server.asked.append(time.monotonic())
        self.server.seen.add(self.client_address)
        script = self.server.script
        what = script.get_nowait() if not script.empty() else "ok"
        if what == "cut":
            self.close_connection = True
            return
        if what == "slow":
            time.sleep(1.0)
        status = _HTTP.get(what, 200)
        content = json.dumps(value if status == 200 else {"error": f"the server is {what}"})
        content = "<html>" if what == "gone" else content
        self.send_response(status)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content.encode())

    def log_message(self, *arguments):
        pass


@pytest.fixture
def misbehave(kind):
    """Function (*script, **facts): a client of a server that does as the script says, then well.

    With the times at which it was asked.
    """
    ends = []

    def make(*script, **facts):
        asked, told = [], queue.SimpleQueue()
        for what in script:
            told.put(what)
        if kind == "grpc":
            server = grpc.server(concurrent.futures.ThreadPoolExecutor(4))
            server.add_generic_rpc_handlers([_Grpc(told, asked)])
            port = server.add_insecure_port("127.0.0.1:0")
            server.start()
            ends.append(lambda: server.stop(0).wait())
        else:
            server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), _Rest)
            server.script, server.asked, server.seen = told, asked, set()
            threading.Thread(target=server.serve_forever, daemon=True).start()
            port = server.server_port
            ends.append(lambda: (server.shutdown(), server.server_close()))
        client = KINDS[kind](f"127.0.0.1:{port}", **facts)
        ends.insert(0, client.close)
        client.server = server
        return client, asked

    yield make
    for end in ends:
        end()


@pytest.mark.parametrize("what", ["busy", "full"])
def test_overload_is_waited_for_ever_longer(what, misbehave):
    client, asked = misbehave(what, what, what)
    assert client.predict(b"an image", top_k=2)[0].class_names == ("bee", "ant")
    assert len(asked) == 4
    pauses = np.diff(asked)
    assert all(pauses >= [0.05, 0.1, 0.2])


def test_overload_that_lasts_is_said(misbehave):
    client, asked = misbehave(*["busy"] * 9, attempts=3)
    with pytest.raises(ServerError, match="UNAVAILABLE: the server is busy"):
        client.predict(b"an image")
    assert len(asked) == 3


def test_what_is_refused_is_not_asked_again(misbehave, kind):
    client, asked = misbehave("bad")
    assert client.predict(b"an image")[0].error == "the server is bad"
    assert len(asked) == 1
    if kind == "rest":
        client, asked = misbehave("gone")
        with pytest.raises(ServerError, match="NOT_FOUND: <html>"):
            client.predict(b"an image")
        assert len(asked) == 1


def test_a_server_that_does_not_answer_in_time_is_not_asked_again(misbehave):
    client, asked = misbehave("slow", timeout=0.3)
    with pytest.raises(ServerError, match="DEADLINE_EXCEEDED"):
        client.predict(b"an image")
    assert len(asked) == 1


@pytest.mark.parametrize("kind", ["rest"], indirect=True)  # by gRPC it is gRPC's own affair
def test_a_connection_that_breaks_is_made_anew_and_kept(misbehave):
    client, asked = misbehave("ok", "cut", "ok")
    for _ in range(5):
        assert not client.predict(b"an image", top_k=2)[0].error
    assert len(asked) == 6
    assert len(client.server.seen) == 2


@pytest.mark.parametrize("kind", ["rest"], indirect=True)
def test_connections_that_were_closed_meanwhile_cost_no_attempt(misbehave, monkeypatch):
    monkeypatch.setattr(_Rest, "timeout", 0.3)  # seconds that it keeps a silent connection
    client, asked = misbehave(*["slow"] * 4, attempts=1)
    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda _: client.predict(b"an image", top_k=2), range(4)))
    assert len(client.server.seen) == 4
    time.sleep(0.8)
    assert not client.predict(b"an image", top_k=2)[0].error
    assert len(asked) == 5


def test_no_more_classes_are_named_than_there_are(misbehave):
    client, _ = misbehave()
    assert client.predict(b"an image", top_k=5)[0].class_names == ("bee", "ant")


def test_arrays_to_a_server_that_is_away_raise_at_once(kind):
    with (
        KINDS[kind]("127.0.0.1:9", timeout=1.0, attempts=1) as away,
        pytest.raises(ServerError, match="UNAVAILABLE"),
    ):
        away.predict(np.zeros((5, 8, 8, 3), np.uint8))


def test_a_refusal_without_words_is_an_error_all_the_same():
    assert ServerError("there", "INVALID_ARGUMENT", "").message == "it does not say why"


def test_a_server_is_waited_for(misbehave, kind):
    client, _ = misbehave("busy", "bad", "busy")
    client.wait_until_ready(10)
    away = KINDS[kind]("127.0.0.1:9", timeout=1.0)
    with pytest.raises(ServerError, match=r"model deit was not ready within 0\.5 s; UNAVAILABLE"):
        away.wait_until_ready(0.5)
    away.close()


@pytest.mark.skipif(not shutil.which("openssl"), reason="openssl makes the certificate")
def test_grpc_is_encrypted_for_whom_the_certificate_is_trusted(tmp_path):
    key, certificate = tmp_path / "key.pem", tmp_path / "certificate.pem"
    subject = ["-subj", "/CN=localhost", "-addext", "subjectAltName=IP:127.0.0.1"]
    make = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", *subject]
    subprocess.run([*make, "-keyout", key, "-out", certificate], check=True, capture_output=True)
    pair = [(key.read_bytes(), certificate.read_bytes())]
    server = grpc.server(concurrent.futures.ThreadPoolExecutor(2))
    server.add_generic_rpc_handlers([_Grpc(queue.SimpleQueue(), [])])
    port = server.add_secure_port("127.0.0.1:0", grpc.ssl_server_credentials(pair))
    server.start()
    cases = {certificate: True, True: False, False: False}
    for tls, answers in cases.items():
        with GrpcClient(f"127.0.0.1:{port}", tls, attempts=1, timeout=5.0) as client:
            if answers:
                assert client.predict(b"an image", top_k=2)[0].class_names == ("bee", "ant")
            else:
                with pytest.raises(ServerError, match="UNAVAILABLE"):
                    client.predict(b"an image")
    server.stop(0).wait()
    with pytest.raises(InputError, match=r"none\.pem cannot be read"):
        GrpcClient("127.0.0.1:1", tmp_path / "none.pem")
