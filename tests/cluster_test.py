import json
import os
import pathlib
import re
import subprocess

import pytest
import yaml
from tensorflow import errors

from deit_tf import cluster, config

PAGE = pathlib.Path(__file__).parent.parent / "docs" / "several_machines.md"


def _config(job, index, **jobs):
    hosts = {name: [f"{name}{i}:2222" for i in range(count)] for name, count in jobs.items()}
    return json.dumps({"cluster": hosts, "task": {"type": job, "index": index}})


@pytest.mark.parametrize(
    ("text", "worker", "workers"),
    [
        (_config("worker", 0, worker=2), 0, 2),
        (_config("worker", 1, worker=2), 1, 2),
        (_config("chief", 0, chief=1, worker=3), 0, 4),
        (_config("worker", 2, chief=1, worker=3), 3, 4),
        (_config("worker", "1", worker=2), 1, 2),  # as a shell writes it
    ],
)
def test_knows_which_worker_this_is(text, worker, workers, monkeypatch):
    monkeypatch.setenv("TF_CONFIG", text)
    assert cluster.find("multi_worker") == cluster.Cluster(worker, workers)
    assert cluster.find("multi_worker").is_chief == (worker == 0)
    with pytest.raises(config.InputError, match="several workers, and strategy is mirrored; give"):
        cluster.find("mirrored")  # each would take itself for the only one


def test_one_worker_or_none_is_this_machine_alone(monkeypatch):
    monkeypatch.delenv("TF_CONFIG", raising=False)
    assert cluster.find("mirrored") == cluster.Cluster(0, 1)
    monkeypatch.setenv("TF_CONFIG", _config("worker", 0, worker=1))
    assert cluster.find("one_device") == cluster.find("multi_worker") == cluster.Cluster(0, 1)


@pytest.mark.parametrize(
    ("kind", "text", "named"),
    [
        ("UnavailableError", "failed to connect to all addresses", True),
        ("InternalError", "Collective ops is aborted by: peer closed", True),
        ("InternalError", "libdevice not found at ./libdevice.10.bc", False),
        ("InvalidArgumentError", "/job:worker/task:0: not an image", False),
    ],
)
def test_another_machine_is_blamed_for_its_own_faults_alone(kind, text, named):
    error = getattr(errors, kind)(None, None, text)
    blamed = config.InputError if named else type(error)
    with pytest.raises(blamed), cluster.blaming(cluster.Cluster(0, 2), "run"):
        raise error
    with pytest.raises(type(error)), cluster.blaming(cluster.Cluster(0, 1), "run"):
        raise error


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        "[]",
        "{}",
        '{"cluster": {}, "task": {"type": "worker"}}',
        _config("worker", 2, worker=2),
        _config("ps", 0, worker=2, ps=1),
        _config("worker", 0, worker=2, evaluator=1),
    ],
)
def test_says_how_tf_config_should_be(text, monkeypatch):
    monkeypatch.setenv("TF_CONFIG", text)
    with pytest.raises(config.InputError, match=r'set (it as )?TF_CONFIG=.*"worker": \["a:2222"'):
        cluster.find("multi_worker")


def _slurm():
    """What `srun` runs, and what stands for `scontrol`."""
    script = re.search(r"srun bash -c '\n(.*?)\n' ", PAGE.read_text(), re.DOTALL)[1]
    return 'scontrol() { printf "a-1\\na-2\\n"; }\n' + script, "SLURM_PROCID"


def _kubernetes():
    """What a pod of the Job runs."""
    page = re.search(r"```yaml\n(.*?)```", PAGE.read_text(), re.DOTALL)[1]
    _, job = yaml.safe_load_all(page)
    container = job["spec"]["template"]["spec"]["containers"][0]
    return container["args"][0], "JOB_COMPLETION_INDEX"


@pytest.mark.parametrize("launch", [_slurm, _kubernetes])
@pytest.mark.parametrize("worker", [0, 1])
def test_the_pages_launchers_say_which_worker_it_is(launch, worker, monkeypatch):
    script, index = launch()
    shown = subprocess.run(
        ["bash", "-c", re.sub(r"exec python .*", 'echo "$TF_CONFIG"', script, flags=re.DOTALL)],
        env={**os.environ, index: str(worker), "SLURM_JOB_NODELIST": "a-[1-2]"},
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    monkeypatch.setenv("TF_CONFIG", shown)
    assert cluster.find("multi_worker") == cluster.Cluster(worker, 2)
