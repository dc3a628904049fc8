import keras
import numpy as np
import pytest

from deit_tf import checkpoint, config, regnet


def test_stages_are_the_published():
    assert regnet.stages(config.VARIANTS["regnety_160"]) == [
        (224, 2),
        (448, 4),
        (1232, 11),
        (3024, 1),
    ]


@pytest.mark.parametrize(
    ("name", "parameters"),
    [
        ("regnety_040", 20_646_656),
        ("regnety_080", 39_180_068),
        ("regnety_120", 51_822_544),
        ("regnety_160", 83_590_140),
    ],
)
def test_has_the_published_number_of_parameters(name, parameters):
    network = regnet.build_regnety(config.network(name))
    assert sum(np.prod(v.shape) for v in network.trainable_variables) == parameters


def test_regnety_160_answers_as_the_original(golden, golden_file, golden_image):
    name = "regnety_160"
    network = checkpoint.load(golden_file(name), mean=(0.0,) * 3, std=(1 / 255,) * 3)
    image = golden_image(name)
    stem = network.stem(network.normalize(image), training=False)
    _assert_near(np.mean(stem, axis=(1, 2)), golden[f"{name}/stem_mean"])
    stage = network.blocks[1](network.blocks[0](stem, training=False), training=False)
    _assert_near(np.mean(stage, axis=(1, 2)), golden[f"{name}/s1_mean"])
    _assert_near(network(image)["cls"], golden[f"{name}/logits"])


def _assert_near(found, expected):
    """Within 1e-5 of the largest value."""
    assert np.max(np.abs(np.asarray(found) - expected)) <= 1e-5 * np.max(np.abs(expected))


def test_stem_stride_keeps_or_halves_the_image():
    image = np.zeros((1, 32, 32, 3), np.uint8)
    for stride, side in ((1, 32), (2, 16)):
        network = regnet.build_regnety(config.network("regnety_tiny", stem_stride=stride))
        assert network.stem(network.normalize(image)).shape[1] == side


def test_tiny_takes_small_images_and_survives_a_keras_file(tmp_path):
    facts = config.network("regnety_tiny", num_classes=4)
    network = regnet.build_regnety(facts)
    image = np.random.RandomState(0).randint(0, 256, (2, 32, 32, 3)).astype(np.uint8)
    network(image, training=True)
    network.save(tmp_path / "tiny.keras")
    again = keras.models.load_model(tmp_path / "tiny.keras")
    assert again.config == facts
    np.testing.assert_array_equal(
        np.asarray(again(image)["cls"]), np.asarray(network(image)["cls"])
    )


def test_batch_statistics_are_used_in_training_alone():
    network = regnet.build_regnety(config.network("regnety_tiny", num_classes=4))
    image = np.random.RandomState(0).uniform(0, 255, (4, 32, 32, 3)).astype(np.float32)
    mean = next(w for w in network.weights if w.path.endswith("stem/bn/moving_mean"))
    before = np.asarray(mean)
    network(image, training=False)
    assert np.array_equal(before, np.asarray(mean))
    network(image, training=True)
    assert not np.array_equal(before, np.asarray(mean))
