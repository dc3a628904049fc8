"""Images that cannot be decoded: named where they stop a run, or passed over on request."""

import concurrent.futures
import contextlib

import numpy as np
from absl import logging

from deit_tf.config import InputError

_UNKNOWN, _GOOD, _BAD = 0, 1, 2
_CHECKERS = 8


class Readable:
    """A split of a source whose unreadable images give way to the next readable one.

    Each image is decoded once more, the first time it is read; what comes in its place depends on
    the files alone, so that a run stays a function of its seed.

    Args:
      records: `Source.train` or `Source.eval`.
    """

    def __init__(self, records):
        self._records = records
        self._states = np.zeros(len(records), np.uint8)

    def __len__(self):
        return len(self._records)

    def __getitem__(self, index):
        return self.__getitems__([index])[0]

    def __getitems__(self, indices):
        """Rows of the source; one that stands for an unreadable image has "readable" False."""
        with concurrent.futures.ThreadPoolExecutor(_CHECKERS) as pool:
            return list(pool.map(self._row, indices))

    def _row(self, index):
        for i in range(index, index + len(self)):
            row = self._read(i % len(self))
            if row:
                return {**row, "readable": i == index}
        raise InputError("none of the images can be read")

    def _read(self, index):
        """A row, or None where its image is unreadable."""
        if self._states[index] == _BAD:
            return None
        row, reason = _look(self._records, index, self._states[index] == _GOOD)
        if reason and self._states[index] != _BAD:
            logging.warning("left out: %s cannot be read (%s)", self.name_of(index), reason)
        self._states[index] = _BAD if reason else _GOOD
        return row

    def name_of(self, index):
        """What a person calls an image."""
        return self._records.name_of(index)

    @property
    def bad(self):
        """How many unreadable images were met so far."""
        return int(np.sum(self._states == _BAD))


def _look(records, index, known_good=False):
    """(row, None) of a record, or (None, why it cannot be read)."""
    import tensorflow as tf  # seconds, which a folder that is not there need not wait for

    from deit_tf import preprocess

    try:
        row = records[index]
        if not known_good:
            preprocess.decode(tf.constant(row["image"]))
    except OSError as error:
        return None, error.strerror or str(error)
    except tf.errors.OpError as error:
        reason = error.message.split("}} ")[-1].split(" [Op:")[0]
        return None, " ".join(reason.split())
    return row, None


def check(records, indices):
    """Raises InputError with the name of the first unreadable image among some.

    Args:
      records: `Source.train` or `Source.eval`.
      indices: which images to look at, in this order.
    """
    indices = [int(index) for index in indices]
    with concurrent.futures.ThreadPoolExecutor(_CHECKERS) as pool:
        found = zip(indices, pool.map(lambda i: _look(records, i)[1], indices), strict=True)
        index, reason = next((pair for pair in found if pair[1]), (None, None))
        pool.shutdown(cancel_futures=True)
        if reason:
            raise InputError(
                f"{records.name_of(index)} cannot be read ({reason}); mend or remove it, or"
                " pass over such images by --skip_bad_images"
            )


def _no_image(errors):
    """What fails for want of memory or of another machine, not of an image."""
    return (
        errors.ResourceExhaustedError,
        errors.UnavailableError,
        errors.AbortedError,
        errors.CancelledError,
        errors.DeadlineExceededError,
        errors.InternalError,
    )


@contextlib.contextmanager
def naming(suspects):
    """Names the image where one is why the block failed; tf.data does not know its name.

    Args:
      suspects: function that answers pairs of records and indices, in the order to look.

    Raises:
      InputError: an image cannot be read. Else what the block raised.
    """
    import tensorflow as tf

    try:
        yield
    except _no_image(tf.errors):
        raise
    except tf.errors.OpError:
        logging.info("looking whether an image that cannot be read is why this failed")
        for records, indices in suspects():
            check(records, indices)
        raise
