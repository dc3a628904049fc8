import dataclasses
import json
import resource

import keras
import numpy as np
import pytest

from deit_tf import checkpoint, config, distiller, optimizer, rundir, saving

NANO = config.network(
    "deit", num_classes=3, image_size=8, patch_size=4, width=8, depth=1, heads=2, distilled=True
)
CONFIG = config.Config("deit", NANO)
FACTS = {"dataset": "toys/1.0.0"}


def _train(pair, steps, seed):
    variables, rng = pair.student.trainable_variables, np.random.RandomState(seed)
    for _ in range(steps):
        gradients = [rng.standard_normal(v.shape).astype(np.float32) for v in variables]
        pair.optimizer.update(gradients, variables, pair.position.value)
        pair.optimizer.iterations.assign_add(1)
        pair.position.assign_add(1)


def _pair(seed=0, averaged=False):
    keras.utils.set_random_seed(seed)
    network = checkpoint.build_network(NANO)
    average = averaged and optimizer.Average(network, checkpoint.build_network(NANO), 0.9)
    pair = distiller.Distiller(network, average=average or None)
    pair.compile(optimizer.build(CONFIG.optimizer, 8, 4, network.trainable_variables))
    return pair


def _run(path, whole=CONFIG, facts=FACTS):
    rundir.begin(path / "run", whole, facts, ["a", "b", "c"], ["A", "B", "C"])
    return checkpoint.Run(path / "run")


def test_goes_on_bit_for_bit(tmp_path):
    pair = _pair()
    _train(pair, 3, seed=1)
    pair.bad_steps.assign(2)
    run = _run(tmp_path)
    run.epoch, run.step, run.best, run.history = 1, 3, 0.5, [{"epoch": 1, "loss": 0.25}]
    run.means = [0.1, 1 / 3, 7.0]
    run.save(pair)
    _train(pair, 2, seed=2)

    other = _pair(seed=9)
    resumed = _run(tmp_path)
    resumed.restore(other)
    assert (resumed.epoch, resumed.step, resumed.best) == (1, 3, 0.5)
    assert (resumed.bad_steps, int(other.bad_steps), int(other.position)) == (2, 2, 3)
    assert resumed.means == run.means
    assert resumed.history == run.history
    resumed.write_history()
    assert (tmp_path / "run" / "history.csv").read_text() == "epoch,loss\n1,0.25\n"
    _train(other, 2, seed=2)
    for a, b in zip(pair.student.get_weights(), other.student.get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)
    for a, b in zip(pair.optimizer.variables, other.optimizer.variables, strict=True):
        np.testing.assert_array_equal(np.asarray(a), np.asarray(b))


def test_keeps_the_newest_and_ignores_what_was_being_written(tmp_path):
    pair = _pair()
    run = _run(tmp_path)
    for step in (1, 2):
        run.step = step
        run.save(pair)
    folder = tmp_path / "run" / "checkpoints"
    assert [path.name for path in folder.iterdir()] == ["step_00000002"]
    (folder / "writing").mkdir()  # as a kill in the middle of a save leaves it
    resumed = _run(tmp_path)
    resumed.restore(pair)
    assert resumed.step == 2
    resumed.step = 3
    resumed.save(pair)
    assert [path.name for path in folder.iterdir()] == ["step_00000003"]
    several = checkpoint.Run(tmp_path / "run", keep=3)
    for several.step in (4, 5, 6):
        several.save(pair)
    names = sorted(path.name for path in folder.iterdir())
    assert names == ["step_00000004", "step_00000005", "step_00000006"]


@pytest.mark.parametrize("keep", [1, 2])
def test_the_same_step_saved_again_is_the_newest(keep, tmp_path):
    # As the end of an epoch is, at the step of a checkpoint within it, however often it was left.
    run, pair = _run(tmp_path), _pair()
    run.keep = keep
    for run.epoch in range(12):
        run.save(pair)
        again = _run(tmp_path)
        again.restore(pair)
        assert again.epoch == run.epoch
        folders = list((tmp_path / "run" / "checkpoints").iterdir())
        assert len(folders) == min(run.epoch + 1, keep)


