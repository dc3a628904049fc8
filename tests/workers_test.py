"""One replica, two replicas, two workers: the same training; and planted faults, which are seen."""

import importlib.util
import pathlib
import time

import numpy as np
import pytest

from deit_tf import checkpoint, rundir

ROOT = pathlib.Path(__file__).parent.parent
SCRIPT = pathlib.Path(__file__).with_name("ten_steps.py")
CASES = ("sgd", "adamw", "sgd slice")


@pytest.fixture(scope="module")
def by_workers(data_dir, tmp_path_factory, start_workers, finish):
    """Function of a case: the weights that two workers have trained."""
    out = tmp_path_factory.mktemp("workers")
    workers = start_workers([SCRIPT, data_dir, out, *CASES], out)
    assert finish(workers) == [0, 0], (out / "worker_0.log").read_text()[-2000:]
    return lambda case: list(np.load(out / f"{case}.npz").values())


@pytest.fixture(scope="module")
def here(data_dir, replicas):
    """Function (replicas, case): weights before and after, trained in this process."""
    spec = importlib.util.spec_from_file_location("ten_steps", SCRIPT)
    ten_steps = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(ten_steps)
    found = {}

    def train(count, case):
        if (count, case) not in found:
            found[count, case] = ten_steps.train(replicas[count - 1], data_dir, case)
        return found[count, case]

    return train


def _largest(one, other):
    return max(np.max(np.abs(a - b)) for a, b in zip(one, other, strict=True))


def _distance(one, other):
    return np.sqrt(sum(np.sum(np.square(a - b)) for a, b in zip(one, other, strict=True)))


def _same(case, before, one, other):
    """Whether both are as near as the order of summing allows."""
    if case.startswith("sgd"):
        return _largest(one, other) <= 1e-6
    return _distance(one, other) <= 1e-3 * _distance(before, one)


@pytest.mark.parametrize("case", ["sgd", pytest.param("adamw", marks=pytest.mark.slow)])
def test_replicas_and_workers_train_as_one(case, here, by_workers):
    before, one = here(1, case)
    assert _distance(before, one) > 0.01  # it moved
    assert _same(case, before, one, here(2, case)[1])
    assert _same(case, before, one, by_workers(case))


@pytest.mark.parametrize("fault", ["doubled", "masks"])
def test_a_fault_on_replicas_is_seen(fault, here):
    before, one = here(1, "sgd")
    assert not _same("sgd", before, one, here(2, f"sgd {fault}")[1])


def test_a_worker_that_reads_anothers_part_is_seen(here, by_workers):
    before, one = here(1, "sgd")
    assert not _same("sgd", before, one, by_workers("sgd slice"))


NANO = (
    "-m deit_tf.train --strategy=multi_worker --model=deit --distilled --image_size=32"
    " --patch_size=16 --width=16 --depth=2 --heads=2 --num_classes=10 --batch_size=140 --epochs=2"
    " --lr_schedule=constant --warmup_epochs=0 --mix_group=14 --checkpoint_every_steps=3 --nojit"
)


def _wait_for_a_checkpoint(workers, run):
    """Waits until a run has saved within an epoch."""
    deadline = time.monotonic() + 300
    while not rundir.steps(run):
        assert all(worker.poll() is None for worker in workers), "they ended too early"
        assert time.monotonic() < deadline
        time.sleep(0.01)


@pytest.mark.slow
@pytest.mark.parametrize("asked", [0, 1], ids=["the chief", "the other"])
def test_sigterm_to_one_worker_stops_both_after_the_same_step(
    asked, data_dir, tmp_path, start_workers, finish
):
    arguments = [*NANO.split(), f"--data_dir={data_dir}", f"--run_dir={tmp_path / 'run'}"]
    workers = start_workers(arguments, tmp_path)
    _wait_for_a_checkpoint(workers, tmp_path / "run")
    workers[asked].terminate()
    assert finish(workers) == [143, 143]
    step = int(rundir.steps(tmp_path / "run")[-1].name.split("_")[1])
    for i in range(2):
        said = (tmp_path / f"worker_{i}.log").read_text()
        assert f"stopped by SIGTERM after step {step};" in said


@pytest.mark.slow
@pytest.mark.parametrize("gone", [0, 1], ids=["the chief", "the other"])
def test_a_dead_worker_is_named_and_all_go_on(gone, data_dir, tmp_path, start_workers, finish):
    flags = [*NANO.split(), f"--data_dir={data_dir}"]
    arguments = [*flags, f"--run_dir={tmp_path / 'killed'}"]
    workers = start_workers(arguments, tmp_path)
    _wait_for_a_checkpoint(workers, tmp_path / "killed")
    workers[gone].kill()
    assert finish(workers)[1 - gone] == 1
    log = (tmp_path / f"worker_{1 - gone}.log").read_text()
    assert log.strip().splitlines()[-1].startswith("error: another worker has gone (")
    assert finish(start_workers(arguments, tmp_path)) == [0, 0]
    assert "on 397 images" in (tmp_path / "worker_0.log").read_text()
    assert "on 397 images" not in (tmp_path / "worker_1.log").read_text()

    whole = [*flags, f"--run_dir={tmp_path / 'whole'}"]
    assert finish(start_workers(whole, tmp_path)) == [0, 0]
    killed, whole = (tmp_path / name for name in ("killed", "whole"))
    assert len(list((whole / "logs" / "tokens").glob("events.*"))) == 1  # the chief's alone
    assert (killed / "history.csv").read_text() == (whole / "history.csv").read_text()
    one, other = (checkpoint.load(run).get_weights() for run in (killed, whole))
    for a, b in zip(one, other, strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.slow
def test_workers_that_see_another_run_directory_are_refused(
    data_dir, tmp_path, start_workers, finish
):
    flags = [*NANO.split(), f"--data_dir={data_dir}"]
    shared = [*flags, f"--run_dir={tmp_path / 'shared'}", "--epochs=1"]
    assert finish(start_workers(shared, tmp_path)) == [0, 0]
    apart = [[*flags, f"--run_dir={tmp_path / name}"] for name in ("shared", "none")]
    assert finish(start_workers(apart, tmp_path)) == [1, 1]
    for i in range(2):
        last = (tmp_path / f"worker_{i}.log").read_text().strip().splitlines()[-1]
        assert "error: the workers differ in their flags, their data or in what they find" in last
