import dataclasses
import itertools

import numpy as np
import pytest
import tensorflow as tf

from deit_tf import config, dataset


class Records(list):
    """A random-access source of PNGs, image i filled with the grey level i; counts its reads."""

    def __init__(self, count):
        super().__init__(
            {"image": tf.io.encode_png(np.full((4, 4, 3), i, np.uint8)).numpy(), "label": i % 10}
            for i in range(count)
        )
        self.read = []

    def __getitems__(self, indices):
        self.read += indices
        return [self[i] for i in indices]


@pytest.fixture
def setup(digits_config):
    whole = digits_config(epochs=3, run=config.RunConfig(seed=5))
    return dataclasses.replace(whole, data=config.DataConfig(batch_size=8))


def _batches(records, setup, first_step=0, count=None):
    batches = dataset.train_batches(records, setup, first_step)
    return [
        {name: value.numpy() for name, value in batch.items()}
        for batch in itertools.islice(batches, count)
    ]


def _assert_equal(one, other):
    assert len(one) == len(other)
    for a, b in zip(one, other, strict=True):
        assert a.keys() == b.keys()
        for name in a:
            np.testing.assert_array_equal(a[name], b[name])


def test_order_is_a_function_of_seed_and_epoch():
    assert sorted(dataset.order(1, 2, 50)) == list(range(50))
    np.testing.assert_array_equal(dataset.order(1, 2, 50), dataset.order(1, 2, 50))
    assert (dataset.order(1, 2, 50) != dataset.order(1, 3, 50)).any()
    assert (dataset.order(1, 2, 50) != dataset.order(2, 2, 50)).any()
    # For ever: a run that is resumed next year must see the same images.
    np.testing.assert_array_equal(dataset.order(0, 0, 8), [3, 7, 4, 0, 2, 6, 5, 1])


def test_batches_hold_what_they_promise(setup):
    batch = _batches(Records(20), setup, count=1)[0]
    assert batch["image"].shape == (8, 32, 32, 3)
    assert batch["image"].dtype == np.float32
    assert batch["label"].shape == (8, 10)
    np.testing.assert_allclose(batch["label"].sum(-1), 1, rtol=1e-5)
    assert batch["keep"].shape == (8, 3, 2)
    assert set(np.unique(batch["keep"])) <= {0.0, 1.0}
    assert (batch["keep"][:, 0] == 1).all()  # the first block's rate is 0


