"""An exported file answers here: `OnnxSession` for pixels, `OnnxClassifier` for images."""

import concurrent.futures
import contextlib
import dataclasses
import io
import os
import pathlib

import numpy as np
import onnxruntime

from deit_tf import manifest as manifests
from deit_tf.manifest import InputError
from serving import image, prediction
from serving.bound import Bound
from serving.openvino_session import PRECISIONS, OpenVinoSession

DEVICES = ("auto", "cuda", "tensorrt", "cpu", "openvino")
_PROVIDERS = {
    "cpu": "CPUExecutionProvider",
    "cuda": "CUDAExecutionProvider",
    "tensorrt": "TensorrtExecutionProvider",
}
_DTYPES = {"tensor(uint8)": "uint8", "tensor(float)": "float32", "tensor(float16)": "float16"}


class OnnxSession:
    """An exported file, open in ONNX Runtime.

    Args:
      path: the file.
      device: "cpu", "cuda" or "tensorrt".
      threads: that a run uses; 0 is a core each.
      batch: 0 for any number of images; see `bound.Bound`.
      **options: of the provider, by ONNX Runtime's names.

    Attributes:
      manifest: the `manifest.Manifest`.

    Raises:
      InputError: it cannot be opened, has no manifest, or the device is not to be had: ONNX Runtime
        itself would take the CPU in silence.
    """

    def __init__(self, path, device="cpu", threads=0, batch=0, **options):
        settings = onnxruntime.SessionOptions()
        settings.intra_op_num_threads = threads
        if batch:  # TensorRT wants to know the size of all that its parts are given
            settings.add_free_dimension_override_by_name("batch", batch)
        self._session = _open(path, device, settings, options)
        self.manifest = _manifest(self._session, path)
        on_gpu = device != "cpu"
        self._bound = Bound(self._session, "cuda" if on_gpu else "cpu", batch)
        self._binds = on_gpu or batch

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

        Raises:
          InputError: pixels of another type, or more of them than a batch that is filled up.
        """
        if image.dtype != np.uint8:  # which a place for bytes would take as they lie there
            raise InputError(f"pixels are {image.dtype}; give uint8 [B, S, S, 3], 0–255")
        image = np.ascontiguousarray(image)
        if self._binds:
            return self._bound.run(image)
        names = [output.name for output in self._session.get_outputs()]
        return dict(zip(names, self._session.run(names, {"image": image}), strict=True))


def _open(path, device, settings, options):
    """An `onnxruntime.InferenceSession` that runs on a device, or none."""
    if device not in _PROVIDERS:
        raise InputError(f"device is {device!r}; choose one of {', '.join(_PROVIDERS)}")
    if not pathlib.Path(path).is_file():
        raise InputError(f"{path} is no ONNX file")
    settings.log_severity_level = 3
    provider = _PROVIDERS[device]
    rest = [_PROVIDERS["cuda"]] if device == "tensorrt" else []  # for what TensorRT lacks
    missing = _load_libraries() if device != "cpu" else ""
    onnxruntime.set_default_logger_severity(4)  # what it would say here, the errors say below
    try:
        found = onnxruntime.InferenceSession(
            path, settings, providers=[(provider, options), *rest], enable_fallback=0
        )
    except Exception as error:  # ONNX Runtime has no class of its own for them all
        raise InputError(f"{path} does not run on {device}: {_line(error)}") from error
    finally:
        onnxruntime.set_default_logger_severity(2)  # its default
    if found.get_providers()[0] != provider:
        raise InputError(
            f"device is {device}, but ONNX Runtime has only {', '.join(found.get_providers())}"
            f" here; {next(iter(missing.splitlines()), 'give cpu, or mend the driver')}"
        )
    found.disable_fallback()  # to the CPU, in the middle of its work
    return found


def _line(text):
    """A text, or an error, as one line."""
    return " ".join(str(text).split())


def _load_libraries():
    """Loads CUDA's libraries from where pip puts them; what it says of missing ones."""
    said = io.StringIO()
    with contextlib.redirect_stdout(said):  # or they stand among the answers
        onnxruntime.preload_dlls()
    return said.getvalue()


def _manifest(session, path):
    """The `manifest.Manifest` that a file carries."""
    text = session.get_modelmeta().custom_metadata_map.get(manifests.KEY)
    if text is None:
        raise InputError(f"{path} has no manifest; export it by export.onnxmodel")
    return manifests.from_json(text, path)


def _tensors(found):
    return {
        each.name: manifests.Tensor(_DTYPES.get(each.type, each.type), each.shape) for each in found
    }


def read_manifest(path):
    """The `manifest.Manifest` of a file, which is not made ready to run.

    Raises:
      InputError: there is no such file, or it has none.
    """
    settings = onnxruntime.SessionOptions()
    settings.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    return _manifest(_open(path, "cpu", settings, {}), path)


