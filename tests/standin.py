"""A stand-in for TF Serving, and not TF Serving: its wire over TensorFlow's own loader.

    python tests/standin.py --model=models/deit/1 [--name=deit] [--label=stable]

Speaks gRPC and REST on loopback, by TF Serving's published messages (tensorflow-serving-api), with
its codes and words for errors as far as a client sees them. Requests are merged where the exported
graph does so. Says its two ports in one line of JSON once it answers, and ends with its input.
"""

import argparse
import base64
import concurrent.futures
import http.server
import json
import os
import pathlib
import re
import sys
import threading

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import grpc
import numpy as np
import tensorflow as tf
from google.protobuf import json_format
from tensorflow.core.protobuf import saved_model_pb2
from tensorflow_serving.apis import (
    get_model_metadata_pb2,
    get_model_status_pb2,
    model_service_pb2_grpc,
    predict_pb2,
    prediction_service_pb2_grpc,
)

HTTP = {
    "INVALID_ARGUMENT": 400,
    "FAILED_PRECONDITION": 400,
    "NOT_FOUND": 404,
    "RESOURCE_EXHAUSTED": 429,
    "UNAVAILABLE": 503,
    "DEADLINE_EXCEEDED": 504,
}


class Refusal(Exception):  # noqa: N818
    """What a client is refused with: gRPC's name of a code, and words."""

    def __init__(self, code, message):
        super().__init__(message)
        self.code, self.message = code, message


class Model:
    """One version of a model, as a server has it."""

    def __init__(self, path, name, label):
        self.name, self.version, self.label = name, int(path.name), label
        content = (path / "saved_model.pb").read_bytes()
        self.graph = saved_model_pb2.SavedModel.FromString(content).meta_graphs[0]
        self.loaded = tf.saved_model.load(str(path))

    def check(self, name, version=None, label=None, missing="Servable not found for request: {}"):
        """Raises where another model, version or label is meant."""
        if name != self.name:
            raise Refusal("NOT_FOUND", missing.format(f"Latest({name})"))
        if label and label != self.label:
            raise Refusal("INVALID_ARGUMENT", f"Unrecognized servable version label: {label}")
        if version is not None and version != self.version:
            raise Refusal("NOT_FOUND", missing.format(f"Specific({name}, {version})"))

    def signature(self, name):
        """The signature that is meant: its name, and what it takes and answers."""
        name = name or "serving_default"
        if name not in self.graph.signature_def:
            raise Refusal("FAILED_PRECONDITION", f'Serving signature key "{name}" not found.')
        return name, self.graph.signature_def[name]

    def predict(self, name, inputs):
        """{name: array} of {name: array}."""
        name, signature = self.signature(name)
        sent, wanted = sorted(inputs), sorted(signature.inputs)
        if sent != wanted:
            extra, lacking = set(sent) - set(wanted), set(wanted) - set(sent)
            raise Refusal(
                "INVALID_ARGUMENT",
                f"input size does not match signature: {len(sent)}!={len(wanted)}"
                f" len({{{','.join(sent)}}}) != len({{{','.join(wanted)}}})."
                f" Sent extra: {{{','.join(extra)}}}."
                f" Missing but required: {{{','.join(lacking)}}}.",
            )
        for key, value in inputs.items():
            self._check_tensor(signature.inputs[key], tf.constant(value))
        try:
            answers = self.loaded.signatures[name](**inputs)
        except tf.errors.OpError as error:
            code = next(code for code in grpc.StatusCode if code.value[0] == error.error_code)
            # What Python adds, a server does not have.
            said = error.message.rpartition("unavailable>\n")[2].partition(" [Op:")[0]
            raise Refusal(code.name, said) from error
        return {key: value.numpy() for key, value in answers.items()}

    def _check_tensor(self, info, tensor):
        """What a session says of a tensor that is fed."""
        if tensor.dtype != info.dtype:
            wanted = tf.as_dtype(info.dtype).name
            raise Refusal(
                "INVALID_ARGUMENT",
                f"Expects arg[0] to be {wanted} but {tensor.dtype.name} is provided",
            )
        shape = tf.TensorShape(info.tensor_shape)
        if not shape.is_compatible_with(tensor.shape):
            raise Refusal(
                "INVALID_ARGUMENT",
                f"You must feed a value for placeholder tensor '{info.name}' with dtype"
                f" {tensor.dtype.name} and shape {shape}; it has {tensor.shape}",
            )


