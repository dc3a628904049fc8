import dataclasses
import hashlib
import itertools

import numpy as np
import pytest
import tensorflow as tf

from deit_tf import config, dataset, view


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


@pytest.fixture(scope="module")
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
    images = np.concatenate([batch["image"] for batch in first])
    assert len({image.tobytes() for image in images}) == len(images)  # no draw comes twice
    other = dataclasses.replace(setup, run=config.RunConfig(seed=6))
    assert not np.array_equal(_batches(records, other, count=1)[0]["image"], first[0]["image"])


def test_flips_half_of_the_images(setup, plain):
    rng = np.random.RandomState(0)
    photo = tf.io.encode_png(rng.randint(0, 256, (8, 8, 3)).astype(np.uint8)).numpy()
    records = Records(0)
    records.extend({"image": photo, "label": 1} for _ in range(64))
    still = {**plain, "crop_min_area": 1.0, "crop_max_aspect": 1.0}
    images = {}
    for rate in (0.0, 0.5):
        augment = config.AugmentConfig(**{**still, "flip_rate": rate})
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


@pytest.fixture(scope="module")
def photos():
    """More photographs than a batch of the whole recipe, each another."""
    rng = np.random.RandomState(0)
    records = Records(0)
    for i in range(40):
        pixels = rng.randint(0, 256, (40, 48, 3)).astype(np.uint8)
        records.append({"image": tf.io.encode_png(pixels).numpy(), "label": i % 10})
    return records


@pytest.fixture(scope="module")
def recipe(setup):
    """The whole recipe, in batches of four groups of four."""
    augment = config.AugmentConfig(color_jitter=0.3, rotation_degrees=5.0, mix_group=4)
    data = dataclasses.replace(setup.data, batch_size=16)
    optimizer = dataclasses.replace(setup.optimizer, epochs=2)
    return dataclasses.replace(setup, augment=augment, data=data, optimizer=optimizer)


def _hashes(batches):
    """One for each batch, of all that it holds."""
    found = []
    for batch in batches:
        whole = hashlib.sha256()
        for name in sorted(batch):
            whole.update(name.encode() + np.asarray(batch[name]).tobytes())
        found.append(whole.hexdigest())
    return found


@pytest.fixture(scope="module")
def hashes(photos, recipe):
    """Of all batches of the recipe, as it is run by default."""
    found = _hashes(dataset.train_batches(photos, recipe))
    assert len(set(found)) == 4
    return found


@pytest.mark.parametrize("cores", [1, 7])
def test_batches_do_not_depend_on_parallel_calls(photos, recipe, hashes, monkeypatch, cores):
    monkeypatch.setattr("os.sched_getaffinity", lambda pid: range(cores))
    assert _hashes(dataset.train_batches(photos, recipe)) == hashes


def test_batches_do_not_depend_on_threads(photos, recipe, hashes):
    options = tf.data.Options()
    options.threading.private_threadpool_size = 1
    options.threading.max_intra_op_parallelism = 1
    assert _hashes(dataset.train_batches(photos, recipe).with_options(options)) == hashes


@pytest.mark.parametrize(("policy", "mode"), [("3a", "pair"), ("rand-m6-n3-t3aw", "element")])
def test_nor_under_other_policies_and_modes(photos, recipe, monkeypatch, policy, mode):
    facts = dataclasses.replace(recipe.augment, auto_augment=policy, mix_mode=mode)
    other = dataclasses.replace(recipe, augment=facts)
    hashes = _hashes(dataset.train_batches(photos, other, 1))
    monkeypatch.setattr("os.sched_getaffinity", lambda pid: range(5))
    assert _hashes(dataset.train_batches(photos, other, 2)) == hashes[1:]
    assert len(set(hashes)) == 3


@pytest.mark.parametrize("step", [1, 2, 3])
def test_batches_do_not_depend_on_where_one_enters(photos, recipe, hashes, step):
    photos.read.clear()
    assert _hashes(dataset.train_batches(photos, recipe, step)) == hashes[step:]
    expected = [i for later in range(step, 4) for i in dataset.indices(photos, recipe, later)]
    assert photos.read == expected  # nothing before the entry is read


def test_batches_do_not_depend_on_workers(photos, recipe, hashes):
    parts = [list(dataset.train_batches(photos, recipe, 0, worker, 2)) for worker in (0, 1)]
    assert parts[0][0]["image"].shape[0] == 8
    joined = [
        {name: np.concatenate([one[name], other[name]]) for name in one}
        for one, other in zip(*parts, strict=True)
    ]
    assert _hashes(joined) == hashes


