"""Clients of TF Serving: `GrpcClient` and `RestClient`, which answer alike."""

import base64
import contextlib
import http.client
import json
import pathlib
import queue
import select
import ssl
import urllib.parse

import grpc
import numpy as np

from deit_tf import manifest as manifests
from deit_tf.manifest import InputError
from serving import server, wire

_CODES = {
    400: "INVALID_ARGUMENT",
    404: "NOT_FOUND",
    429: "RESOURCE_EXHAUSTED",
    503: "UNAVAILABLE",
    504: "DEADLINE_EXCEEDED",
}
_OPTIONS = (
    ("grpc.max_receive_message_length", -1),
    ("grpc.max_send_message_length", -1),
    # A server that is starting is looked for often.
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 2000),
)


class GrpcClient(server.Server):
    """TF Serving by gRPC, at its port 8500.

    Args:
      target: host:port.
      tls: whether the connection is encrypted; or a path to the PEM file with the certificates that
        are trusted, instead of the system's.
      identity: paths to the client's own certificate and its key, where the server wants one.
      **facts: see `server.Server`.

    Raises:
      InputError: a PEM file that is not there.
    """

    def __init__(self, target, tls=False, identity=None, **facts):
        super().__init__(target, **facts)
        if tls or identity:
            credentials = _credentials(tls, identity)
            self._channel = grpc.secure_channel(target, credentials, _OPTIONS)
        else:
            self._channel = grpc.insecure_channel(target, _OPTIONS)
        self._ask_predict = self._method("PredictionService/Predict", wire.PredictResponse)
        self._ask_status = self._method("ModelService/GetModelStatus", wire.StatusResponse)
        self._ask_metadata = self._method(
            "PredictionService/GetModelMetadata", wire.MetadataResponse
        )

    def _method(self, path, answer):
        """Function of a request: the message that answers it."""
        method = self._channel.unary_unary(
            f"/tensorflow.serving.{path}",
            request_serializer=lambda message: message.SerializeToString(),
            response_deserializer=answer.FromString,
        )

        def ask(request):
            try:
                return method(request, timeout=self._timeout)
            except grpc.RpcError as error:
                code, text = error.code().name, error.details()
                raise server.ServerError(self._target, code, text) from error

        return ask

    def _about(self, request):
        """A request, of the model that is meant."""
        request.model_spec.name = self._name
        if self._version is not None:
            request.model_spec.version.value = self._version
        if self._label is not None:
            request.model_spec.version_label = self._label
        return request

    def _predict(self, signature, inputs):
        request = self._about(wire.PredictRequest())
        request.model_spec.signature_name = signature
        for name, value in inputs.items():
            request.inputs[name].CopyFrom(wire.tensor(value))
        answered = self._ask_predict(request).outputs
        return {name: wire.array(tensor) for name, tensor in answered.items()}

    def _status(self):
        answered = self._ask_status(self._about(wire.StatusRequest()))
        return [
            (one.version, wire.STATES[one.state], one.status.error_message)
            for one in answered.model_version_status
        ]

    def _signatures(self):
        request = self._about(wire.MetadataRequest(metadata_field=["signature_def"]))
        packed = self._ask_metadata(request).metadata["signature_def"].value
        return {
            name: manifests.Signature(_tensors(found.inputs), _tensors(found.outputs))
            for name, found in wire.Signatures.FromString(packed).signature_def.items()
            if not name.startswith("__")  # TensorFlow's own
        }

    def close(self):
        """Closes the connection."""
        self._channel.close()


def _credentials(tls, identity):
    """What gRPC makes of PEM files."""
    files = [None if tls is True else tls or None, *reversed(identity or (None, None))]
    try:
        trusted, key, chain = (file and pathlib.Path(file).read_bytes() for file in files)
    except OSError as error:
        raise InputError(f"{error.filename} cannot be read: {error.strerror}") from error
    return grpc.ssl_channel_credentials(trusted, key, chain)


def _tensors(infos):
    return {
        name: _tensor(wire.NAMES[info.dtype][1], [dim.size for dim in info.tensor_shape.dim])
        for name, info in infos.items()
    }


def _tensor(dtype, shape):
    return manifests.Tensor(dtype, ["batch" if size == -1 else size for size in shape])