class Grpc(
    prediction_service_pb2_grpc.PredictionServiceServicer,
    model_service_pb2_grpc.ModelServiceServicer,
):
    """PredictionService and ModelService."""

    def __init__(self, model):
        self.model = model

    def _check(self, spec, **words):
        version = spec.version.value if spec.HasField("version") else None
        self.model.check(spec.name, version, spec.version_label, **words)

    def Predict(self, request, context):  # noqa: N802
        with _refusing(context):
            self._check(request.model_spec)
            inputs = {key: tf.make_ndarray(value) for key, value in request.inputs.items()}
            answers = self.model.predict(request.model_spec.signature_name, inputs)
            made = predict_pb2.PredictResponse()
            made.model_spec.name, made.model_spec.version.value = self.model.name, 1
            for key, value in answers.items():
                made.outputs[key].CopyFrom(_as_fields(value))
            return made

    def GetModelStatus(self, request, context):  # noqa: N802
        with _refusing(context):
            request.model_spec.ClearField("version_label")  # as TF Serving: all versions
            self._check(request.model_spec, missing="Could not find any versions of model {}")
            return self.status()

    def GetModelMetadata(self, request, context):  # noqa: N802
        with _refusing(context):
            self._check(request.model_spec)
            if list(request.metadata_field) != ["signature_def"]:
                raise Refusal(
                    "INVALID_ARGUMENT", "GetModelMetadataRequest must specify signature_def"
                )
            return self.metadata()

    def status(self):
        made = get_model_status_pb2.GetModelStatusResponse()
        made.model_version_status.add(version=self.model.version, state=30).status.SetInParent()
        return made

    def metadata(self):
        made = get_model_metadata_pb2.GetModelMetadataResponse()
        made.model_spec.name = self.model.name
        made.model_spec.version.value = self.model.version
        signatures = get_model_metadata_pb2.SignatureDefMap()
        for name, found in self.model.graph.signature_def.items():
            signatures.signature_def[name].CopyFrom(found)
        made.metadata["signature_def"].Pack(signatures)
        return made


def _as_fields(value):
    """A tensor with its values in their fields, as TF Serving answers by default."""
    made = tf.make_tensor_proto(value)
    if not made.tensor_content:
        return made
    field = {"f": made.float_val, "i": made.int_val}[value.dtype.kind]
    field.extend(value.flatten().tolist())
    made.ClearField("tensor_content")
    return made


class _refusing:  # noqa: N801
    """Turns a `Refusal` into what a gRPC client is told."""

    def __init__(self, context):
        self.context = context

    def __enter__(self):
        return self

    def __exit__(self, kind, error, trace):
        if isinstance(error, Refusal):
            self.context.abort(grpc.StatusCode[error.code], error.message)


_PATH = re.compile(
    r"/v1/models/(?P<name>[^/:]+)"
    r"(/versions/(?P<version>\d+)|/labels/(?P<label>[^/:]+))?"
    r"(?P<what>/metadata|:predict)?"
)


