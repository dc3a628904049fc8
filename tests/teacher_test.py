import numpy as np
import pytest

from deit_tf import checkpoint, config, optimizer, rundir, teacher

TINY = config.network("regnety_tiny", num_classes=3, depth=1)


@pytest.fixture
def taught_by(tmp_path):
    """The configuration of a distillation by a network that is saved in a run directory."""
    whole = config.Config("regnety_tiny", TINY)
    network = checkpoint.build_network(TINY)
    adamw = optimizer.build(whole.optimizer, 8, 4, network.trainable_variables)
    rundir.begin(tmp_path, whole, {}, ["a", "b", "c"], ["A", "B", "C"])
    checkpoint.Run(tmp_path).save(network, adamw)
    return network, config.DistillConfig(distillation="hard", teacher=str(tmp_path))


def test_loads_the_network_frozen(taught_by):
    network, facts = taught_by
    loaded = teacher.load_teacher(facts)
    assert not loaded.trainable_variables
    image = np.random.RandomState(0).randint(0, 256, (2, 32, 32, 3)).astype(np.uint8)
    expected = np.asarray(network(image, training=False)["cls"])
    np.testing.assert_array_equal(np.asarray(loaded(image, training=False)["cls"]), expected)


def test_is_known_by_its_digest(taught_by):
    _, facts = taught_by
    digest = rundir.digest(rundir.weights_path(facts.teacher))
    assert teacher.facts(facts, ("a", "b", "c")) == {"teacher_sha256": digest}


def test_refuses_other_classes_and_another_order(taught_by):
    _, facts = taught_by
    for labels in (("a", "b", "d"), ("b", "a", "c")):
        with pytest.raises(config.InputError, match="are not the student's"):
            teacher.facts(facts, labels)


def test_without_distillation_there_is_none():
    assert teacher.load_teacher(config.DistillConfig()) is None
    assert teacher.facts(config.DistillConfig(), ("a",)) == {}
