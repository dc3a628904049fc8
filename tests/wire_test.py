"""Our messages are TF Serving's, bit for bit, and live beside them in one process."""

import numpy as np
import pytest
import tensorflow as tf
from google.protobuf import json_format
from tensorflow.core.framework import tensor_pb2
from tensorflow_serving.apis import (
    get_model_metadata_pb2,
    get_model_status_pb2,
    predict_pb2,
)

from serving import wire

VALUES = [
    np.arange(6, dtype=np.float32).reshape(2, 3),
    np.arange(6, dtype=np.int32).reshape(1, 6),
    np.arange(256, dtype=np.uint8).reshape(4, 4, 16),
    np.array([[2**40, -1]]),
    np.zeros((0, 3), np.float32),
]


@pytest.mark.parametrize("value", VALUES, ids=lambda value: str(value.dtype))
def test_tensorflow_reads_our_tensors_and_we_read_its(value):
    theirs = tensor_pb2.TensorProto.FromString(wire.tensor(value).SerializeToString())
    np.testing.assert_array_equal(tf.make_ndarray(theirs), value)
    content = tf.make_tensor_proto(value)
    fields = tensor_pb2.TensorProto.FromString(content.SerializeToString())
    fields.ClearField("tensor_content")
    name = {"f": "float_val", "i": "int_val", "u": "int_val"}[value.dtype.kind]
    name = "int64_val" if value.dtype == np.int64 else name
    fields.ClearField(name)
    getattr(fields, name).extend(value.flatten().tolist())
    for each in (content, fields):
        found = wire.array(wire.Tensor.FromString(each.SerializeToString()))
        assert found.dtype == value.dtype
        np.testing.assert_array_equal(found, value)


def test_one_value_stands_for_all():
    message = tensor_pb2.TensorProto(dtype=1, float_val=[0.5])
    for size in (2, 3):
        message.tensor_shape.dim.add(size=size)
    found = wire.array(wire.Tensor.FromString(message.SerializeToString()))
    np.testing.assert_array_equal(found, np.full((2, 3), 0.5, np.float32))


def test_texts():
    theirs = tf.make_tensor_proto([["Käfer", "bee"]])
    found = wire.array(wire.Tensor.FromString(theirs.SerializeToString()))
    assert found.tolist() == [["Käfer", "bee"]]
    sent = wire.tensor([b"\xff\xd8", b""]).SerializeToString()
    theirs = tensor_pb2.TensorProto.FromString(sent)
    assert tf.make_ndarray(theirs).tolist() == [b"\xff\xd8", b""]


def test_what_is_not_spoken_is_said():
    with pytest.raises(ValueError, match="no tensor of float64 is sent"):
        wire.tensor(np.zeros(3))
    with pytest.raises(ValueError, match="no tensor of type 2 is read"):
        wire.array(wire.Tensor(dtype=2))


def _same(ours, theirs):
    """The same bytes, whichever reads them."""
    assert type(theirs).FromString(ours.SerializeToString()) == theirs
    assert type(ours).FromString(theirs.SerializeToString()) == ours


def test_a_request_is_theirs():
    ours, theirs = wire.PredictRequest(), predict_pb2.PredictRequest()
    for each in (ours, theirs):
        each.model_spec.name, each.model_spec.version.value = "deit", 7
        each.model_spec.signature_name = "pixels"
    ours.inputs["image"].CopyFrom(wire.tensor(VALUES[2]))
    theirs.inputs["image"].CopyFrom(tf.make_tensor_proto(VALUES[2]))
    _same(ours, theirs)
    ours, theirs = wire.StatusRequest(), get_model_status_pb2.GetModelStatusRequest()
    for each in (ours, theirs):
        each.model_spec.name, each.model_spec.version_label = "deit", "stable"
    _same(ours, theirs)
    ours = wire.MetadataRequest(metadata_field=["signature_def"])
    theirs = get_model_metadata_pb2.GetModelMetadataRequest(metadata_field=["signature_def"])
    _same(ours, theirs)


def test_an_answer_is_theirs():
    ours, theirs = wire.PredictResponse(), predict_pb2.PredictResponse()
    ours.outputs["logits"].CopyFrom(wire.tensor(VALUES[0]))
    theirs.outputs["logits"].CopyFrom(tf.make_tensor_proto(VALUES[0]))
    _same(ours, theirs)
    ours, theirs = wire.StatusResponse(), get_model_status_pb2.GetModelStatusResponse()
    for each in (ours, theirs):
        status = each.model_version_status.add(version=3, state=30).status
        status.error_code, status.error_message = 5, "gone"
    _same(ours, theirs)
    states = get_model_status_pb2.ModelVersionStatus.State
    assert {number: name for name, number in states.items()} == wire.STATES


def test_metadata_is_theirs():
    signatures = get_model_metadata_pb2.SignatureDefMap()
    told = {"dtype": "DT_UINT8", "tensor_shape": {"dim": [{"size": "-1"}, {"size": "64"}]}}
    signature = {"inputs": {"image": {"name": "image:0", **told}}, "outputs": {"logits": told}}
    json_format.ParseDict({"signature_def": {"pixels": signature}}, signatures)
    theirs = get_model_metadata_pb2.GetModelMetadataResponse()
    theirs.metadata["signature_def"].Pack(signatures)
    ours = wire.MetadataResponse.FromString(theirs.SerializeToString())
    packed = ours.metadata["signature_def"]
    assert packed.type_url.endswith("tensorflow.serving.SignatureDefMap")
    found = wire.Signatures.FromString(packed.value).signature_def["pixels"]
    assert wire.NAMES[found.inputs["image"].dtype] == ("DT_UINT8", "uint8")
    assert [dim.size for dim in found.outputs["logits"].tensor_shape.dim] == [-1, 64]
    for number, (name, dtype) in wire.NAMES.items():
        assert (tf.as_dtype(number).name, tensor_pb2.TensorProto(dtype=number).dtype) == (
            dtype,
            number,
        )
        assert json_format.ParseDict({"dtype": name}, tensor_pb2.TensorProto()).dtype == number
