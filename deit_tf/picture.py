"""A picture as a PNG file, whole or not at all."""

import contextlib
import os

from deit_tf.config import InputError


def check(path, flag):
    """Raises InputError where a picture cannot get this name.

    Args:
      path: the file.
      flag: which flag names it.
    """
    if not path.endswith(".png"):
        raise InputError(f"{flag} is {path!r}; give the name of a picture that ends in .png")
    if not os.path.isdir(os.path.dirname(path) or "."):
        raise InputError(f"{flag} is {path!r}, and there is no such folder; make it first")


def save(figure, path):
    """Writes a picture.

    Args:
      figure: a `matplotlib.figure.Figure`.
      path: the file.

    Raises:
      InputError: it cannot be written.
    """
    part = path + ".part"
    try:
        figure.savefig(part, format="png")
        os.replace(part, path)
    except OSError as error:
        with contextlib.suppress(OSError):
            os.remove(part)
        raise InputError(f"{path} cannot be written: {error.strerror}") from error
