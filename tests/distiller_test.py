import dataclasses
import functools

import keras
import numpy as np
import pytest
import tensorflow as tf

from deit_tf import checkpoint, config, dataset, distiller, losses, model, optimizer, source
from deit_tf import teacher as teaching

BATCH, STEPS, CLASSES = 8, 5, 4
STUDENT = config.network(
    "deit",
    num_classes=CLASSES,
    image_size=16,
    patch_size=4,
    width=32,
    depth=2,
    heads=2,
    distilled=True,
    drop_path_rate=0.3,
)
PLAIN = dataclasses.replace(STUDENT, distilled=False)
TEACHER = config.network("regnety_tiny", num_classes=CLASSES, image_size=16, depth=2)
HARD = config.DistillConfig(distillation="hard", teacher="given")


def _batches():
    """Five batches of noise, drawn as the pipeline draws: masks come with the batch."""
    rng = np.random.RandomState(0)
    count = BATCH * STEPS
    rates = np.array(STUDENT.drop_path_rates)[:, None]
    return {
        "image": rng.uniform(0, 255, (count, 16, 16, 3)).astype(np.float32),
        "label": np.eye(CLASSES, dtype=np.float32)[rng.randint(0, CLASSES, count)],
        "keep": (rng.uniform(size=(count, 2, 2)) >= rates).astype(np.float32),
    }


def _network(facts, seed=0):
    keras.utils.set_random_seed(seed)
    return checkpoint.build_network(facts)


@functools.cache  # several tests compare with the same run
def _train(strategy, make, facts=HARD, student=STUDENT, jit=False, accumulate=1):
    """Weights before and after five steps, and what was logged."""
    batches = tf.data.Dataset.from_tensor_slices(_batches()).batch(BATCH, drop_remainder=True)
    with strategy.scope():
        network = _network(student)
        teacher = _network(TEACHER, seed=1)
        pair = distiller.Distiller(network, facts, teacher)
        pair.compile(make(), jit_compile=jit, accumulate=accumulate)
    before = [np.asarray(w) for w in network.get_weights()]
    logs = pair.fit(batches, epochs=1, steps_per_epoch=STEPS, shuffle=False, verbose=0).history
    return before, network.get_weights(), logs


number = keras.ops.convert_to_numpy  # of one replica's copy, where there are several


def _distance(one, other):
    return np.sqrt(sum(np.sum(np.square(a - b)) for a, b in zip(one, other, strict=True)))


def _sgd():
    return optimizer.SGD(0.05)


def _largest(one, other):
    return max(np.max(np.abs(a - b)) for a, b in zip(one, other, strict=True))


@pytest.mark.parametrize(
    ("kind", "student", "jit"),
    [
        ("hard", STUDENT, False),
        pytest.param("hard", STUDENT, True, marks=pytest.mark.slow),
        pytest.param("hard", PLAIN, False, marks=pytest.mark.slow),
        ("soft", PLAIN, False),
    ],
)
def test_two_replicas_train_as_one(replicas, kind, student, jit):
    facts = HARD if kind == "hard" else dataclasses.replace(HARD, distillation=kind, tau=2.0)
    _, one, logs_one = _train(replicas[0], _sgd, facts, student)
    before, two, logs_two = _train(replicas[1], _sgd, facts, student, jit=jit)
    assert _largest(one, two) <= 1e-6
    assert _largest(before, two) > 1e-3  # it moved
    assert logs_one.keys() == logs_two.keys()
    for name, values in logs_one.items():
        np.testing.assert_allclose(values, logs_two[name], rtol=1e-5, err_msg=name)