def test_every_epoch_sees_whole_batches_of_different_images(setup):
    records = Records(20)
    batches = _batches(records, setup)
    assert len(batches) == 3 * (20 // 8)
    # A uniform image stays what it is under crop and rotation: its level is its index.
    seen = np.array([batch["image"][:, 0, 0, 0] for batch in batches]).reshape(3, 16).round()
    for epoch, levels in enumerate(seen):
        np.testing.assert_array_equal(levels, dataset.order(5, epoch, 20)[:16])
    for step, levels in enumerate(seen.reshape(6, 8)):
        np.testing.assert_array_equal(levels, dataset.indices(records, setup, step))


def test_entered_in_the_middle_it_goes_on_and_reads_nothing_before(setup):
    whole = _batches(Records(20), setup)
    records = Records(20)
    _assert_equal(_batches(records, setup, first_step=3), whole[3:])
    assert records.read == [*dataset.order(5, 1, 20)[8:16], *dataset.order(5, 2, 20)[:16]]


def test_draws_depend_on_seed_epoch_and_position_alone(setup):
    rng = np.random.RandomState(0)
    photo = tf.io.encode_png(rng.randint(0, 256, (40, 40, 3)).astype(np.uint8)).numpy()
    records = Records(0)
    records.extend({"image": photo, "label": 1} for _ in range(16))
    first = _batches(records, setup)
    options = tf.data.Options()
    options.autotune.enabled = False
    options.threading.private_threadpool_size = 1
    again = dataset.train_batches(records, setup).with_options(options)
    _assert_equal([{k: v.numpy() for k, v in b.items()} for b in again], first)
    images = np.concatenate([batch["image"] for batch in first])
    assert len({image.tobytes() for image in images}) == len(images)  # no draw comes twice
    other = dataclasses.replace(setup, run=config.RunConfig(seed=6))
    assert not np.array_equal(_batches(records, other, count=1)[0]["image"], first[0]["image"])


def test_flips_half_of_the_images(setup):
    rng = np.random.RandomState(0)
    photo = tf.io.encode_png(rng.randint(0, 256, (8, 8, 3)).astype(np.uint8)).numpy()
    records = Records(0)
    records.extend({"image": photo, "label": 1} for _ in range(64))
    still = {"crop_min_area": 1.0, "crop_max_aspect": 1.0}
    images = {}
    for rate in (0.0, 0.5):
        augment = config.AugmentConfig(flip_rate=rate, **still)
        batches = _batches(records, dataclasses.replace(setup, augment=augment))
        images[rate] = np.concatenate([batch["image"] for batch in batches])
    plain, mirrored = images[0.0], images[0.0][:, :, ::-1]
    flipped = (images[0.5] == mirrored).all(axis=(1, 2, 3))
    assert ((images[0.5] == plain).all(axis=(1, 2, 3)) ^ flipped).all()
    assert flipped.mean() == pytest.approx(0.5, abs=0.12)


def test_another_batch_size_leaves_the_pixels_alone(setup):
    larger = dataclasses.replace(setup, data=config.DataConfig(batch_size=16))
    small, large = _batches(Records(32), setup), _batches(Records(32), larger)
    for name in ("image", "label", "keep"):
        np.testing.assert_array_equal(
            np.concatenate([b[name] for b in small]), np.concatenate([b[name] for b in large])
        )


def test_keep_masks_fall_at_their_rates(setup):
    network = config.network("deit", depth=3, drop_path_rate=0.4)
    draw = tf.function(lambda i: dataset.keep_masks(network, tf.stack([9, i])))
    masks = np.array([draw(tf.constant(i)) for i in range(2000)])
    np.testing.assert_allclose(masks.mean(0), [[1, 1], [0.8, 0.8], [0.6, 0.6]], atol=0.04)
    both = masks[:, 2].prod(-1).mean()
    assert both == pytest.approx(0.36, abs=0.04)  # the two branches are independent


def test_no_masks_where_nothing_is_dropped(setup):
    for network in (
        config.network("regnety_tiny", num_classes=10),
        config.network("deit", num_classes=10, image_size=32, drop_path_rate=0.0),
    ):
        without = dataclasses.replace(setup, network=network)
        assert "keep" not in _batches(Records(8), without, count=1)[0]


@pytest.mark.parametrize("count", [7, 8, 19])
def test_evaluation_counts_every_image_once(setup, count):
    batches = list(dataset.eval_batches(Records(count), setup))
    assert {len(batch["image"]) for batch in batches} == {8}
    weight = np.concatenate([batch["weight"] for batch in batches])
    level = np.concatenate([batch["image"][:, 0, 0, 0] for batch in batches])
    np.testing.assert_array_equal(level[weight == 1], np.arange(count))
    assert weight.sum() == count
    label = np.concatenate([batch["label"] for batch in batches])
    np.testing.assert_array_equal(label[weight == 1].argmax(-1), np.arange(count) % 10)


def test_refuses_fewer_images_than_a_batch():
    with pytest.raises(config.InputError, match="batch_size is 8, but there are 7"):
        dataset.steps_per_epoch(Records(7), 8)


def test_evaluation_does_not_count_what_stands_for_an_unreadable_image(setup):
    records = Records(10)
    records[3] = {**records[4], "readable": False}
    batches = list(dataset.eval_batches(records, setup))
    weight = np.concatenate([batch["weight"] for batch in batches])
    np.testing.assert_array_equal(np.flatnonzero(weight), [0, 1, 2, 4, 5, 6, 7, 8, 9])
