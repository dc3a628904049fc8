"""Means over the steps of an epoch, of values that are already summed over the replicas."""

import keras
from keras import ops


class Means:
    """Weighted means that are the same on every replica, so that they can be saved and put back.

    Keras' metrics keep a part on each replica, and their sum loses its last digits when it is
    taken apart again.

    Args:
      names: of the values.
    """

    def __init__(self, names):
        self.names = tuple(names)
        self.totals = keras.Variable(ops.zeros(len(self.names) + 1), trainable=False, name="totals")

    def reset(self):
        """Begins anew."""
        self.put([0.0] * (len(self.names) + 1))

    def add(self, totals):
        """Counts some values in.

        Args:
          totals: float32 [n + 1]: the sum of each value over some images, then their number.
        """
        self.totals.assign(self.totals + totals)

    def result(self):
        """{name: float32 []}, the means so far; not a number where nothing is counted."""
        *totals, count = ops.unstack(ops.convert_to_tensor(self.totals))
        return {name: total / count for name, total in zip(self.names, totals, strict=True)}

    def take(self):
        """The sums so far, a list of floats that `put` takes."""
        return [float(total) for total in ops.convert_to_numpy(self.totals)]

    def put(self, totals):
        """Goes on from what `take` gave."""
        self.totals.assign(totals)
