"""What this machine computes on: replicas, precision, and a warning where a GPU lies idle."""

import functools
import hashlib
import pathlib

import keras
import psutil
import tensorflow as tf

from deit_tf.config import InputError

_MARKS_OF_NVIDIA = ("/proc/driver/nvidia/gpus", "/dev/nvidiactl", "/dev/dxg")


@functools.cache  # several machines meet once, before TensorFlow computes anything
def strategy(kind="mirrored", replicas=0):
    """How a batch is shared out.

    Args:
      kind: "mirrored", "multi_worker" (which waits until all workers are there) or "one_device".
      replicas: copies of the network on this machine; 0 is one a visible GPU, or one on the CPU.
        More than one on a CPU share its cores: slower than one, but the same training.

    Returns:
      A `MultiWorkerMirroredStrategy`, a `MirroredStrategy` on GPUs or for several replicas, else
      the default strategy, which computes on the first GPU where there is one.

    Raises:
      InputError: more replicas than visible GPUs, or a number of them that a worker cannot have.
    """
    gpus = tf.config.list_physical_devices("GPU")
    if kind == "one_device":
        return tf.distribute.get_strategy()
    if kind == "multi_worker":
        if replicas not in (0, max(len(gpus), 1)):
            raise InputError(
                f"replicas is {replicas}, but a worker has one on each of its GPUs, or one on its"
                " CPU; leave --replicas away"
            )
        tf.get_logger().setLevel("WARNING")  # it tells of every sum that it compiles
        made = tf.distribute.MultiWorkerMirroredStrategy()
        # All workers have as many batches, and whole ones; so their sizes are known when a step is
        # compiled, and no worker asks the others before each whether they have one left.
        made.extended.experimental_enable_get_next_as_optional = False
        return made
    if gpus:
        if replicas > len(gpus):
            raise InputError(f"replicas is {replicas}, but {len(gpus)} GPU(s) are visible")
        return tf.distribute.MirroredStrategy([f"GPU:{i}" for i in range(replicas or len(gpus))])
    if replicas <= 1:
        return tf.distribute.get_strategy()
    split_cpu(replicas)
    return tf.distribute.MirroredStrategy([f"CPU:{i}" for i in range(replicas)])


def share(strategy, batches):
    """What `fit` takes of a worker's batches.

    Args:
      strategy: what `strategy` gave.
      batches: a `tf.data.Dataset` of this worker's part of every batch.

    Returns:
      On one machine the same, which Keras hands out to the replicas; on several, where
      TensorFlow would take every worker's part for the whole, batches of its replicas.
    """
    if not isinstance(strategy, tf.distribute.MultiWorkerMirroredStrategy):
        return batches

    def of_replicas(context):
        return split(batches, context.num_replicas_in_sync // context.num_input_pipelines)

    return strategy.distribute_datasets_from_function(of_replicas)


def split(batches, parts):
    """Each batch as so many, in their order, for as many replicas.

    Args:
      batches: a `tf.data.Dataset` of dictionaries whose first axis is known.
      parts: divides it.
    """
    size = next(iter(batches.element_spec.values())).shape[0]
    return batches if parts == 1 else batches.rebatch(size // parts, drop_remainder=True)


def meet(strategy, text=""):
    """Waits until all workers are here, and compares what they say.

    Args:
      strategy: what `strategy` gave.
      text: what this worker says.

    Returns:
      Whether all say the same.
    """
    if not isinstance(strategy, tf.distribute.MultiWorkerMirroredStrategy):
        return True
    own = int(hashlib.sha256(text.encode()).hexdigest()[:15], 16)

    @tf.function
    def gathered():
        def of_all():
            mine = tf.constant([own], tf.int64)
            return tf.distribute.get_replica_context().all_gather(mine, axis=0)

        return strategy.experimental_local_results(strategy.run(of_all))[0]

    return bool(tf.reduce_all(gathered() == own))


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


def check_batch(batch_size, replicas, accumulate=1):
    """Raises InputError where a batch cannot be shared out evenly.

    Args:
      batch_size: images in a batch over all replicas.
      replicas: how many there are.
      accumulate: micro-batches of each.
    """
    parts = replicas * accumulate
    if batch_size % parts:
        times = f" × {accumulate} micro-batches" if accumulate > 1 else ""
        raise InputError(
            f"batch_size {batch_size} is not a multiple of {replicas} replica(s){times}; give"
            f" --batch_size={max(batch_size // parts, 1) * parts}"
        )


def number(variable):
    """The whole number that a variable holds; of one replica's copy, where there are several."""
    return int(keras.ops.convert_to_numpy(variable))


def kind():
    """What computes: "GPU", or "CPU" where none is visible."""
    return "GPU" if tf.config.list_physical_devices("GPU") else "CPU"


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
