"""One replica, two replicas, two workers: the same training; and planted faults, which are seen."""

import importlib.util
import json
import os
import pathlib
import socket
import subprocess
import sys

import numpy as np
import pytest
import tensorflow as tf

ROOT = pathlib.Path(__file__).parent.parent
SCRIPT = pathlib.Path(__file__).with_name("ten_steps.py")
CASES = ("sgd", "adamw", "sgd slice")


def free_ports(count):
    """Ports of this machine that nothing listens at."""
    sockets = [socket.socket() for _ in range(count)]
    for one in sockets:
        one.bind(("127.0.0.1", 0))
    ports = [one.getsockname()[1] for one in sockets]
    for one in sockets:
        one.close()
    return ports


def start_workers(arguments, logs, count=2):
    """Processes of this Python, each a worker of the same cluster on loopback."""
    hosts = [f"127.0.0.1:{port}" for port in free_ports(count)]
    found = []
    for i in range(count):
        task = {"cluster": {"worker": hosts}, "task": {"type": "worker", "index": i}}
        environment = {"TF_CONFIG": json.dumps(task), "PYTHONPATH": str(ROOT)}
        with open(logs / f"worker_{i}.log", "w") as log:
            found.append(
                subprocess.Popen(
                    [sys.executable, *map(str, arguments)],
                    cwd=ROOT,
                    env={**os.environ, **environment},
                    stdout=log,
                    stderr=subprocess.STDOUT,
                )
            )
    return found


@pytest.fixture(scope="module")
def by_workers(data_dir, tmp_path_factory):
    """Function of a case: the weights that two workers have trained."""
    out = tmp_path_factory.mktemp("workers")
    workers = start_workers([SCRIPT, data_dir, out, *CASES], out)
    try:
        codes = [worker.wait(timeout=300) for worker in workers]
    finally:
        for worker in workers:
            worker.kill()
    assert codes == [0, 0], (out / "worker_0.log").read_text()[-2000:]
    return lambda case: list(np.load(out / f"{case}.npz").values())


@pytest.fixture(scope="module")
def here(data_dir):
    """Function (replicas, case): weights before and after, trained in this process."""
    spec = importlib.util.spec_from_file_location("ten_steps", SCRIPT)
    ten_steps = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(ten_steps)
    strategies = {1: tf.distribute.get_strategy()}
    strategies[2] = tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"])
    found = {}

    def train(replicas, case):
        if (replicas, case) not in found:
            found[replicas, case] = ten_steps.train(strategies[replicas], data_dir, case)
        return found[replicas, case]

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


@pytest.mark.parametrize("case", ["sgd", "adamw"])
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
