"""What both clients of TF Serving have in common: images in, predictions out."""

import functools
import io
import os
import random
import re
import time

import numpy as np
from PIL import Image

from deit_tf.manifest import InputError
from serving import image, prediction

AGAIN = ("UNAVAILABLE", "RESOURCE_EXHAUSTED")  # gRPC's words for 503 and 429
_FIRST_PAUSE, _LONGEST_PAUSE, _POLL = 0.1, 5.0, 0.2  # seconds


class ServerError(InputError):
    """The server has refused, or cannot be reached.

    Args:
      target: host:port.
      code: gRPC's name of what is wrong, as "INVALID_ARGUMENT".
      message: what the server says.

    Attributes:
      code: the same.
      message: the part of it that people read, one line.
    """

    def __init__(self, target, code, message):
        self.code, self.message = code, _readable(message or "") or "it does not say why"
        super().__init__(f"{target}: {code}: {self.message}")


def _readable(message):
    """TensorFlow's message without the places in its graph."""
    text = re.split(r"\s*\[\[\{\{", message.partition("(0) ")[2] or message)[0]
    text = re.sub(r"^[A-Z_]+: |\{\{[^}]*\}\}|assertion failed: ", "", text)
    return " ".join(re.sub(r"\[([^\[\]]*[a-z][^\[\]]*)\]", r"\1", text).split())


def retried(ask, attempts):
    """Asks again where the server is overloaded or away for a while; each pause is twice as long.

    Args:
      ask: function without arguments that may raise `ServerError`.
      attempts: how often at most.
    """
    for attempt in range(attempts):
        try:
            return ask()
        except ServerError as error:
            if error.code not in AGAIN or attempt == attempts - 1:
                raise
        pause = min(_LONGEST_PAUSE, _FIRST_PAUSE * 2**attempt)
        time.sleep(pause * random.uniform(0.5, 1.0))  # or all clients come back at once