class RestClient(server.Server):
    """TF Serving by HTTP, at its port 8501. For many arrays gRPC is the faster one.

    Args:
      target: host:port, or http:// or https:// before it.
      **facts: see `server.Server`.

    Raises:
      InputError: a target that is none.
    """

    def __init__(self, target, **facts):
        super().__init__(target, **facts)
        url = _url(target)
        self._connection = {
            "http": http.client.HTTPConnection,
            "https": http.client.HTTPSConnection,
        }[url.scheme]
        self._host, self._idle = url.netloc, queue.LifoQueue()
        self._path = f"{url.path.rstrip('/')}/v1/models/{urllib.parse.quote(self._name)}"
        if self._version is not None:
            self._path += f"/versions/{self._version}"
        if self._label is not None:
            self._path += f"/labels/{urllib.parse.quote(self._label)}"

    def _ask(self, path, question=None):
        """A request on a connection that is free: JSON values in and out."""
        body = None if question is None else json.dumps(question)
        method = "GET" if body is None else "POST"
        connection = self._free()
        try:
            connection.request(method, path, body, {"Content-Type": "application/json"})
            response = connection.getresponse()
            status, content = response.status, response.read()
        except (OSError, http.client.HTTPException) as error:
            connection.close()
            code = "DEADLINE_EXCEEDED" if isinstance(error, TimeoutError) else "UNAVAILABLE"
            if isinstance(error, ssl.SSLCertVerificationError):
                code = "UNAUTHENTICATED"
            text = getattr(error, "strerror", None) or str(error) or type(error).__name__
            raise server.ServerError(self._target, code, text) from error
        self._idle.put(connection)
        return self._read(status, content)

    def _free(self):
        """A connection that is free and that the server has not closed meanwhile; or a new one."""
        while True:
            try:
                connection = self._idle.get_nowait()
            except queue.Empty:
                return self._connection(self._host, timeout=self._timeout)
            if connection.sock is None:
                return connection
            poll = select.poll()
            poll.register(connection.sock, select.POLLIN)
            if not poll.poll(0):
                return connection
            connection.close()  # there is something to read, and nothing was asked: its end

    def _read(self, status, content):
        """The JSON value of an answer."""
        try:
            answered = json.loads(content)
        except ValueError:
            answered = {"error": content.decode("utf-8", "replace")}
        if status != 200:
            text = answered.get("error", "") if isinstance(answered, dict) else str(answered)
            code = _CODES.get(status, f"HTTP {status}")
            raise server.ServerError(self._target, code, text)
        if not isinstance(answered, dict) or "error" in answered:
            raise server.ServerError(self._target, "UNKNOWN", "it answers, but not as TF Serving")
        return answered

    def _predict(self, signature, inputs):
        question = {"signature_name": signature, "inputs": {}}
        for name, value in inputs.items():
            if isinstance(value, list):
                column = [{"b64": base64.b64encode(one).decode()} for one in value]
            else:
                column = value.tolist()
            question["inputs"][name] = column
        answered = self._ask(f"{self._path}:predict", question)["outputs"]
        if not isinstance(answered, dict):  # one output, which has no name here
            answered = {next(iter(self._known[signature].outputs)): answered}
        return {name: _array(value) for name, value in answered.items()}

    def _status(self):
        answered = self._ask(self._path)["model_version_status"]
        return [
            (int(one["version"]), one["state"], one["status"]["error_message"]) for one in answered
        ]

    def _signatures(self):
        answered = self._ask(f"{self._path}/metadata")["metadata"]["signature_def"]
        return {
            name: manifests.Signature(_told(found["inputs"]), _told(found["outputs"]))
            for name, found in answered["signature_def"].items()
            if not name.startswith("__")  # TensorFlow's own
        }

    def close(self):
        """Closes the connections that are free."""
        with contextlib.suppress(queue.Empty):
            while True:
                self._idle.get_nowait().close()


def _url(target):
    """A target's parts.

    Raises:
      InputError: it is none.
    """
    try:
        url = urllib.parse.urlsplit(target if "//" in target else f"http://{target}")
        bad = url.scheme not in ("http", "https") or not url.hostname or " " in url.netloc
        bad = bad or url.port == 0  # a port that is no number raises here
    except ValueError:
        bad = True
    if bad:
        raise InputError(f"target is {target!r}; give host:port, http:// or https://")
    return url


def _told(infos):
    """What JSON tells of tensors: {name: `manifest.Tensor`}."""
    dtypes = dict(wire.NAMES.values())
    return {
        name: _tensor(
            dtypes[info["dtype"]], [int(dim["size"]) for dim in info["tensor_shape"]["dim"]]
        )
        for name, info in infos.items()
    }


def _array(column):
    """An array as gRPC would bring it."""
    found = np.array(column)
    wanted = {"f": np.float32, "i": np.int32, "U": object}
    return found.astype(wanted[found.dtype.kind])
