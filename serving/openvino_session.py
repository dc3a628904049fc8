"""OpenVINO on an exported file: on a CPU often faster than ONNX Runtime at the same precision."""

import threading

import numpy as np

from deit_tf.manifest import InputError

PRECISIONS = {"float32": "f32", "bfloat16": "bf16"}


class OpenVinoSession:
    """An exported file, compiled by OpenVINO for the CPU.

    Args:
      path: the file.
      manifest: the `manifest.Manifest` that it carries.
      precision: "float32" or "bfloat16"; None is bfloat16 where the processor computes it.
      threads: that a run uses; 0 is a core each.

    Attributes:
      manifest: the same.
      precision: the one that is used.

    Raises:
      InputError: there is no OpenVINO, or it cannot run the file.
    """

    def __init__(self, path, manifest, precision=None, threads=0):
        try:
            import openvino
        except ImportError as error:
            raise InputError("there is no openvino here; pip install openvino") from error
        self.manifest = manifest
        core = openvino.Core()
        has_bfloat16 = "BF16" in core.get_property("CPU", "OPTIMIZATION_CAPABILITIES")
        self.precision = precision or ("bfloat16" if has_bfloat16 else "float32")
        if self.precision == "bfloat16" and not has_bfloat16:
            raise InputError("this processor computes no bfloat16; leave precision away")
        options = {"INFERENCE_PRECISION_HINT": PRECISIONS[self.precision]}
        if threads:
            options["INFERENCE_NUM_THREADS"] = threads
        try:
            self._compiled = core.compile_model(core.read_model(path), "CPU", options)
        except Exception as error:  # OpenVINO has no class of its own for them all
            raise InputError(
                f"{path} does not run in OpenVINO, export it with --target=portable:"
                f" {' '.join(str(error).split())}"
            ) from error
        self._of_thread = threading.local()

    def run(self, image):
        """Answers for raw pixels; see `onnx_session.OnnxSession.run`."""
        if not hasattr(self._of_thread, "request"):
            self._of_thread.request = self._compiled.create_infer_request()
        answers = self._of_thread.request.infer({"image": np.ascontiguousarray(image)})
        return {output.any_name: answers[output].copy() for output in self._compiled.outputs}