class Server:
    """A model in TF Serving; a subclass knows how to speak to it.

    Args:
      target: host:port.
      name: the model's.
      version: its number; None is the newest.
      label: of a version, instead of its number.
      timeout: seconds for each request; by REST for each wait for the server within one.
      attempts: how often a request is sent where the server is overloaded or away.
      batch_size: images in a request, at most.

    Raises:
      InputError: version and label, or a number out of its range.
    """

    def __init__(
        self,
        target,
        name="deit",
        version=None,
        label=None,
        timeout=30.0,
        attempts=5,
        batch_size=32,
    ):
        if version is not None and label is not None:
            raise InputError("version and label are both given; leave one away")
        least = {"attempts": attempts >= 1, "batch_size": batch_size >= 1, "timeout": timeout > 0}
        for which, good in least.items():
            if not good:
                raise InputError(f"{which} is out of its range; give more than 0")
        self._target, self._name, self._version, self._label = target, name, version, label
        self._timeout, self._attempts, self._batch_size = timeout, attempts, batch_size

    def _predict(self, signature, inputs):
        """One request: {name: list of bytes, or array} -> {name: array}."""
        raise NotImplementedError

    def _status(self):
        """One request: [(version, state, message)]."""
        raise NotImplementedError

    def _signatures(self):
        """One request: {name: `manifest.Signature`}."""
        raise NotImplementedError

    def close(self):
        """Closes the connections."""
        raise NotImplementedError

    def __enter__(self):
        return self

    def __exit__(self, *unused):
        self.close()

    def call(self, signature, value):
        """Answers a request.

        Args:
          signature: its name.
          value: uint8 [B, S, S, 3] for "pixels"; for the others a list of encoded images, bytes.

        Returns:
          {name: array}, a row an image; texts are str.

        Raises:
          ServerError: the server has refused, or is not there after all attempts.
        """
        takes = "image_bytes" if isinstance(value, list) else "image"
        return retried(lambda: self._predict(signature, {takes: value}), self._attempts)

    def status(self):
        """The model's versions: a list of (version, state, message); "AVAILABLE" ones answer."""
        return retried(self._status, self._attempts)

    def signatures(self):
        """What can be asked: {name: `manifest.Signature`}."""
        return retried(self._signatures, self._attempts)

    def wait_until_ready(self, timeout=60.0):
        """Returns once the model answers.

        Args:
          timeout: seconds.

        Raises:
          ServerError: it did not in that time.
        """
        end = time.monotonic() + timeout
        while True:
            try:
                found = self._status()
                said = ", ".join(f"version {one} is {state} {text}" for one, state, text in found)
                if any(state == "AVAILABLE" for _, state, _ in found):
                    if self._label is not None:  # which a server's status does not look at
                        self._signatures()
                    return
            except ServerError as error:
                said = f"{error.code}: {error.message}"
            if time.monotonic() > end:
                raise ServerError(
                    self._target,
                    "DEADLINE_EXCEEDED",
                    f"model {self._name} was not ready within {timeout:g} s; {said}",
                )
            time.sleep(_POLL)

    @functools.cached_property
    def _side(self):
        """Side of the network's images, pixels."""
        return self._known["pixels"].inputs["image"].shape[1]

    @functools.cached_property
    def _known(self):
        """The signatures, asked for once: {name: `manifest.Signature`}.

        Raises:
          ServerError: the server is not there, or has no such model, version or label.
          InputError: it is another model.
        """
        found = self.signatures()
        if not {"serving_default", "pixels"} <= set(found):
            raise InputError(
                f"{self._target} has a model {self._name} that export.savedmodel has not written:"
                f" it answers {', '.join(sorted(found)) or 'nothing'}"
            )
        return found

    def predict(self, images, top_k=5):
        """Names the likeliest classes of images; see `onnx_session.OnnxClassifier.predict`.

        Files are sent as they are; arrays of the network's size as pixels, of others as PNG, which
        the server resizes and crops as it does files.

        Raises:
          ServerError: the server refuses all images, or is not there.
          InputError: an array of another type or rank, or more classes than the server names.
        """
        if top_k < 1:
            raise InputError(f"top_k is {top_k}; give at least 1")
        found, sent = {}, {"serving_default": {}, "pixels": {}}
        for place, one in enumerate(image.listed(images)):
            try:
                signature, value = self._sendable(one)
                sent[signature][place] = value
            except ServerError:
                raise
            except InputError as error:
                found[place] = prediction.Prediction(error=str(error))
        for signature, values in sent.items():
            places = list(values)
            for start in range(0, len(places), self._batch_size):
                asked = places[start : start + self._batch_size]
                answers = self._answers(signature, [values[place] for place in asked], top_k)
                found |= zip(asked, answers, strict=True)
        return [found[place] for place in sorted(found)]

    def _sendable(self, one):
        """An image as it is sent: a signature's name, and bytes or uint8 [S, S, 3]."""
        if isinstance(one, (str, os.PathLike, bytes)):
            return "serving_default", image.content(one)
        pixels = image.checked(one)
        if pixels.shape[:2] == (self._side, self._side):
            return "pixels", pixels
        file = io.BytesIO()
        Image.fromarray(pixels).save(file, "PNG", compress_level=1)
        return "serving_default", file.getvalue()

    def _answers(self, signature, values, top_k):
        """Predictions of a request; where it is refused, halves of it are asked for again.

        So that what is wrong with one image is said of that one, and the others are answered.
        """
        try:
            answered = self.call(signature, values if signature != "pixels" else np.stack(values))
        except ServerError as error:
            if error.code != "INVALID_ARGUMENT":
                raise
            if self._label is not None:
                self._known  # noqa: B018  # raises where it is the label that is unknown
            if len(values) == 1:
                return [prediction.Prediction(error=error.message)]
            half = len(values) // 2
            parts = values[:half], values[half:]
            return [one for part in parts for one in self._answers(signature, part, top_k)]
        named = answered["class_ids"].shape[1]
        top_k = min(top_k, answered["probabilities"].shape[1])
        if top_k > named:
            raise InputError(
                f"top_k is {top_k}, but {self._target} names {named} classes; ask for no more, or"
                f" export with --top_k={top_k}"
            )
        columns = (answered[name][:, :top_k] for name in ("class_ids", "class_names", "scores"))
        rows = zip(*(column.tolist() for column in columns), strict=True)
        return [prediction.Prediction(*map(tuple, row)) for row in rows]
