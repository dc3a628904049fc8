"""A teacher's answers, shortened and lengthened, asked for and brought."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from deit_tf import config, lessons, losses, model

CLASSES = 12
FACTS = config.network(
    "deit", num_classes=CLASSES, image_size=16, patch_size=8, width=16, depth=1, heads=2
)


def _logits(scale=3.0):
    return tf.constant(scale * np.random.RandomState(0).standard_normal((16, CLASSES)), tf.float32)


def test_a_decision_is_the_first_of_the_largest():
    short = lessons.shorten(tf.constant([[1.0, 3.0, 3.0], [5.0, 0.0, 1.0]]))
    assert list(short) == ["teacher_classes"]
    assert short["teacher_classes"].numpy().tolist() == [[1], [0]]


def test_a_decision_teaches_what_its_logits_teach():
    logits, pupil = _logits(), _logits(1.0)[::-1]
    told = lessons.lengthen(CLASSES, **lessons.shorten(logits))
    expected = losses.hard_distillation(pupil, logits)
    np.testing.assert_array_equal(losses.hard_distillation(pupil, told), expected)


def test_all_probabilities_are_the_distribution():
    logits = _logits()
    told = lessons.lengthen(CLASSES, **lessons.shorten(logits, CLASSES))
    wanted = keras.ops.softmax(logits)
    np.testing.assert_allclose(keras.ops.softmax(told), wanted, rtol=2e-3, atol=2.0**-24)


@pytest.mark.parametrize("topk", [1, 3, CLASSES - 1])
def test_the_rest_is_spread_evenly(topk):
    logits = _logits()
    told = np.asarray(keras.ops.softmax(lessons.lengthen(CLASSES, **lessons.shorten(logits, topk))))
    wanted = np.asarray(keras.ops.softmax(logits))
    order = np.argsort(-wanted, axis=-1)
    kept = np.take_along_axis(told, order[:, :topk], -1)
    np.testing.assert_allclose(kept, np.take_along_axis(wanted, order[:, :topk], -1), rtol=2e-3)
    rest = np.take_along_axis(told, order[:, topk:], -1)
    np.testing.assert_allclose(rest, np.broadcast_to(rest[:, :1], rest.shape), rtol=1e-4)
    np.testing.assert_allclose(told.sum(-1), 1.0, rtol=1e-5)


@pytest.mark.parametrize("topk", [1, 3, CLASSES - 1])
def test_what_is_told_are_the_logarithms_of_a_distribution(topk):
    logits = _logits(0.5)  # flat: each class has its weight
    told = np.asarray(lessons.lengthen(CLASSES, **lessons.shorten(logits, topk)))
    np.testing.assert_allclose(np.exp(told).sum(-1), 1.0, rtol=1e-5)


def test_a_certain_teacher_gives_finite_logits():
    logits = tf.constant([[100.0] + [0.0] * (CLASSES - 1)])
    for topk in (1, 5, CLASSES):
        assert np.isfinite(lessons.lengthen(CLASSES, **lessons.shorten(logits, topk))).all()


@pytest.fixture(scope="module")
def teacher():
    keras.utils.set_random_seed(0)
    return model.build_deit(FACTS)


def _batch():
    image = np.random.RandomState(1).uniform(0, 255, (8, 16, 16, 3)).astype(np.float32)
    return {"image": tf.constant(image)}


def _step(number=0):
    return tf.constant(number, tf.int64)


@pytest.mark.parametrize("jit", [False, True])
def test_micro_batches_are_answered_in_their_order(teacher, jit):
    found = []
    for accumulate in (1, 4):
        told = lessons.Lessons(teacher, CLASSES)
        told.compile(jit, accumulate)
        found.append(tf.function(told.of)(_batch(), _step()))
    np.testing.assert_allclose(*found, atol=1e-5)


def test_a_teacher_answers_before_it_is_said_how_it_is_run(teacher):
    told = lessons.Lessons(teacher, CLASSES)
    expected = teacher(_batch()["image"])["cls"]
    np.testing.assert_array_equal(told.of(_batch(), _step()), expected)


@pytest.mark.parametrize("topk", [0, 3])
def test_who_listens_hears_what_is_learned(teacher, topk):
    told, heard = lessons.Lessons(teacher, CLASSES, topk), []
    told.compile()
    told.heard = lambda *said: heard.append(said)
    learned = tf.function(told.of)(_batch(), _step(5))
    ((first, *short),) = heard
    assert first == 5 * 8
    again = lessons.lengthen(CLASSES, *map(tf.constant, short))
    if topk:
        np.testing.assert_allclose(learned, again, rtol=1e-6)
    else:
        np.testing.assert_array_equal(tf.argmax(learned, -1), tf.argmax(again, -1))


def test_replicas_are_heard_at_their_places(teacher, replicas):
    strategy = replicas[1]
    told, heard = lessons.Lessons(teacher, CLASSES), {}
    told.compile()
    told.heard = lambda first, classes: heard.update({first: classes})
    alone = lessons.shorten(teacher(_batch()["image"])["cls"])["teacher_classes"]
    with strategy.scope():
        network = model.build_deit(FACTS)
    network.set_weights(teacher.get_weights())
    told.teacher = network
    batches = strategy.experimental_distribute_dataset(tf.data.Dataset.from_tensors(_batch()))

    @tf.function
    def run(batch):
        strategy.run(lambda mine: told.of(mine, _step(3)), (batch,))

    run(next(iter(batches)))
    assert sorted(heard) == [24, 28]
    np.testing.assert_array_equal(np.concatenate([heard[24], heard[28]]), alone)


def test_what_the_batch_brings_is_learned_and_what_it_does_not_is_asked(teacher):
    told, heard = lessons.Lessons(teacher, CLASSES), []
    told.compile()
    told.heard = lambda *said: heard.append(said)
    learn = tf.function(told.of)
    brought = tf.constant(np.arange(8)[:, None], tf.int32)
    found = learn({**_batch(), "teacher_classes": brought}, _step())
    np.testing.assert_array_equal(tf.argmax(found, -1), np.arange(8))
    assert not heard
    asked = learn({**_batch(), "teacher_classes": -tf.ones_like(brought)}, _step())
    np.testing.assert_array_equal(asked, teacher(_batch()["image"])["cls"])
    assert len(heard) == 1
    one = {"image": _batch()["image"][:1], "teacher_classes": -tf.ones((1, 1), tf.int32)}
    np.testing.assert_allclose(learn(one, _step()), asked[:1], rtol=1e-4, atol=1e-6)
    nobody = lessons.Lessons(None, CLASSES)
    nobody.compile()
    np.testing.assert_array_equal(
        nobody.of({**_batch(), "teacher_classes": brought}, _step()), found
    )
