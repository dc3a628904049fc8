"""An artefact, open in the engine that will run it; SavedModel and ONNX file look alike here."""

import hashlib
import pathlib

import keras
import numpy as np
import onnx
import tensorflow as tf
from google.protobuf.message import DecodeError
from tensorflow.core.protobuf import saved_model_pb2

from deit_tf import manifest as manifests
from deit_tf import rundir
from deit_tf.config import InputError
from export import served
from serving.onnx_session import OnnxSession

_REQUEST = 256  # images


class SavedModel:
    """A SavedModel.

    Args:
      path: the folder of one version.

    Attributes:
      manifest: the `manifest.Manifest`.
      graph: what a server reads, TensorFlow's `MetaGraphDef`.

    Raises:
      InputError: it is none of ours, or does not load.
    """

    def __init__(self, path):
        self.manifest = read_manifest(path)
        try:
            content = (pathlib.Path(path) / "saved_model.pb").read_bytes()
            self.graph = saved_model_pb2.SavedModel.FromString(content).meta_graphs[0]
            self._loaded = tf.saved_model.load(str(path))  # kept: it owns the variables
        except Exception as error:  # TensorFlow has no class of its own for them all
            raise InputError(f"{path} does not load: {' '.join(str(error).split())}") from error

    def signatures(self):
        """What it takes and answers, as a server reads it: {name: `manifest.Signature`}."""
        return {
            name: manifests.Signature(_tensors(signature.inputs), _tensors(signature.outputs))
            for name, signature in self.graph.signature_def.items()
            if not name.startswith("__")  # TensorFlow's own
        }

    def call(self, signature, value):
        """Answers a request: {name: array}.

        Args:
          signature: its name.
          value: uint8 [B, S, S, 3] for "pixels", for the others a list of encoded images.
        """
        takes = next(iter(self.manifest.signatures[signature].inputs))
        answers = self._loaded.signatures[signature](**{takes: tf.constant(value)})
        return {name: answer.numpy() for name, answer in answers.items()}


class OnnxFile:
    """An ONNX file.

    Args:
      path: the file.
      device: see `OnnxSession`.

    Attributes:
      manifest: the `manifest.Manifest`.

    Raises:
      InputError: it is none of ours, or does not run.
    """

    def __init__(self, path, device="cpu"):
        self._session = OnnxSession(path, device)
        self.manifest = self._session.manifest

    def signatures(self):
        """What it takes and answers, by ONNX Runtime's word: {"pixels": `manifest.Signature`}."""
        return {"pixels": self._session.signature()}

    def call(self, signature, value):
        """Answers for raw pixels: {name: array}; see `OnnxSession.run`."""
        del signature  # there is one
        return self._session.run(np.asarray(value))


class Network(keras.Model):
    """An artefact where a network is wanted: image [B, S, S, 3] -> {"cls": float32 [B, K]}.

    Args:
      opened: a `SavedModel` or an `OnnxFile`.
      config: its `config.DeiTConfig`, of one head: both are one answer here.
    """

    def __init__(self, opened, config):
        super().__init__(autocast=False)
        self.opened, self.config = opened, config

    def call(self, image, training=None):
        """The logits, already fused."""
        del training
        logits = tf.numpy_function(self._ask, [tf.cast(image, tf.uint8)], tf.float32)
        return {"cls": tf.ensure_shape(logits, (None, len(self.opened.manifest.classes)))}

    def _ask(self, image):
        """Logits, asked for in parts: one request takes so many images at most."""
        starts = range(0, len(image), _REQUEST)
        parts = [self.opened.call("pixels", image[i : i + _REQUEST])["logits"] for i in starts]
        return np.concatenate(parts)


def find(path):
    """The artefact that is meant.

    Args:
      path: an ONNX file, the folder of a SavedModel's version, or of a model, whose newest version
        it is then.

    Returns:
      A path.

    Raises:
      InputError: there is none.
    """
    path = pathlib.Path(path)
    if path.is_file() or (path / "saved_model.pb").exists():
        return path
    versions = [int(each.name) for each in path.glob("*") if each.name.isdecimal()]
    if not versions:
        raise InputError(f"{path} is neither an ONNX file nor a SavedModel's folder")
    return path / str(max(versions))


def open_artefact(path, device=None):
    """A `SavedModel` or an `OnnxFile`.

    Args:
      path: what `find` gave.
      device: "cpu" or "cuda", for an ONNX file; None is the CPU.

    Raises:
      InputError: it is none of ours, does not load, or its device is not to be chosen.
    """
    if path.is_file():
        return OnnxFile(path, device or "cpu")
    if device:
        raise InputError(f"{path} is a SavedModel: TensorFlow chooses its device; leave it away")
    return SavedModel(path)


def read_manifest(path):
    """What an artefact says of itself; nothing is loaded that runs.

    Args:
      path: what `find` gave.

    Returns:
      A `manifest.Manifest`.

    Raises:
      InputError: it says nothing.
    """
    try:
        if path.is_file():
            text = {
                each.key: each.value for each in onnx.load(path, format="protobuf").metadata_props
            }[manifests.KEY]
        else:
            text = (path / served.MANIFEST).read_text("utf-8")
    except (OSError, KeyError, UnicodeDecodeError, DecodeError) as error:
        raise InputError(f"{path} has no manifest of ours; export it anew") from error
    return manifests.from_json(text, path)


def digest_of(path):
    """SHA-256 of all of an artefact but its manifest.

    Args:
      path: what `find` gave.
    """
    if path.is_file():
        return digest_of_graph(onnx.load(path, format="protobuf"))
    files = sorted(each.relative_to(path) for each in path.rglob("*") if each.is_file())
    files = [each for each in files if str(each) != served.MANIFEST]
    lines = [f"{each} {rundir.digest(path / each)}" for each in files]
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


def digest_of_graph(model):
    """SHA-256 of an `onnx.ModelProto` but its metadata."""
    bare = onnx.ModelProto()
    bare.CopyFrom(model)
    del bare.metadata_props[:]
    return hashlib.sha256(bare.SerializeToString(deterministic=True)).hexdigest()


def _tensors(infos):
    """A signature's tensors, from TensorFlow's `TensorInfo`."""
    return {
        name: served.tensor_of(tf.TensorSpec(info.tensor_shape, info.dtype))
        for name, info in infos.items()
    }
