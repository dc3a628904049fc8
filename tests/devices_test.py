import keras
import numpy as np
import pytest
import tensorflow as tf

from deit_tf import devices

NO_GPU = not tf.config.list_physical_devices("GPU")


def test_sets_the_precision_of_layers():
    assert devices.set_precision("bfloat16") == "bfloat16"
    assert keras.layers.Dense(1).compute_dtype == "bfloat16"
    assert devices.set_precision("float32") == "float32"
    assert keras.layers.Dense(1).compute_dtype == "float32"


@pytest.mark.skipif(not NO_GPU, reason="looks at what happens without a GPU")
def test_without_a_gpu_it_is_one_replica_in_float32():
    assert devices.strategy().num_replicas_in_sync == 1
    assert devices.set_precision("auto") == "float32"


@pytest.mark.skipif(not NO_GPU, reason="looks at what happens without a GPU")
def test_shares_a_batch_out_over_as_many_replicas_as_asked_for():
    assert devices.strategy("mirrored", 1).num_replicas_in_sync == 1
    assert devices.strategy("mirrored", 2).num_replicas_in_sync == 2


def test_memory_is_that_of_this_process():
    before = devices.memory()
    held = np.ones(2**26, np.uint8)
    assert devices.memory() - before > 0.9 * held.nbytes


@pytest.mark.skipif(not NO_GPU, reason="looks at what happens without a GPU")
def test_warns_where_a_gpu_lies_idle(tmp_path):
    assert devices.idle_gpu(marks=(tmp_path / "none",)) is None
    (tmp_path / "nvidiactl").touch()
    assert "requirements-cuda.txt" in devices.idle_gpu(marks=(tmp_path / "nvidiactl",))


def test_splits_batches_in_their_order():
    batches = tf.data.Dataset.range(12).batch(6, drop_remainder=True).map(lambda x: {"x": x})
    parts = devices.split(batches, 3)
    assert parts.element_spec["x"].shape == (2,)
    found = [part["x"].numpy().tolist() for part in parts]
    assert found == [[0, 1], [2, 3], [4, 5], [6, 7], [8, 9], [10, 11]]
    assert devices.split(batches, 1) is batches
