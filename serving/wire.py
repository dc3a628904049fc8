"""TF Serving's messages, as far as they are spoken here, without TensorFlow.

Protocol Buffers put the numbers of fields on the wire, not their names; so these have names of
their own, and do not clash with TensorFlow's in one process. The numbers are those of
tensorflow/core/framework/tensor.proto, tensorflow/core/protobuf/meta_graph.proto and
tensorflow_serving/apis/{predict,prediction_log,get_model_status,get_model_metadata}.proto.
"""

import numpy as np
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

_PACKAGE = "deit_tf_wire"
# {message: {field: (number, type)}}; "*" is repeated, "{}" a map from text.
_MESSAGES = {
    "Dim": {"size": (1, "int64"), "name": (2, "string")},
    "Shape": {"dim": (2, "Dim*"), "unknown_rank": (3, "bool")},
    "Tensor": {
        "dtype": (1, "int32"),
        "tensor_shape": (2, "Shape"),
        "tensor_content": (4, "bytes"),
        "float_val": (5, "float*"),
        "int_val": (7, "int32*"),
        "string_val": (8, "bytes*"),
        "int64_val": (10, "int64*"),
    },
    "Version": {"value": (1, "int64")},
    "ModelSpec": {
        "name": (1, "string"),
        "version": (2, "Version"),
        "signature_name": (3, "string"),
        "version_label": (4, "string"),
    },
    "PredictRequest": {"model_spec": (1, "ModelSpec"), "inputs": (2, "Tensor{}")},
    "PredictResponse": {"outputs": (1, "Tensor{}"), "model_spec": (2, "ModelSpec")},
    "PredictLog": {"request": (1, "PredictRequest")},
    "PredictionLog": {"predict_log": (6, "PredictLog")},
    "StatusRequest": {"model_spec": (1, "ModelSpec")},
    "StatusResponse": {"model_version_status": (1, "VersionStatus*")},
    "VersionStatus": {"version": (1, "int64"), "state": (2, "int32"), "status": (3, "Status")},
    "Status": {"error_code": (1, "int32"), "error_message": (2, "string")},
    "MetadataRequest": {"model_spec": (1, "ModelSpec"), "metadata_field": (2, "string*")},
    "MetadataResponse": {"model_spec": (1, "ModelSpec"), "metadata": (2, "Any{}")},
    "Any": {"type_url": (1, "string"), "value": (2, "bytes")},
    "Signatures": {"signature_def": (1, "Signature{}")},
    "Signature": {"inputs": (1, "TensorInfo{}"), "outputs": (2, "TensorInfo{}")},
    "TensorInfo": {"dtype": (2, "int32"), "tensor_shape": (3, "Shape")},
}
_FIELD = descriptor_pb2.FieldDescriptorProto
_STRING = 7  # DataType of tensorflow/core/framework/types.proto
_DTYPES = {1: np.float32, 3: np.int32, 4: np.uint8, 9: np.int64}
# What JSON and `manifest.Tensor` call a type.
NAMES = {
    1: ("DT_FLOAT", "float32"),
    3: ("DT_INT32", "int32"),
    4: ("DT_UINT8", "uint8"),
    _STRING: ("DT_STRING", "string"),
    9: ("DT_INT64", "int64"),
}
_VALUES = {1: "float_val", 3: "int_val", 4: "int_val", 9: "int64_val"}
# ModelVersionStatus.State of tensorflow_serving/apis/get_model_status.proto
STATES = {0: "UNKNOWN", 10: "START", 20: "LOADING", 30: "AVAILABLE", 40: "UNLOADING", 50: "END"}


def _classes():
    """The messages' classes by name."""
    file = descriptor_pb2.FileDescriptorProto(
        name=f"{_PACKAGE}.proto", package=_PACKAGE, syntax="proto3"
    )
    for name, fields in _MESSAGES.items():
        message = file.message_type.add(name=name)
        for field, (number, kind) in fields.items():
            if kind.endswith("{}"):
                kind = _entry(message, field, kind.removesuffix("{}"))
            _add(message, field, number, kind)
    pool = descriptor_pool.DescriptorPool()
    found = message_factory.GetMessages([file], pool=pool)
    return {name: found[f"{_PACKAGE}.{name}"] for name in _MESSAGES}


def _entry(message, field, kind):
    """The message of a map's entries, which lies within the one that has the map."""
    name = "".join(part.title() for part in field.split("_")) + "Entry"
    entry = message.nested_type.add(name=name)
    entry.options.map_entry = True
    _add(entry, "key", 1, "string")
    _add(entry, "value", 2, kind)
    return f"{message.name}.{name}*"


def _add(message, field, number, kind):
    """Adds a field to a message."""
    plain = kind.removesuffix("*")
    label = _FIELD.LABEL_OPTIONAL if plain == kind else _FIELD.LABEL_REPEATED
    added = message.field.add(name=field, number=number, label=label)
    scalar = getattr(_FIELD, f"TYPE_{plain.upper()}", None)
    if scalar:
        added.type = scalar
    else:
        added.type, added.type_name = _FIELD.TYPE_MESSAGE, f".{_PACKAGE}.{plain}"


_FOUND = _classes()
Tensor = _FOUND["Tensor"]
PredictRequest = _FOUND["PredictRequest"]
PredictResponse = _FOUND["PredictResponse"]
PredictionLog = _FOUND["PredictionLog"]
StatusRequest = _FOUND["StatusRequest"]
StatusResponse = _FOUND["StatusResponse"]
MetadataRequest = _FOUND["MetadataRequest"]
MetadataResponse = _FOUND["MetadataResponse"]
Signatures = _FOUND["Signatures"]


def tensor(value):
    """An array, or a list of bytes, as a `Tensor`.

    Args:
      value: float32, int32, uint8 or int64 of any shape; or a list of bytes, [B].

    Raises:
      ValueError: another type.
    """
    if isinstance(value, list):
        made = Tensor(dtype=_STRING, string_val=value)
        made.tensor_shape.dim.add(size=len(value))
        return made
    found = [number for number, dtype in _DTYPES.items() if value.dtype == dtype]
    if not found:
        raise ValueError(f"no tensor of {value.dtype} is sent here")
    made = Tensor(dtype=found[0], tensor_content=value.tobytes())
    for size in value.shape:
        made.tensor_shape.dim.add(size=size)
    return made


def array(message):
    """The array of a `Tensor`; texts are an array of objects, str.

    Raises:
      ValueError: another type, or another number of values than the shape asks for.
    """
    shape = [dim.size for dim in message.tensor_shape.dim]
    if message.dtype == _STRING:
        texts = [value.decode("utf-8", "replace") for value in message.string_val]
        return np.array(texts, object).reshape(shape)
    if message.dtype not in _DTYPES:
        raise ValueError(f"no tensor of type {message.dtype} is read here")
    dtype = _DTYPES[message.dtype]
    if message.tensor_content:
        return np.frombuffer(message.tensor_content, dtype).reshape(shape)
    values = np.array(getattr(message, _VALUES[message.dtype]), dtype)
    # One value, where all are the same.
    return np.full(shape, values[0]) if len(values) == 1 else values.reshape(shape)