@dataclasses.dataclass(frozen=True)
class Options:
    """How a classifier runs.

    Attributes:
      batch_size: images that the network sees at once.
      max_pixels: of a larger image nothing is decoded.
      threads: of the engine on a CPU; 0 is a core each.
      cuda_graph: whether a batch is one launch on the GPU ("cuda"); all are filled up then.
      cache_dir: where TensorRT keeps what it has built, with the file's digest behind it; None is
        beside the file.
      precision: OpenVINO's: "float32", "bfloat16"; None is bfloat16 where the processor has it.

    Raises:
      InputError: a value that is not allowed.
    """

    batch_size: int = 32
    max_pixels: int = image.MAX_PIXELS
    threads: int = 0
    cuda_graph: bool = False
    cache_dir: str | None = None
    precision: str | None = None

    def __post_init__(self):
        if self.batch_size < 1:
            raise InputError(f"batch_size is {self.batch_size}; give at least 1")
        if self.precision not in (None, *PRECISIONS):
            raise InputError(
                f"precision is {self.precision!r}; choose one of {', '.join(PRECISIONS)}"
            )


class OnnxClassifier:
    """An exported file that answers for images.

    Args:
      path: the file.
      device: "auto", "cuda", "tensorrt", "cpu" or "openvino"; "auto" is CUDA where it is, else the
        CPU. What is asked for by name and is not there is an error.
      **options: fields of `Options`.

    Attributes:
      device: the one that is used.
      manifest: the `manifest.Manifest`.

    Raises:
      InputError: the file cannot be opened, or the device is not to be had.
    """

    def __init__(self, path, device="auto", **options):
        self._options = Options(**options)
        self.device, self._session = _engine(path, device, self._options)
        self.manifest = self._session.manifest
        self._pool = concurrent.futures.ThreadPoolExecutor(os.cpu_count())

    def predict(self, images, top_k=5):
        """Names the likeliest classes of images.

        Args:
          images: a path, bytes of a file, or uint8 [h, w, 3]; a list of such; or uint8
            [B, h, w, 3]. Arrays of the network's size are taken as they are, all else is resized
            and cropped.
          top_k: how many classes are named.

        Returns:
          A list of `prediction.Prediction`, one an image, in their order; a bad image's has an
          error, and the others are answered.

        Raises:
          InputError: an array of another type or rank, or no classes asked for.
        """
        if top_k < 1:
            raise InputError(f"top_k is {top_k}; give at least 1")
        images = images if self._is_seen(images) else image.listed(images)
        size = self._options.batch_size
        batches = [images[start : start + size] for start in range(0, len(images), size)]
        return [answer for batch in batches for answer in self._answers(batch, top_k)]

    def run(self, pixels):
        """Answers for raw pixels; see `OnnxSession.run`. At most `batch_size` of them."""
        return self._session.run(pixels)

    def _is_seen(self, images):
        """Whether images are one array already that the network can see."""
        side = self.manifest.image_size
        return (
            isinstance(images, np.ndarray)
            and images.dtype == np.uint8
            and images.shape[1:] == (side, side, 3)
        )

    def _answers(self, batch, top_k):
        """Predictions of no more images than a batch has."""
        if self._is_seen(batch):
            seen, errors = batch, [""] * len(batch)
        else:
            views = list(self._pool.map(self._view, batch))
            errors = [view if isinstance(view, str) else "" for view in views]
            seen = [view for view in views if not isinstance(view, str)]
        named = iter(())
        if len(seen):
            probabilities = self.run(np.asarray(seen))["probabilities"]
            named = iter(prediction.likeliest(probabilities, self.manifest.labels, top_k))
        return [prediction.Prediction(error=error) if error else next(named) for error in errors]

    def _view(self, one):
        """What the network sees of an image; or a text that says why it sees nothing."""
        try:
            return image.view(one, self.manifest, self._options.max_pixels)
        except InputError as error:
            return str(error)


def _engine(path, device, options):
    """The device that is used, and what runs the file there."""
    if device not in DEVICES:
        raise InputError(f"device is {device!r}; choose one of {', '.join(DEVICES)}")
    if options.cuda_graph and device not in ("auto", "cuda"):
        raise InputError(f"cuda_graph and device {device} do not go together; give device cuda")
    if options.precision and device != "openvino":
        raise InputError(f"precision is a file's own on {device}; it is for openvino alone")
    if device == "auto":
        with contextlib.suppress(InputError):  # what is wrong with the file, the CPU says, too
            return _engine(path, "cuda", options)
        return _engine(path, "cpu", dataclasses.replace(options, cuda_graph=False))
    if device == "openvino":
        manifest = read_manifest(path)
        return device, OpenVinoSession(path, manifest, options.precision, options.threads)
    batch = options.batch_size if options.cuda_graph or device == "tensorrt" else 0
    told = {}
    if device == "cuda":
        told = _for_cuda(options)
    elif device == "tensorrt":
        told = _for_tensorrt(path, read_manifest(path), options)
    return device, OnnxSession(path, device, options.threads, batch, **told)


def _for_cuda(options):
    """ONNX Runtime's options of CUDA."""
    return {
        "use_tf32": "0",  # a float32 file answers in float32; a fast one is float16
        "cudnn_conv_algo_search": "HEURISTIC",  # else each new batch size is tried out at length
        "enable_cuda_graph": str(int(options.cuda_graph)),
    }


def _for_tensorrt(path, manifest, options):
    """ONNX Runtime's options of TensorRT: engines for whole batches, built once."""
    # ONNX Runtime knows an engine by the file's name and graph, not by the weights in it.
    cache = f"{options.cache_dir or f'{path}.tensorrt'}-{manifest.digest[:16]}"
    return {
        "trt_fp16_enable": str(int(manifest.precision == "float16")),
        "trt_engine_cache_enable": "1",
        "trt_engine_cache_path": cache,
    }