def test_an_optimizer_of_another_kind_is_refused(tmp_path):
    run, pair = _run(tmp_path), _pair()
    run.save(pair)
    path = tmp_path / "run" / "checkpoints" / "step_00000000" / "optimizer.npz"
    with np.load(path) as stored:
        some = dict(list(stored.items())[:-1])
    np.savez(path, **some)
    with pytest.raises(config.InputError, match=r"damaged: optimizer\.npz is of another"):
        _run(tmp_path).restore(pair)


def test_a_history_that_a_kill_left_behind_is_mended(tmp_path):
    run, pair = _run(tmp_path), _pair()
    run.history = [{"epoch": 1, "lr": 0.1, "loss": 0.25, "top1": 0.5}]
    run.save(pair)  # killed before the history was written
    again = _run(tmp_path)
    again.restore(pair)
    again.mend()
    assert (tmp_path / "run" / "history.csv").read_text() == "epoch,lr,loss,top1\n1,0.1,0.25,0.5\n"
    drawn = (tmp_path / "run" / "curves.png").stat().st_mtime_ns
    again.mend()
    assert (tmp_path / "run" / "curves.png").stat().st_mtime_ns == drawn


def test_loads_last_and_best(tmp_path):
    pair = _pair()
    run = _run(tmp_path)
    best = pair.student.get_weights()
    run.save_best(pair.student)
    _train(pair, 1, seed=1)
    run.save(pair)
    for which, expected in (("best", best), ("last", pair.student.get_weights())):
        loaded = checkpoint.load(tmp_path / "run", which)
        for a, b in zip(loaded.get_weights(), expected, strict=True):
            np.testing.assert_array_equal(a, b)


def test_config_json_says_it_all(tmp_path):
    _run(tmp_path)
    record = json.loads((tmp_path / "run" / "config.json").read_text())
    assert record["config"]["network"]["width"] == 8
    assert record["facts"] == FACTS
    assert record["classes"] == ["a", "b", "c"]
    assert record["labels"] == ["A", "B", "C"]
    assert record["versions"]["keras"] == keras.__version__
    assert rundir.read_config(tmp_path / "run")["config"] == CONFIG


def test_refuses_a_directory_of_another_run(tmp_path):
    run = _run(tmp_path)
    run.save(_pair())
    other = config.Config("deit", config.network("deit", depth=2))
    with pytest.raises(config.InputError, match=r"another run \(.*depth: 1 -> 2.*give another"):
        _run(tmp_path, other)
    with pytest.raises(config.InputError, match=r"dataset: toys/1\.0\.0 -> toys/2\.0\.0"):
        _run(tmp_path, facts={"dataset": "toys/2.0.0"})
    moved = config.Config(
        "deit",
        NANO,
        data=config.DataConfig(data_dir="elsewhere"),
        distill=config.DistillConfig(teacher="moved"),
    )
    _run(tmp_path, moved)  # where data and teacher lie may change
    assert rundir.read_config(tmp_path / "run")["config"] == moved


def test_a_directory_without_a_checkpoint_holds_nothing_yet(tmp_path):
    _run(tmp_path)
    other = config.Config("deit", config.network("deit", depth=2))
    _run(tmp_path, other)
    assert rundir.read_config(tmp_path / "run")["config"] == other


def test_keeps_the_average_beside_the_weights_and_loads_it(tmp_path):
    pair = _pair(averaged=True)
    _train(pair, 2, seed=1)
    pair.average.update()
    averaged = dataclasses.replace(CONFIG, optimizer=config.OptimizerConfig(ema_decay=0.9))
    run = _run(tmp_path, averaged)
    run.save(pair)
    loaded, average = checkpoint.load(tmp_path / "run"), pair.average.network
    assert np.any(average.get_weights()[0] != pair.student.get_weights()[0])
    np.testing.assert_array_equal(loaded.get_weights()[0], average.get_weights()[0])
    other = _pair(seed=4, averaged=True)
    _run(tmp_path, averaged).restore(other)
    for one, two in ((pair.student, other.student), (average, other.average.network)):
        for a, b in zip(one.get_weights(), two.get_weights(), strict=True):
            np.testing.assert_array_equal(a, b)
    (tmp_path / "run" / "checkpoints" / "step_00000000" / rundir.AVERAGE).unlink()
    with pytest.raises(config.InputError, match=r"average\.weights\.h5 is missing"):
        checkpoint.load(tmp_path / "run")