@pytest.mark.slow
def test_a_saved_model_teaches_two_replicas_by_xla(replicas, tmp_path):
    """A teacher of others inside the compiled step, with its own resolution and constants."""
    image = keras.Input((12, 12, 3))
    x = keras.layers.GlobalAveragePooling2D()(keras.layers.Conv2D(4, 3)(image))
    keras.Model(image, keras.layers.Dense(CLASSES, activation="softmax")(x)).export(
        tmp_path / "net", verbose=False
    )
    facts = config.DistillConfig(
        "soft", str(tmp_path / "net"), (0.5, 0.5, 0.5), (0.2, 0.2, 0.2), tau=2.0
    )
    trained = []
    for strategy, jit in ((replicas[0], False), (replicas[1], True)):
        with strategy.scope():
            network, taught_by = _network(STUDENT), teaching.load_teacher(facts, 16)
            pair = distiller.Distiller(network, facts, taught_by)
            pair.compile(_sgd(), jit_compile=jit)
        assert len(pair.trainable_variables) == len(network.trainable_variables)
        batches = tf.data.Dataset.from_tensor_slices(_batches()).batch(BATCH, drop_remainder=True)
        pair.fit(batches, epochs=1, steps_per_epoch=2, shuffle=False, verbose=0)
        trained.append(network.get_weights())
    assert _largest(*trained) <= 1e-6


def test_without_train_mode_no_path_is_dropped():
    batch = {name: value[:BATCH] for name, value in _batches().items()}
    found = []
    for train_mode in (True, False):
        pair = distiller.Distiller(_network(STUDENT), train_mode=train_mode)
        pair.compile(_sgd())
        ones = np.ones_like(batch["keep"])
        losses_of = [
            float(pair.forward_backward(batch["image"], batch["label"], keep)[1][0])
            for keep in (batch["keep"], ones)
        ]
        found.append(losses_of[0] == losses_of[1])
    assert found == [False, True]


@pytest.mark.parametrize(
    ("strategy", "jit"),
    [(0, True), pytest.param(1, False, marks=pytest.mark.slow)],
    ids=["1 replica", "2 replicas"],
)
def test_micro_batches_train_as_the_whole(replicas, strategy, jit):
    _, one, logs_one = _train(replicas[0], _sgd)
    _, two, logs_two = _train(replicas[strategy], _sgd, jit=jit, accumulate=4)
    assert _largest(one, two) <= 1e-6
    for name, values in logs_one.items():
        np.testing.assert_allclose(values, logs_two[name], rtol=1e-5, err_msg=name)


def _pair_of(strategy, student, schedule="cosine"):
    """A student with an average, AdamW and a schedule."""
    facts = config.OptimizerConfig(lr=0.05, epochs=1, warmup_epochs=0.0, lr_schedule=schedule)
    with strategy.scope():
        network = _network(student)
        average = optimizer.Average(network, _network(student), 0.5)
        pair = distiller.Distiller(network, average=average)
        pair.compile(optimizer.build(facts, 512, STEPS, network.trainable_variables))
    return pair


def _fit(pair, data):
    batches = tf.data.Dataset.from_tensor_slices(data).batch(BATCH, drop_remainder=True)
    return pair.fit(batches, epochs=1, shuffle=False, verbose=0).history


@pytest.mark.parametrize(
    "student",
    [STUDENT, pytest.param(TEACHER, marks=pytest.mark.slow)],
    ids=["deit", "batch statistics"],
)
def test_what_is_not_finite_on_one_replica_is_left_out_on_all(replicas, student):
    bad, data = 2, _batches()
    worse = {**data, "image": data["image"].copy()}
    worse["image"][(bad + 1) * BATCH - 1, 3, 3] = np.nan  # the last image: replica 1's alone
    pair = _pair_of(replicas[1], student)
    logs = _fit(pair, worse)
    assert logs["bad_steps"] == [1.0]
    assert np.isfinite(logs["loss"][0])

    other = _pair_of(replicas[1], student)  # which makes no update at that step
    _fit(other, {name: value[: bad * BATCH] for name, value in data.items()})
    other.position.assign_add(1)
    _fit(other, {name: value[(bad + 1) * BATCH :] for name, value in data.items()})

    counts = [(int(number(p.position)), int(number(p.optimizer.iterations))) for p in (pair, other)]
    assert counts == [(STEPS, STEPS - 1)] * 2
    assert int(number(pair.bad_in_a_row)) == 0  # good ones came after it
    for one, two in (
        (pair.student.weights, other.student.weights),
        (pair.average.network.weights, other.average.network.weights),
        (pair.optimizer.variables, other.optimizer.variables),
    ):
        for a, b in zip(one, two, strict=True):
            np.testing.assert_array_equal(number(a), number(b), err_msg=a.path)
            if hasattr(a.value, "values"):
                copies = [copy.numpy() for copy in a.value.values]
                np.testing.assert_array_equal(*copies, err_msg=a.path)


