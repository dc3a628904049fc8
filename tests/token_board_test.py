"""What TensorBoard hears of the tokens, and that training does not notice that it is told."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from tensorboard.backend.event_processing import event_accumulator

from deit_tf import checkpoint, dataset, distiller, optimizer, progress, source, tokens, train

STEPS = 3


def _heard(folder):
    """{tag: [(step, value)]} of TensorBoard's events in a folder."""
    events = event_accumulator.EventAccumulator(str(folder)).Reload()
    return {
        tag: [
            (each.step, float(tf.make_ndarray(each.tensor_proto))) for each in events.Tensors(tag)
        ]
        for tag in events.Tags()["tensors"]
    }


@pytest.fixture(scope="module")
def fitted(digits_config, data_dir, replicas, tmp_path_factory):
    """Function (replicas, board): the pair after two epochs, with or without a `TokenBoard`."""
    config = digits_config()
    records = source.open_source(config.data).train
    images = np.random.RandomState(0).uniform(0, 255, (5, 32, 32, 3)).astype(np.float32)
    made = {}

    def fit(count, board):
        if (count, board) in made:
            return made[count, board]
        folder = tmp_path_factory.mktemp("events")
        with replicas[count - 1].scope():
            keras.utils.set_random_seed(0)
            networks = [checkpoint.build_network(config.network) for _ in range(2)]
            average = optimizer.Average(*networks, 0.9)
            pair = distiller.Distiller(networks[0], config.distill, average=average)
            weights = networks[0].trainable_variables
            pair.compile(optimizer.build(config.optimizer, 64, STEPS * 2, weights))
        pair.fit(
            dataset.train_batches(records, config),
            steps_per_epoch=STEPS,
            epochs=2,
            shuffle=False,
            verbose=0,
            callbacks=[progress.TokenBoard(folder, lambda: images)] if board else [],
        )
        made[count, board] = pair, images, folder
        return made[count, board]

    return fit


def test_training_is_the_same_bit_for_bit_with_it_and_without(fitted):
    told, silent = fitted(1, True)[0], fitted(1, False)[0]
    for pair in (told, silent):
        assert int(pair.position.numpy()) == 2 * STEPS
    for one, other in (
        (told.student.weights, silent.student.weights),
        (told.average.network.weights, silent.average.network.weights),
        (told.optimizer.variables, silent.optimizer.variables),
    ):
        assert len(one) == len(other) > 0
        for a, b in zip(one, other, strict=True):
            np.testing.assert_array_equal(a.numpy(), b.numpy())


def test_each_epoch_is_heard_of_layer_by_layer(fitted):
    pair, images, folder = fitted(1, True)
    heard = _heard(folder)
    names = tokens.layers_of(pair.student)
    assert list(heard) == [f"tokens/cosine_{name}" for name in names]
    assert all([step for step, _ in values] == [0, 1] for values in heard.values())
    # Of the average, which is what is evaluated, and not of the network that is trained.
    for network, same in ((pair.average.network, True), (pair.student, False)):
        expected = np.mean(tokens.similarity(network, images), axis=0)
        last = [values[-1][1] for values in heard.values()]
        assert np.allclose(last, expected, atol=1e-6) == same


def test_two_replicas_tell_what_one_does(fitted):
    one, two = (_heard(fitted(count, True)[2]) for count in (1, 2))
    assert list(one) == list(two)
    for tag, values in one.items():
        np.testing.assert_allclose(two[tag], values, atol=1e-3)


def test_a_run_tells_of_its_first_evaluation_images(digits_config, tmp_path):
    config = digits_config(network={"depth": 2})
    train.train(config, tmp_path / "run")
    heard = _heard(tmp_path / "run" / "logs" / "tokens")
    records = source.open_source(config.data).eval
    batch = next(iter(dataset.eval_batches(records, config)))
    network = checkpoint.load(tmp_path / "run")
    expected = np.mean(tokens.similarity(network, batch["image"][:32]), axis=0)
    assert list(heard) == [f"tokens/cosine_{name}" for name in ("learned", "1", "2", "norm")]
    np.testing.assert_allclose([value for ((_, value),) in heard.values()], expected, atol=1e-5)
