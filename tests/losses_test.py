import keras
import numpy as np
import pytest
import tensorflow as tf

from deit_tf import losses


def _inputs(golden):
    names = ("class_logits", "distill_logits", "teacher_logits", "labels")
    return [tf.constant(golden[f"loss/{name}"]) for name in names]


def test_soft_target_cross_entropy_is_the_released_one(golden):
    cls, _, _, labels = _inputs(golden)
    loss = float(tf.reduce_mean(losses.soft_target_cross_entropy(cls, labels)))
    assert loss == pytest.approx(float(golden["loss/none"]), rel=1e-6)


@pytest.mark.parametrize(("alpha", "tau"), [(0.5, 1.0), (0.1, 3.0), (0.9, 2.0)])
@pytest.mark.parametrize("kind", ["hard", "soft"])
def test_distillation_is_the_released_one(golden, kind, alpha, tau):
    cls, dist, teacher, labels = _inputs(golden)
    if kind == "hard":
        term = losses.hard_distillation(dist, teacher)
    else:
        term = losses.soft_distillation(dist, teacher, tau, "elements")
    class_loss = losses.soft_target_cross_entropy(cls, labels)
    loss = float(tf.reduce_mean((1 - alpha) * class_loss + alpha * term))
    assert loss == pytest.approx(float(golden[f"loss/{kind}/{alpha}/{tau}"]), rel=1e-6)


def test_batchmean_is_equation_2(golden):
    _, dist, teacher, _ = _inputs(golden)
    tau = 3.0
    p = np.asarray(keras.ops.softmax(teacher / tau), np.float64)
    q = np.asarray(keras.ops.softmax(dist / tau), np.float64)
    expected = tau**2 * np.sum(p * np.log(p / q), axis=-1)
    found = losses.soft_distillation(dist, teacher, tau, "batchmean")
    np.testing.assert_allclose(found, expected, rtol=1e-5)
    elements = losses.soft_distillation(dist, teacher, tau, "elements")
    np.testing.assert_allclose(elements, expected / 10, rtol=1e-5)


@pytest.mark.parametrize(
    "distillation",
    [losses.hard_distillation, lambda a, b: losses.soft_distillation(a, b, 2.0)],
)
def test_no_gradient_flows_to_the_teacher(golden, distillation):
    _, dist, teacher, _ = _inputs(golden)
    with tf.GradientTape() as tape:
        tape.watch([dist, teacher])
        loss = distillation(dist, teacher)
    to_student, to_teacher = tape.gradient(loss, [dist, teacher])
    assert float(tf.reduce_max(tf.abs(to_student))) > 0
    assert to_teacher is None


def test_refuses_another_reduction(golden):
    _, dist, teacher, _ = _inputs(golden)
    with pytest.raises(ValueError, match="choose one of elements, batchmean"):
        losses.soft_distillation(dist, teacher, 1.0, "sum")