def test_says_what_is_missing(tmp_path):
    with pytest.raises(config.InputError, match=r"no run directory: it has no config\.json"):
        checkpoint.load(tmp_path / "nothing")
    _run(tmp_path)
    for which in ("last", "best"):
        with pytest.raises(config.InputError, match=f"has no {which} checkpoint yet"):
            checkpoint.load(tmp_path / "run", which)
    with pytest.raises(config.InputError, match="choose one of last, best"):
        checkpoint.load(tmp_path / "run", "first")
    for foreign in (b"{", b"\x89PNG\xff", b'{"model_type": "deit"}'):
        (tmp_path / "run" / "config.json").write_bytes(foreign)
        with pytest.raises(config.InputError, match=r"config\.json cannot be read"):
            checkpoint.load(tmp_path / "run")
        with pytest.raises(config.InputError, match=r"config\.json cannot be read"):
            _run(tmp_path)  # whatever this is, it is not ours to overwrite
        assert (tmp_path / "run" / "config.json").read_bytes() == foreign


def test_refuses_weights_that_do_not_fit(tmp_path):
    pair = _pair()
    run = _run(tmp_path)
    run.save(pair)
    path = rundir.weights_path(tmp_path / "run")
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(config.InputError, match=r"does not fit its config\.json"):
        checkpoint.load(tmp_path / "run")


@pytest.mark.parametrize("name", ["network.weights.h5", "optimizer.npz", "state.json"])
@pytest.mark.parametrize("how", ["cut", "empty", "missing"])
def test_a_damaged_checkpoint_is_named_not_used(name, how, tmp_path):
    pair = _pair()
    run = _run(tmp_path)
    run.save(pair)
    path = tmp_path / "run" / "checkpoints" / "step_00000000" / name
    cut = path.read_bytes()[:40]
    path.unlink()
    if how != "missing":
        path.write_bytes(cut if how == "cut" else b"")
    with pytest.raises(config.InputError, match="step_00000000 is damaged"):
        _run(tmp_path).restore(pair)


def test_says_where_it_cannot_write(tmp_path):
    (tmp_path / "run").write_text("a file")
    with pytest.raises(config.InputError, match="cannot be written"):
        _run(tmp_path)


def test_history_csv_has_one_row_an_epoch(tmp_path):
    run = _run(tmp_path)
    run.write_history()
    assert not (tmp_path / "run" / "history.csv").exists()
    run.history = [{"epoch": 1, "loss": 0.5}, {"epoch": 2, "loss": 0.25, "extra": 1}]
    run.write_history()
    text = (tmp_path / "run" / "history.csv").read_text()
    assert text == "epoch,loss,extra\n1,0.5,\n2,0.25,1\n"


def _saving(tmp_path, pair, **facts):
    """The callback that keeps a run directory, as `fit` sets it up."""
    keeper = saving.SaveRun(_run(tmp_path), config.RunConfig(**facts))
    keeper.set_model(pair)
    return keeper


def test_too_many_bad_steps_in_a_row_stop_the_run(tmp_path):
    pair = _pair()
    keeper = _saving(tmp_path, pair, max_bad_steps=3)
    for count in (1, 2):
        pair.position.assign(count)
        pair.bad_in_a_row.assign(count)
        keeper.on_train_batch_end(count)
    pair.position.assign(3)
    pair.bad_in_a_row.assign(3)
    with pytest.raises(config.InputError, match=r"3 steps in a row of .*run, up to step 2, had"):
        keeper.on_train_batch_end(2)


def test_a_full_disk_leaves_the_checkpoint_before(tmp_path):
    pair = _pair()
    keeper = _saving(tmp_path, pair, checkpoint_every_steps=1)
    pair.position.assign(1)
    keeper.on_train_batch_end(0)
    before = pair.student.get_weights()
    _train(pair, 1, seed=1)
    old = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (5000, old[1]))  # no file grows beyond it
    try:
        with pytest.raises(config.InputError, match=r"can no longer be written: .*File too large"):
            keeper.on_train_batch_end(1)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, old)
    other = _pair(seed=3)
    again = _run(tmp_path)
    again.restore(other)
    assert again.step == 1
    for a, b in zip(other.student.get_weights(), before, strict=True):
        np.testing.assert_array_equal(a, b)
