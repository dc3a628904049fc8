"""Labels as distributions over classes."""

import tensorflow as tf


def smooth_labels(label, num_classes, smoothing):
    """One-hot labels that give up `smoothing` of their mass to all classes evenly.

    Args:
      label: integer [...].
      num_classes: K.
      smoothing: 0–1; 0.1 at 1000 classes gives 0.9001 and 0.0001.

    Returns:
      float32 [..., K], rows sum to 1.

    Reference: Szegedy et al. 2016, "Rethinking the Inception architecture", section 7.
    """
    off = smoothing / num_classes
    return tf.one_hot(label, num_classes, on_value=1.0 - smoothing + off, off_value=off)
