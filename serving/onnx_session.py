"""ONNX Runtime on an exported file."""

import pathlib

import numpy as np
import onnxruntime

from deit_tf import manifest as manifests
from deit_tf.manifest import InputError

_PROVIDERS = {"cpu": "CPUExecutionProvider", "cuda": "CUDAExecutionProvider"}
_DTYPES = {"tensor(uint8)": "uint8", "tensor(float)": "float32", "tensor(float16)": "float16"}


class OnnxSession:
    """An exported file, open in ONNX Runtime.

    Args:
      path: the file.
      device: "cpu" or "cuda".
      threads: that a run uses; 0 is a core each.

    Raises:
      InputError: it cannot be opened, has no manifest, or the device is not to be had: ONNX Runtime
        itself would take the CPU in silence.
    """

    def __init__(self, path, device="cpu", threads=0):
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.log_severity_level = 3
        provider = _PROVIDERS[device]
        if device == "cuda":
            onnxruntime.preload_dlls()
        if not pathlib.Path(path).is_file():
            raise InputError(f"{path} is no ONNX file")
        try:
            self._session = onnxruntime.InferenceSession(path, options, providers=[provider])
        except Exception as error:  # ONNX Runtime has no class of its own for them all
            raise InputError(f"{path} does not run: {' '.join(str(error).split())}") from error
        if self._session.get_providers()[0] != provider:
            raise InputError(
                f"device is {device}, but ONNX Runtime has only"
                f" {', '.join(self._session.get_providers())} here"
            )
        text = self._session.get_modelmeta().custom_metadata_map.get(manifests.KEY)
        if text is None:
            raise InputError(f"{path} has no manifest; export it by export.onnxmodel")
        self.manifest = manifests.from_json(text, path)

    def signature(self):
        """What the file takes and answers, by ONNX Runtime's word: a `manifest.Signature`."""
        return manifests.Signature(
            _tensors(self._session.get_inputs()), _tensors(self._session.get_outputs())
        )

    def run(self, image):
        """Answers for raw pixels.

        Args:
          image: uint8 [B, S, S, 3], 0–255.

        Returns:
          {name: array}: "logits" and "probabilities", float32 [B, K]; and what else it was
          exported with.
        """
        names = [output.name for output in self._session.get_outputs()]
        answers = self._session.run(names, {"image": np.ascontiguousarray(image)})
        return dict(zip(names, answers, strict=True))


def _tensors(found):
    return {
        each.name: manifests.Tensor(_DTYPES.get(each.type, each.type), each.shape) for each in found
    }