def test_a_gradient_beyond_float32_is_left_out(replicas):
    """Each part of it is finite; its square, which Adam keeps, is not."""
    data = {name: value[:BATCH] for name, value in _batches().items()}
    data["label"] = data["label"] * 1e25
    pair = _pair_of(replicas[0], STUDENT)
    before = pair.student.get_weights()
    logs = _fit(pair, data)
    assert logs["bad_steps"] == [1.0]
    assert _largest(before, pair.student.get_weights()) == 0
    assert all(np.all(number(v) == 0) for v in pair.optimizer.variables if len(v.shape))


def test_bad_steps_are_counted_in_a_row(replicas):
    data = _batches()
    data["label"][:] = np.nan
    pair = _pair_of(replicas[0], STUDENT)
    before = pair.student.get_weights()
    logs = _fit(pair, data)
    assert (logs["bad_steps"], int(number(pair.bad_in_a_row))) == ([STEPS], STEPS)
    assert _largest(before, pair.student.get_weights()) == 0


def _clipped(clip_norm):
    # Momentum 0 and epsilon large: the update is nearly the gradient, so that its size shows.
    return lambda: optimizer.AdamW(
        0.05, beta_1=0.0, beta_2=0.0, epsilon=1e3, weight_decay=0.0, clip_norm=clip_norm
    )


@pytest.mark.slow
def test_the_gradient_of_the_whole_batch_is_clipped_not_each_replicas(replicas):
    clip = 1e-3
    before, one, _ = _train(replicas[0], _clipped(clip))
    _, two, _ = _train(replicas[1], _clipped(clip))
    assert _distance(one, two) <= 1e-3 * _distance(before, one)
    # Each step goes as far as the limit lets it, in much the same direction: were a replica's part
    # clipped, two would go twice as far; were nothing, a thousand times.
    limit = STEPS * clip * 0.05 / 1e3
    assert 0.5 * limit < _distance(before, two) <= 1.001 * limit


@pytest.mark.parametrize(
    "strategy", [0, pytest.param(1, marks=pytest.mark.slow)], ids=["1 replica", "2 replicas"]
)
def test_the_average_follows_every_update_and_is_what_is_evaluated(replicas, strategy):
    decay, data = 0.7, _batches()
    with replicas[strategy].scope():
        network = _network(TEACHER)
        average = optimizer.Average(network, _network(TEACHER, seed=5), decay)
        pair = distiller.Distiller(network, average=average)
        pair.compile(_sgd())
    expected = [np.asarray(w, np.float64) for w in network.get_weights()]

    class Follow(keras.callbacks.Callback):
        def on_train_batch_end(self, batch, logs=None):
            for i, weight in enumerate(network.get_weights()):
                expected[i] = decay * expected[i] + (1 - decay) * weight

    train = tf.data.Dataset.from_tensor_slices(data).batch(BATCH)
    weight = np.ones(len(data["image"]), np.float32)
    test = {"image": data["image"], "label": data["label"], "weight": weight}
    tests = tf.data.Dataset.from_tensor_slices(test).batch(BATCH)
    logs = pair.fit(
        train, validation_data=tests, verbose=0, shuffle=False, callbacks=[Follow()]
    ).history
    for found, wanted in zip(average.network.get_weights(), expected, strict=True):
        np.testing.assert_allclose(found, wanted, rtol=1e-5, atol=1e-6)
    with replicas[strategy].scope():
        mean, last = (distiller.measure(net, tests) for net in (average.network, network))
    assert logs["val_cls_loss"][0] == pytest.approx(mean["cls"]["loss"], rel=1e-6)
    assert abs(mean["cls"]["loss"] - last["cls"]["loss"]) > 1e-3
    ours = {w.path for w in network.weights}
    assert {w.path for w in pair.trainable_variables} <= ours