class Rest(http.server.BaseHTTPRequestHandler):
    """The same by HTTP."""

    protocol_version = "HTTP/1.1"
    wbufsize = -1  # head and body in one piece
    disable_nagle_algorithm = True  # or a long body waits for the head's receipt
    grpc = None

    def do_GET(self):
        self._answer({"": self._status, "/metadata": self._metadata})

    def do_POST(self):
        self._answer({":predict": self._predict})

    def _answer(self, whats):
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        try:
            match = _PATH.fullmatch(self.path)
            if not match or (match["what"] or "") not in whats:
                raise Refusal("INVALID_ARGUMENT", f"Malformed request: {self.command} {self.path}")
            version = int(match["version"]) if match["version"] else None
            label = match["label"] if match["what"] else None  # a status is of all versions
            self.grpc.model.check(match["name"], version, label)
            code, value = 200, whats[match["what"] or ""](body)
        except Refusal as fault:
            code, value = HTTP.get(fault.code, 500), {"error": fault.message}
        content = json.dumps(value).encode()
        self.send_response(code)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def _status(self, body):
        found = self.grpc.status().model_version_status
        status = {"error_code": "OK", "error_message": ""}
        return {
            "model_version_status": [
                {"version": str(one.version), "state": "AVAILABLE", "status": status}
                for one in found
            ]
        }

    def _metadata(self, body):
        told = json_format.MessageToDict(
            self.grpc.metadata(),
            preserving_proto_field_name=True,
            always_print_fields_with_no_presence=True,
        )
        return {"model_spec": told["model_spec"], "metadata": told["metadata"]}

    def _predict(self, body):
        try:
            asked = json.loads(body)
        except ValueError as error:
            raise Refusal("INVALID_ARGUMENT", f"JSON Parse error: {error}") from error
        name, signature = self.grpc.model.signature(asked.get("signature_name"))
        if "instances" in asked:
            columns = _columns(asked["instances"], signature.inputs)
        elif "inputs" in asked:
            columns = asked["inputs"]
            if not isinstance(columns, dict) or "b64" in columns:
                columns = {next(iter(signature.inputs)): columns}
        else:
            raise Refusal("INVALID_ARGUMENT", "Missing 'inputs' or 'instances' key")
        inputs = {
            key: _tensor(value, signature.inputs[key].dtype) if key in signature.inputs else value
            for key, value in columns.items()
        }
        answers = {k: _listed(k, v) for k, v in self.grpc.model.predict(name, inputs).items()}
        if "inputs" in asked:
            (one, *others) = answers.values()
            return {"outputs": answers if others else one}
        if len(answers) == 1:
            return {"predictions": next(iter(answers.values()))}
        rows = zip(*answers.values(), strict=True)
        return {"predictions": [dict(zip(answers, row, strict=True)) for row in rows]}

    def log_message(self, *arguments):
        pass


def _columns(rows, wanted):
    """{input: list} of a request in rows."""
    if not isinstance(rows, list) or not rows:
        raise Refusal("INVALID_ARGUMENT", "Request data: 'instances' must be a non-empty list")
    if isinstance(rows[0], dict) and list(rows[0]) != ["b64"]:
        return {key: [row.get(key) for row in rows] for key in rows[0]}
    return {next(iter(wanted)): rows}


def _tensor(value, dtype):
    """An input's tensor of JSON values."""
    if tf.as_dtype(dtype) == tf.string:
        return tf.constant([_text(one) for one in value])
    try:
        found = np.array(value)
    except ValueError as error:
        raise Refusal(
            "INVALID_ARGUMENT", f"Encountered list at unexpected level: {error}"
        ) from error
    wanted = tf.as_dtype(dtype)
    if found.dtype.kind != "i":
        raise Refusal(
            "INVALID_ARGUMENT",
            f"JSON Value: {str(value)[:20]} is not of expected type: {wanted.name}",
        )
    return tf.constant(found.astype(wanted.as_numpy_dtype))


def _text(value):
    """The bytes of a JSON value."""
    if isinstance(value, dict) and list(value) == ["b64"]:
        return base64.b64decode(value["b64"])
    if isinstance(value, str):
        return value.encode()
    raise Refusal(
        "INVALID_ARGUMENT", f"JSON Value: {str(value)[:20]} is not of expected type: string"
    )


def _listed(name, value):
    """JSON values of an output."""
    if value.dtype.kind != "O":
        return value.tolist()
    flat = [
        {"b64": base64.b64encode(one).decode()} if name.endswith("_bytes") else one.decode()
        for one in value.flatten()
    ]
    return np.array(flat, object).reshape(value.shape).tolist()


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", type=pathlib.Path, required=True)
    parser.add_argument("--name", default="deit")
    parser.add_argument("--label", default="stable")
    arguments = parser.parse_args()
    service = Grpc(Model(arguments.model, arguments.name, arguments.label))
    options = [("grpc.max_receive_message_length", -1), ("grpc.so_reuseport", 0)]
    server = grpc.server(concurrent.futures.ThreadPoolExecutor(32), options=options)
    prediction_service_pb2_grpc.add_PredictionServiceServicer_to_server(service, server)
    model_service_pb2_grpc.add_ModelServiceServicer_to_server(service, server)
    ports = {"grpc": server.add_insecure_port("127.0.0.1:0")}
    server.start()
    Rest.grpc = service
    rest = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Rest)
    threading.Thread(target=rest.serve_forever, daemon=True).start()
    sys.stdout.write(json.dumps({**ports, "rest": rest.server_port}) + "\n")
    sys.stdout.flush()
    sys.stdin.read()
    os._exit(0)  # nothing is left to write


if __name__ == "__main__":
    main()
