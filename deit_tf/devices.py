"""What this machine computes on: replicas, precision, and a warning where a GPU lies idle."""

import pathlib

import keras
import psutil
import tensorflow as tf

from deit_tf.config import InputError

_MARKS_OF_NVIDIA = ("/proc/driver/nvidia/gpus", "/dev/nvidiactl", "/dev/dxg")


def strategy(replicas=0):
    """How a batch is shared out.

    Args:
      replicas: copies of the network; 0 is one a visible GPU, or one on the CPU. More than one on
        a CPU share its cores: slower than one, but the same training.

    Returns:
      A `MirroredStrategy` on GPUs or for several replicas, else the default strategy.

    Raises:
      InputError: more replicas than visible GPUs.
    """
    gpus = tf.config.list_physical_devices("GPU")
    if gpus:
        if replicas > len(gpus):
            raise InputError(f"replicas is {replicas}, but {len(gpus)} GPU(s) are visible")
        return tf.distribute.MirroredStrategy([f"GPU:{i}" for i in range(replicas or len(gpus))])
    if replicas <= 1:
        return tf.distribute.get_strategy()
    split_cpu(replicas)
    return tf.distribute.MirroredStrategy([f"CPU:{i}" for i in range(replicas)])


def split_cpu(parts):
    """Makes several logical devices of the CPU; TensorFlow can do so only before it computes.

    Does nothing where there is a GPU: replicas are GPUs then.

    Args:
      parts: how many.
    """
    if tf.config.list_physical_devices("GPU"):
        return
    cpu = tf.config.list_physical_devices("CPU")[0]
    if len(tf.config.get_logical_device_configuration(cpu) or ()) < parts:
        one = tf.config.LogicalDeviceConfiguration()
        tf.config.set_logical_device_configuration(cpu, [one] * parts)


def check_batch(batch_size, replicas):
    """Raises InputError where a batch cannot be shared out evenly.

    Args:
      batch_size: images in a batch over all replicas.
      replicas: how many there are.
    """
    if batch_size % replicas:
        raise InputError(
            f"batch_size {batch_size} is not a multiple of the {replicas} replicas; give"
            f" --batch_size={max(batch_size // replicas, 1) * replicas}"
        )


def memory():
    """Bytes in use: the most of any GPU so far, or where there is none, of this process."""
    gpus = len(tf.config.list_logical_devices("GPU"))
    if gpus:
        infos = [tf.config.experimental.get_memory_info(f"GPU:{i}") for i in range(gpus)]
        return max(info["peak"] for info in infos)
    return psutil.Process().memory_info().rss


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