@pytest.mark.parametrize("jit", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_regnet_trains_on_two_replicas(replicas, jit):
    facts = config.DistillConfig()
    batches = tf.data.Dataset.from_tensor_slices(_batches()).batch(BATCH, drop_remainder=True)
    with replicas[1].scope():
        network = _network(TEACHER)
        pair = distiller.Distiller(network, facts)
        pair.compile(_sgd(), jit_compile=jit)
    before = network.get_weights()
    pair.fit(batches, epochs=1, shuffle=False, verbose=0)
    moved = {
        w.path: not np.array_equal(w.numpy(), b)
        for w, b in zip(network.weights, before, strict=True)
    }
    assert all(moved[path] for path in moved if path.endswith(("moving_mean", "kernel")))
    for weight in network.weights:  # batch statistics too are the same on both replicas
        one, two = (copy.numpy() for copy in weight.value.values)
        np.testing.assert_array_equal(one, two, err_msg=weight.path)


@pytest.mark.parametrize("student", [STUDENT, PLAIN], ids=["distilled", "plain"])
@pytest.mark.parametrize("kind", ["hard", "soft", "none"])
def test_objective_is_the_papers(kind, student):
    facts = config.DistillConfig(
        distillation=kind, teacher="given", alpha=0.3, tau=2.0, soft_reduction="batchmean"
    )
    rng = np.random.RandomState(0)
    heads = ("cls", "dist") if student.distilled else ("cls",)
    logits = {head: tf.constant(rng.standard_normal((6, CLASSES)), tf.float32) for head in heads}
    label = tf.one_hot(rng.randint(0, CLASSES, 6), CLASSES)
    taught = tf.constant(rng.standard_normal((6, CLASSES)), tf.float32)
    pair = distiller.Distiller(_network(student), facts, _network(TEACHER))
    terms = pair.losses_of(logits, label, taught if kind != "none" else None)
    label_terms = [losses.soft_target_cross_entropy(logits[head], label) for head in heads]
    pupil = logits[heads[-1]]
    if kind == "none":
        expected = sum(label_terms) / len(heads)
    elif kind == "hard":
        expected = 0.7 * label_terms[0] + 0.3 * losses.hard_distillation(pupil, taught)
    else:
        term = losses.soft_distillation(pupil, taught, 2.0, "batchmean")
        expected = 0.7 * label_terms[0] + 0.3 * term
    np.testing.assert_allclose(terms["loss"], expected, rtol=1e-6)


def test_teacher_is_frozen_in_inference_mode_and_not_tracked():
    network, teacher = _network(STUDENT), _network(TEACHER, seed=1)
    pair = distiller.Distiller(network, HARD, teacher)
    pair.compile(_sgd())
    before = teacher.get_weights()
    data = tf.data.Dataset.from_tensor_slices(_batches()).batch(BATCH)
    pair.fit(data, verbose=0, shuffle=False)
    assert _largest(before, teacher.get_weights()) == 0  # its batch statistics too
    ours = {w.path for w in network.weights}
    assert {w.path for w in pair.weights} - ours == set(distiller._COUNTS)
    assert {w.path for w in pair.trainable_variables} == ours


def test_the_sums_of_a_step_are_those_of_its_images():
    network = _network(STUDENT)
    pair = distiller.Distiller(network, HARD, _network(TEACHER, seed=1), train_mode=False)
    pair.compile(_sgd())
    batch = {name: tf.constant(value[:7]) for name, value in _batches().items()}
    taught = tf.one_hot([0, 1, 2, 3, 0, 1, 2], CLASSES)
    _, sums = pair.forward_backward(batch["image"], batch["label"], None, taught)
    logits = network(batch["image"], training=False)
    terms = pair.losses_of(logits, batch["label"], taught)
    decided, truth = (np.argmax(v, -1) for v in (model.fuse(logits), batch["label"]))
    expected = [np.sum(terms[name]) for name in ("loss", "class_loss", "distillation_loss")]
    expected += [np.sum(decided == truth), 7]
    assert 0 < expected[3] < 7  # so that hits tell something
    np.testing.assert_allclose(sums, expected, rtol=1e-5)


@pytest.mark.parametrize("accumulate", [2, 4])
def test_micro_batches_have_the_sums_and_gradients_of_the_whole(accumulate):
    network = _network(STUDENT)
    batch = {name: tf.constant(value[:BATCH]) for name, value in _batches().items()}
    found = []
    for count in (1, accumulate):
        pair = distiller.Distiller(network)
        pair.compile(_sgd(), accumulate=count)
        found.append(pair._work(batch))
    for one, other in zip(*(gradients for gradients, _ in found), strict=True):
        np.testing.assert_allclose(one, other, atol=1e-6)
    np.testing.assert_allclose(*(sums for _, sums in found), rtol=1e-5)


def test_a_bad_step_among_good_ones_changes_the_counts_alone():
    network = _network(PLAIN)
    pair = distiller.Distiller(network)
    pair.compile(_sgd())
    good = {name: tf.constant(value[:BATCH]) for name, value in _batches().items()}
    bad = {**good, "label": good["label"] * np.nan}
    in_a_row = []
    for batch in (good, bad, bad, good):
        before = network.get_weights()
        logs = pair.train_step(batch)
        moved = _largest(before, network.get_weights())
        assert (moved > 0) == (batch is good)
        assert np.isfinite(logs["loss"])
        in_a_row.append(int(number(pair.bad_in_a_row)))
    assert in_a_row == [0, 1, 2, 0]
    assert int(number(pair.position)) == 4
    assert int(number(pair.bad_steps)) == 2
    assert int(number(pair.optimizer.iterations)) == 2


def test_all_know_of_one_machine_that_is_to_stop():
    pair = distiller.Distiller(_network(PLAIN))
    pair.compile(_sgd())
    batch = {name: tf.constant(v[:BATCH]) for name, v in _batches().items()}
    for step in (pair.train_step, pair.test_step):
        for leaving in (0, 1, 0):
            pair.leaving.assign(leaving)
            step({**batch, "weight": tf.ones(BATCH)})
            assert int(number(pair.all_leave)) == leaving


def test_teacher_and_student_see_the_same_raw_pixels():
    network, teacher = _network(STUDENT), _network(TEACHER, seed=1)
    seen = {}
    for name, member in {"student": network, "teacher": teacher}.items():
        inner = member.normalize.call

        def spy(image, name=name, inner=inner):
            seen[name] = image.numpy()
            return inner(image)

        member.normalize.call = spy
    pair = distiller.Distiller(network, HARD, teacher)
    pair.compile(_sgd())
    batch = {name: tf.constant(v[:BATCH]) for name, v in _batches().items()}
    pair.train_step(batch)
    np.testing.assert_array_equal(seen["student"], batch["image"])
    np.testing.assert_array_equal(seen["teacher"], batch["image"])


@pytest.mark.parametrize(
    ("strategy", "fusion"), [(0, "softmax"), (1, "logits")], ids=["1 replica", "2 replicas"]
)
def test_measures_every_head_once_an_image(replicas, strategy, fusion):
    with replicas[strategy].scope():
        network = _network(dataclasses.replace(STUDENT, num_classes=10))
    rng = np.random.RandomState(0)
    images = rng.uniform(0, 255, (11, 16, 16, 3)).astype(np.float32)
    label = rng.randint(0, 10, 11)
    logits = {k: np.asarray(v) for k, v in network(images, training=False).items()}
    logits["fused"] = np.asarray(model.fuse(logits, fusion))
    filled = np.concatenate([images, images[:5]])
    batches = tf.data.Dataset.from_tensor_slices(
        {
            "image": filled,
            "label": np.eye(10, dtype=np.float32)[np.concatenate([label, label[:5]])],
            "weight": np.float32([1] * 11 + [0] * 5),
        }
    ).batch(8)
    with replicas[strategy].scope():
        measured = distiller.measure(network, batches, fusion)
    assert list(measured) == ["images", "cls", "dist", "fused"]
    assert measured["images"] == 11
    for head, values in logits.items():
        rank = (values > values[np.arange(11), label][:, None]).sum(-1)
        assert measured[head]["top1"] == pytest.approx((rank < 1).mean())
        assert measured[head]["top5"] == pytest.approx((rank < 5).mean())
        loss = -np.asarray(keras.ops.log_softmax(values))[np.arange(11), label].mean()
        assert measured[head]["loss"] == pytest.approx(loss, rel=1e-5)


@pytest.mark.slow
def test_trains_in_bfloat16_near_float32(replicas):
    _, exact, logs = _train(replicas[0], _sgd)
    keras.config.set_dtype_policy("mixed_bfloat16")
    before, low, logs_low = _train(replicas[0], _sgd, jit=True)
    assert all(weight.dtype == np.float32 for weight in low)
    assert _distance(low, exact) < 0.1 * _distance(before, exact)
    np.testing.assert_allclose(logs_low["loss"], logs["loss"], rtol=0.02)


def test_fit_validates_between_epochs_without_mixing_the_numbers():
    network = _network(STUDENT)
    pair = distiller.Distiller(network, HARD, _network(TEACHER))
    pair.compile(optimizer.SGD(0.0))
    data = _batches()
    train = tf.data.Dataset.from_tensor_slices(data).batch(BATCH)
    weight = np.ones(len(data["image"]), np.float32)
    test = {"image": data["image"], "label": data["label"], "weight": weight}
    tests = tf.data.Dataset.from_tensor_slices(test).batch(BATCH)
    history = pair.fit(train, epochs=2, validation_data=tests, verbose=0, shuffle=False).history
    assert {name for name in history if not name.startswith("val_")} == {
        "loss",
        "class_loss",
        "distillation_loss",
        "top1",
        "bad_steps",
    }
    assert history["loss"][0] == history["loss"][1]  # the rate is 0: each epoch starts anew
    alone = distiller.measure(network, tests)
    for epoch in range(2):
        assert history["val_dist_loss"][epoch] == pytest.approx(alone["dist"]["loss"], rel=1e-6)


def test_refuses_a_teacher_that_cannot_teach():
    network = _network(STUDENT)
    with pytest.raises(config.InputError, match="distillation needs a teacher"):
        distiller.Distiller(network, HARD)
    other = _network(dataclasses.replace(TEACHER, num_classes=7))
    with pytest.raises(config.InputError, match="the teacher has 7 classes, the student 4"):
        distiller.Distiller(network, HARD, other)


def test_a_network_that_always_says_the_same_is_not_always_right():
    label = tf.one_hot([0, 3, 7, 9], 10)
    flat = tf.zeros((4, 10))
    assert distiller._hits(flat, label, 1).numpy().tolist() == [1, 0, 0, 0]
    assert distiller._hits(flat, label, 5).numpy().tolist() == [1, 1, 0, 0]


def test_pipeline_and_student_fit_together(digits_config):
    whole = digits_config(epochs=2)
    train = source.open_source(whole.data).train
    network = model.build_deit(whole.network)
    pair = distiller.Distiller(network)
    pair.compile(optimizer.AdamW(2e-3))
    batches = dataset.train_batches(train, whole)
    history = pair.fit(batches, epochs=2, steps_per_epoch=21, verbose=0, shuffle=False).history
    assert history["loss"][1] < history["loss"][0]
