"""What this machine computes on: replicas, precision, and a warning where a GPU lies idle."""

import pathlib

import keras
import tensorflow as tf

_MARKS_OF_NVIDIA = ("/proc/driver/nvidia/gpus", "/dev/nvidiactl", "/dev/dxg")


def strategy():
    """`MirroredStrategy` over all visible GPUs; the default strategy where there is none."""
    if tf.config.list_physical_devices("GPU"):
        return tf.distribute.MirroredStrategy()
    return tf.distribute.get_strategy()


def set_precision(name):
    """Sets Keras' dtype policy for all layers made from here on.

    Args:
      name: "float32", "bfloat16", or "auto": bfloat16 on a GPU, float32 on a CPU (where it is
        slower).

    Returns:
      The precision that was set, "float32" or "bfloat16".
    """
    if name == "auto":
        name = "bfloat16" if tf.config.list_physical_devices("GPU") else "float32"
    keras.config.set_dtype_policy("mixed_bfloat16" if name == "bfloat16" else name)
    return name


def idle_gpu(marks=_MARKS_OF_NVIDIA):
    """A warning where an NVIDIA device exists and TensorFlow sees no GPU, else None.

    Args:
      marks: paths of which one exists where there is an NVIDIA driver.
    """
    if tf.config.list_physical_devices("GPU") or not any(pathlib.Path(m).exists() for m in marks):
        return None
    return (
        "this machine has an NVIDIA device, but TensorFlow sees no GPU and will train on the CPU;"
        " install its CUDA libraries by: pip install -r requirements-cuda.txt"
    )
