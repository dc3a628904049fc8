"""Tensors that lie where they are computed: one copy to the GPU, and only answers back."""

import concurrent.futures

import numpy as np
import onnxruntime

from deit_tf.manifest import InputError


class Bound:
    """ONNX Runtime on tensors of its own device.

    Args:
      session: an `onnxruntime.InferenceSession`.
      device: "cuda" or "cpu", as ONNX Runtime calls the memory.
      batch: 0 for any number of images. Else each run is filled up to so many, on the same tensors
        time and again, as a CUDA graph and a TensorRT engine want it.
    """

    def __init__(self, session, device, batch=0):
        self._session, self._device, self._batch = session, device, batch
        self._names = [output.name for output in session.get_outputs()]
        if batch:
            self._image, self._binding = self._static()
            # There is one set of tensors, and a CUDA graph wants to be run by one thread.
            self._worker = concurrent.futures.ThreadPoolExecutor(1)

    def _static(self):
        """The tensor of the images, and a binding whose answers have their places, too."""
        binding = self._session.io_binding()
        (image,) = self._session.get_inputs()
        place = self._place(image, np.uint8)
        binding.bind_ortvalue_input(image.name, place)
        for output in self._session.get_outputs():
            binding.bind_ortvalue_output(output.name, self._place(output, np.float32))
        return place, binding

    def _place(self, tensor, dtype):
        """Memory for a whole batch of a tensor."""
        shape = [self._batch, *tensor.shape[1:]]
        return onnxruntime.OrtValue.ortvalue_from_shape_and_type(shape, dtype, self._device, 0)

    def run(self, image):
        """Answers for raw pixels; see `onnx_session.OnnxSession.run`."""
        answers = self._filled(image) if self._batch else self._fresh(image)
        return dict(zip(self._names, answers, strict=True))

    def _fresh(self, image):
        """Answers of any number of images."""
        binding = self._session.io_binding()
        value = onnxruntime.OrtValue.ortvalue_from_numpy(image, self._device, 0)
        binding.bind_ortvalue_input("image", value)
        for name in self._names:
            binding.bind_output(name, self._device)
        self._session.run_with_iobinding(binding)
        return binding.copy_outputs_to_cpu()

    def _filled(self, image):
        """Answers of no more images than a batch has."""
        missing = self._batch - len(image)
        if missing < 0:
            raise InputError(f"{len(image)} images are given; at most {self._batch} at once")
        if missing:
            image = np.concatenate([image, np.zeros((missing, *image.shape[1:]), np.uint8)])
        answers = self._worker.submit(self._once, image).result()
        return [answer[: len(answer) - missing] for answer in answers]

    def _once(self, image):
        """Answers of a whole batch."""
        self._image.update_inplace(image)
        self._session.run_with_iobinding(self._binding)
        return self._binding.copy_outputs_to_cpu()
