import numpy as np
import pytest

from deit_tf import config, model, regnet, weights

NANO = config.network(
    "deit",
    num_classes=5,
    image_size=16,
    patch_size=4,
    width=16,
    depth=2,
    heads=2,
    distilled=True,
)


def _network(seed=0, **changes):
    """A small network whose weights are all random."""
    network = model.build_deit(NANO, **changes)
    rng = np.random.RandomState(seed)
    for weight in network.weights:
        weight.assign(rng.standard_normal(weight.shape) * 0.1)
    return network


def _same(one, other, but=()):
    """Whether two networks have the same weights, but for some paths."""
    a, b = weights.of(one), weights.of(other)
    return all(np.array_equal(a[path], b[path]) for path in a if path not in but)


def test_assign_is_exact():
    one, other = _network(0), _network(1)
    weights.assign(other, weights.of(one), "one")
    assert _same(one, other)


def test_assign_names_faults_and_changes_nothing():
    network, before = _network(0), weights.of(_network(0))
    given = weights.of(_network(1))
    given["norm/gamma"] = np.full(16, np.inf)
    given["head/kernel"] = np.zeros((16, 4))
    given["more"] = np.zeros(1)
    del given["norm/beta"], given["tokens/cls_token"]
    with pytest.raises(
        config.InputError,
        match=r"^file does not fit the network: missing: tokens/cls_token, norm/beta; left over:"
        r" more; of another shape .in Keras. layout.: head/kernel \(16, 4\), not \(16, 5\); not"
        r" finite: norm/gamma$",
    ):
        weights.assign(network, given, "file")
    assert all(np.array_equal(before[path], value) for path, value in weights.of(network).items())


def test_many_faults_are_counted():
    with pytest.raises(config.InputError, match=r"missing: .*, .*, .*, .* and \d+ more$"):
        weights.assign(_network(), {}, "file")


def test_start_keeps_everything_where_nothing_differs():
    one, other = _network(0), _network(1)
    assert weights.start(other, weights.of(one), "one", same_classes=True) == []
    assert _same(one, other)


def test_another_resolution_resizes_positions_alone():
    one, other = _network(0), _network(1, image_size=24)
    changes = weights.start(other, weights.of(one), "one", same_classes=True)
    assert changes == ["pos_embed resized (bicubic) from 16 patches to 36"]
    assert _same(one, other, but=["tokens/pos_embed"])
    before, after = (weights.of(n)["tokens/pos_embed"] for n in (one, other))
    np.testing.assert_array_equal(before[:, :2], after[:, :2])


@pytest.mark.parametrize(("same_classes", "num_classes"), [(False, 5), (True, 7), (False, 7)])
def test_other_classes_get_new_heads(same_classes, num_classes):
    one, other = _network(0), _network(1, num_classes=num_classes)
    fresh = weights.of(other)
    changes = weights.start(other, weights.of(one), "one", same_classes)
    assert changes == [
        f"{head} is new (5 classes before, {num_classes} now)" for head in ("head", "head_dist")
    ]
    heads = [path for path in fresh if path.startswith("head")]
    assert len(heads) == 4
    assert _same(one, other, but=heads)
    found = weights.of(other)
    assert all(np.array_equal(fresh[path], found[path]) for path in heads)


def test_a_distillation_token_is_dropped():
    one, other = _network(0), _network(1, distilled=False, image_size=24)
    changes = weights.start(other, weights.of(one), "one", same_classes=True)
    assert changes[1:] == ["the distillation token, its position and its head are dropped"]
    before, after = (weights.of(n)["tokens/pos_embed"] for n in (one, other))
    assert after.shape == (1, 37, 16)
    np.testing.assert_array_equal(before[:, :1], after[:, :1])
    _is_of_the_grid(before, after, 2, 1)


def test_a_distillation_token_is_added():
    one, other = _network(0, distilled=False), _network(1, image_size=24)
    fresh = weights.of(other)
    changes = weights.start(other, weights.of(one), "one", same_classes=True)
    assert changes[1:] == ["the distillation token, its position and its head are new"]
    before, after = (weights.of(n)["tokens/pos_embed"] for n in (one, other))
    np.testing.assert_array_equal(after[:, :1], before[:, :1])
    np.testing.assert_array_equal(after[:, 1:2], fresh["tokens/pos_embed"][:, 1:2])
    found = weights.of(other)
    for path in ("tokens/dist_token", "head_dist/kernel", "head_dist/bias"):
        np.testing.assert_array_equal(found[path], fresh[path])
    _is_of_the_grid(before, after, 1, 2)


def _is_of_the_grid(before, after, first, then):
    """Asserts that the patches' positions were resized apart from the tokens'."""
    from deit_tf import resize

    expected = resize.pos_embed(before[:, first:], 0, 36)
    np.testing.assert_array_equal(after[:, then:], expected)


def test_a_regnety_gets_a_new_head():
    facts = config.network("regnety_tiny", num_classes=3, depth=1)
    one = regnet.build_regnety(facts)
    other = regnet.build_regnety(config.network("regnety_tiny", num_classes=4, depth=1))
    assert weights.start(other, weights.of(one), "one", same_classes=False) == [
        "head is new (3 classes before, 4 now)"
    ]
    assert _same(one, other, but=["head/kernel", "head/bias"])


@pytest.mark.parametrize("distilled", [True, False])
def test_another_width_is_refused(distilled):
    wide = _network(width=32, distilled=distilled)
    with pytest.raises(config.InputError, match=r"of another shape .*: patch_embed/proj/kernel"):
        weights.start(wide, weights.of(_network()), "one", same_classes=True)
