import keras
import numpy as np
import pytest
import tensorflow as tf

from deit_tf import config, model, optimizer

NANO = config.network(
    "deit", num_classes=3, image_size=8, patch_size=4, width=8, depth=1, heads=2, distilled=True
)


@pytest.mark.parametrize("decay_dist_token", [True, False])
def test_decays_what_the_released_code_decays(decay_dist_token):
    variables = model.build_deit(NANO).trainable_variables
    left_alone = {v.path for v in optimizer.without_decay(variables, decay_dist_token)}
    decayed = {v.path.split("/", 1)[1] for v in variables if v.path not in left_alone}
    expected = {
        "patch_embed/proj/kernel",
        "blocks_0/attn/qkv/kernel",
        "blocks_0/attn/proj/kernel",
        "blocks_0/mlp/fc1/kernel",
        "blocks_0/mlp/fc2/kernel",
        "head/kernel",
        "head_dist/kernel",
    }
    if decay_dist_token:
        expected.add("tokens/dist_token")
    assert decayed == expected


def test_updates_as_pytorchs_adamw():
    deit = model.build_deit(NANO)
    facts = config.OptimizerConfig(
        epochs=2, lr=0.01, warmup_epochs=0.0, min_lr=0.01, weight_decay=0.3
    )
    adamw = optimizer.build(facts, 512, 2, deit.trainable_variables)
    before = {v.path: np.asarray(v, np.float64) for v in deit.trainable_variables}
    rng = np.random.RandomState(0)
    gradients = [[rng.standard_normal(v.shape) for v in deit.trainable_variables] for _ in range(3)]
    for i, step in enumerate(gradients):
        adamw.update([g.astype(np.float32) for g in step], deit.trainable_variables, i)
        adamw.iterations.assign_add(1)
    for i, v in enumerate(deit.trainable_variables):
        decay = 0.3 if len(v.shape) > 1 and v.name not in ("cls_token", "pos_embed") else 0.0
        expected = _adamw(before[v.path], [step[i] for step in gradients], 0.01, decay)
        # Keras takes 1 - 0.999^t in float32: 1e-4 of an update at the first steps.
        np.testing.assert_allclose(np.asarray(v), expected, rtol=1e-6, atol=5e-6)


def _adamw(weight, gradients, lr, decay):
    """torch.optim.AdamW, as its documentation states it."""
    first = second = 0.0
    for t, gradient in enumerate(gradients, start=1):
        weight = weight - lr * decay * weight
        first = 0.9 * first + 0.1 * gradient
        second = 0.999 * second + 0.001 * gradient**2
        corrected = np.sqrt(second / (1 - 0.999**t)) + 1e-8
        weight = weight - lr * first / (1 - 0.9**t) / corrected
    return weight


def test_follows_the_schedule_that_is_asked_for():
    variables = model.build_deit(NANO).trainable_variables
    rates = {}
    for kind in ("cosine", "epoch", "constant"):
        facts = config.OptimizerConfig(epochs=4, warmup_epochs=1.0, lr_schedule=kind)
        adamw = optimizer.build(facts, 512, 10, variables)
        rates[kind] = float(adamw.rate_at(25))
    cosine = [1e-5 + (5e-4 - 1e-5) * 0.5 * (1 + np.cos(np.pi * part)) for part in (0.5, 0.25)]
    expected = {"cosine": cosine[0], "epoch": cosine[1], "constant": 5e-4}
    assert rates == pytest.approx(expected, rel=1e-5)


def test_follows_the_schedule():
    variables = model.build_deit(NANO).trainable_variables
    facts = config.OptimizerConfig(epochs=4, lr=1e-3, warmup_epochs=1.5)
    adamw = optimizer.build(facts, 256, 10, variables)
    assert float(adamw.learning_rate) == pytest.approx(1e-6)
    adamw.iterations.assign(15)
    assert float(adamw.learning_rate) == pytest.approx(5e-4)
    adamw.iterations.assign(40)
    assert float(adamw.learning_rate) == pytest.approx(1e-5)


@pytest.mark.parametrize(("momentum", "clip_norm"), [(0.9, 0.0), (0.0, 0.0), (0.9, 0.5)])
def test_updates_as_pytorchs_sgd(momentum, clip_norm):
    deit = model.build_deit(NANO)
    facts = config.OptimizerConfig(
        optimizer="sgd",
        momentum=momentum,
        clip_norm=clip_norm,
        epochs=2,
        lr=0.1,
        warmup_epochs=2.0,
        warmup_lr=0.02,
        min_lr=0.02,
        weight_decay=0.3,
    )
    variables = deit.trainable_variables
    sgd = optimizer.build(facts, 512, 2, variables)
    expected = {v.path: np.asarray(v, np.float64) for v in variables}
    held = dict.fromkeys(expected, 0.0)
    rng = np.random.RandomState(0)
    for step in range(3):
        gradients = [rng.standard_normal(v.shape).astype(np.float32) for v in variables]
        sgd.update(gradients, variables, step)
        norm = np.sqrt(sum(np.sum(np.square(g, dtype=np.float64)) for g in gradients))
        rate = float(sgd.rate_at(step))
        for v, gradient in zip(variables, gradients, strict=True):
            gradient = gradient * (min(1.0, clip_norm / norm) if clip_norm else 1.0)
            if len(v.shape) > 1 and v.name not in ("cls_token", "pos_embed"):
                gradient = gradient + 0.3 * expected[v.path]
            # torch.optim.SGD with nesterov, as its documentation states it.
            held[v.path] = momentum * held[v.path] + gradient
            update = gradient + momentum * held[v.path] if momentum else gradient
            expected[v.path] = expected[v.path] - rate * update
    assert float(sgd.rate_at(0)) != float(sgd.rate_at(2))  # a schedule reaches the weights at once
    for v in variables:
        np.testing.assert_allclose(np.asarray(v), expected[v.path], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("strategy", [0, 1], ids=["1 replica", "2 replicas"])
def test_trains_by_keras_own_fit_as_by_update(replicas, strategy):
    facts = config.OptimizerConfig(epochs=1, lr=0.1, warmup_epochs=0.0, clip_norm=0.1)
    image = np.random.RandomState(0).standard_normal((8, 3)).astype(np.float32)
    label = image.sum(-1, keepdims=True)
    batches = tf.data.Dataset.from_tensor_slices((image, label)).batch(8).repeat(3)
    with replicas[strategy].scope():
        network = keras.Sequential([keras.Input((3,)), keras.layers.Dense(1)])
        network.set_weights([np.ones((3, 1)), np.zeros(1)])
        network.compile(optimizer.build(facts, 512, 3, network.trainable_variables), "mse")
    network.fit(batches, steps_per_epoch=3, verbose=0, shuffle=False)

    kernel, bias = weights = [
        keras.Variable(np.ones((3, 1), np.float32)),
        keras.Variable(np.float32([0])),
    ]
    adamw = optimizer.build(facts, 512, 3, weights)
    for step in range(3):
        error = image @ kernel.numpy() + bias.numpy() - label
        gradients = [2 * image.T @ error / 8, 2 * error.mean(0)]
        adamw.update([g.astype(np.float32) for g in gradients], weights, step)
        adamw.iterations.assign_add(1)
    for found, wanted in zip(network.get_weights(), weights, strict=True):
        np.testing.assert_allclose(found, wanted.numpy(), rtol=1e-5, atol=1e-6)
