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


@tf.function(jit_compile=True)
def mix(images, labels, own, box):
    """Mixes images with their partners: the first of a group with its last, and so on.

    Args:
      images: float32 [G, S, S, 3].
      labels: float32 [G, K].
      own: float32 [G], what is left of an image and its label.
      box: int32 [G, 4]: top, left, bottom, right of what the partner fills; an empty one means
        that all pixels are mixed in the proportion of the labels.

    Returns:
      images and labels of the same shapes.

    Reference: Zhang et al. 2018, "mixup"; Yun et al. 2019, "CutMix".
    """
    rows, columns = tf.range(images.shape[1]), tf.range(images.shape[2])
    top, left, bottom, right = tf.unstack(box[:, :, tf.newaxis], axis=1)  # [G, 1]
    inside_rows = (rows >= top) & (rows < bottom)  # [G, S]
    inside = inside_rows[:, :, tf.newaxis] & ((columns >= left) & (columns < right))[:, tf.newaxis]
    cut = (bottom > top) & (right > left)
    pixels = tf.where(cut[:, :, tf.newaxis], 1.0 - tf.cast(inside, tf.float32), own[:, None, None])
    share = pixels[..., tf.newaxis]  # [G, S, S, 1]
    mixed = images * share + images[::-1] * (1.0 - share)
    share = own[:, tf.newaxis]
    return mixed, labels * share + labels[::-1] * (1.0 - share)