def test_batches_do_not_depend_on_replicas(photos, recipe, hashes, replicas):
    strategy = replicas[1]
    shared = strategy.experimental_distribute_dataset(dataset.train_batches(photos, recipe))
    joined = [
        {
            name: np.concatenate([v.numpy() for v in strategy.experimental_local_results(value)])
            for name, value in batch.items()
        }
        for batch in shared
    ]
    assert _hashes(joined) == hashes


def test_another_seed_or_epoch_gives_other_pixels(photos, recipe, hashes):
    other = dataclasses.replace(recipe, run=config.RunConfig(seed=6))
    assert not set(_hashes(dataset.train_batches(photos, other))) & set(hashes)
    assert len(set(hashes)) == len(hashes)


def test_the_whole_recipe_holds_what_it_promises(photos, recipe):
    batch = _batches(photos, recipe, count=1)[0]
    assert {name: value.shape for name, value in batch.items()} == {
        "image": (16, 32, 32, 3),
        "label": (16, 10),
        "keep": (16, 3, 2),
    }
    assert batch["image"].dtype == batch["label"].dtype == np.float32
    np.testing.assert_allclose(batch["label"].sum(-1), 1, rtol=1e-5)


def test_repeated_views_lie_in_different_groups(setup, plain):
    augment = config.AugmentConfig(**{**plain, "repeats": 3, "mix_group": 4})
    repeated = dataclasses.replace(setup, augment=augment)
    records = Records(64)
    seen = np.concatenate([dataset.indices(records, repeated, step) for step in range(8)])
    order = dataset.order(5, 0, 64)
    for position, index in enumerate(seen):  # the epoch is as long as without repeats
        block, within = divmod(position, 12)
        assert index == order[block * 4 + within % 4]
    whole = seen[:60].reshape(5, 3, 4)  # blocks, views, images
    assert (whole[:, 0] == whole[:, 1]).all()
    assert (whole[:, 0] == whole[:, 2]).all()
    assert len(np.unique(seen)) == 24  # a third of the images, and the part of a block at the end
    levels = np.concatenate([b["image"][:, 0, 0, 0] for b in _batches(records, repeated, count=8)])
    np.testing.assert_array_equal(levels.round(), seen)  # and what is trained on is just that


def test_repeated_views_are_different_views(setup, plain, photos):
    augment = config.AugmentConfig(**{**plain, "repeats": 2, "mix_group": 4})
    image = _batches(photos, dataclasses.replace(setup, augment=augment), count=1)[0]["image"]
    assert not (image[:4] == image[4:]).all(axis=(1, 2, 3)).any()


def test_a_group_shares_its_draw_and_its_partners(photos, recipe):
    facts = dataclasses.replace(recipe.augment, mixup_alpha=1.0, cutmix_alpha=0.0)
    facts = dataclasses.replace(facts, label_smoothing=0.0)
    labels = _batches(photos, dataclasses.replace(recipe, augment=facts), count=1)[0]["label"]
    indices = dataset.indices(photos, recipe, 0)
    shares = set()
    for group in range(4):
        own = indices[4 * group : 4 * group + 4] % 10
        share = None
        for i in range(4):
            label = labels[4 * group + i]
            if own[i] != own[3 - i]:
                assert set(np.flatnonzero(label)) == {own[i], own[3 - i]}
                assert share is None or label[own[i]] == pytest.approx(share, abs=1e-6)
                share = label[own[i]]
        shares.add(float(share))
    assert len(shares) == 4


@pytest.mark.parametrize(("mode", "distinct"), [("batch", 4), ("pair", 8), ("element", 16)])
def test_mixing_modes_share_as_they_say(recipe, mode, distinct):
    facts = dataclasses.replace(recipe.augment, mix_mode=mode)
    found = view.drawn(dataclasses.replace(recipe, augment=facts), 0, range(16))
    own, box = found["own"].reshape(4, 4), found["box"].reshape(4, 4, 4)
    assert len(set(zip(own.flat, map(tuple, box.reshape(16, 4)), strict=True))) == distinct
    if mode != "element":
        np.testing.assert_array_equal(own, own[:, ::-1])
        np.testing.assert_array_equal(box, box[:, ::-1])


def test_refuses_batches_that_are_not_whole_groups(setup):
    mixed = dataclasses.replace(setup, augment=config.AugmentConfig(mix_group=6))
    with pytest.raises(config.InputError, match="batch_size 8 is not a multiple of mix_group 6"):
        dataset.train_batches(Records(20), mixed)
    mixed = dataclasses.replace(setup, augment=config.AugmentConfig(mix_group=8))
    with pytest.raises(config.InputError, match=r"2 workers × mix_group 8; give --batch_size=16"):
        dataset.train_batches(Records(20), mixed, worker=0, workers=2)
