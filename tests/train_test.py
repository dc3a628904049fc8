"""The commands as a person runs them, on the digits, with networks of a moment."""

import csv
import json
import random
import re
import shutil
import signal
import subprocess
import sys
import time

import h5py
import numpy as np
import pytest
from PIL import Image

from deit_tf import checkpoint, rundir

CONFIGS = "deit_tf/configs"
TEACHER = ["--depth=2", "--initial_width=16", "--slope=16", "--group_width=16", "--epochs=2"]
TEACHER += ["--nojit"]
STUDENT = ["--width=32", "--depth=2", "--heads=2", "--patch_size=16", "--epochs=3"]
STUDENT += ["--ema_decay=0.9", "--clip_norm=1", "--lr_schedule=epoch", "--warmup_epochs=2"]
STUDENT += ["--nojit"]


@pytest.fixture(scope="module")
def runs(tmp_path_factory, command, data_dir):
    """A teacher and a student of it, trained by the two flagfiles of `make train`."""
    folder = tmp_path_factory.mktemp("runs")
    answers = {}
    for name, flags in {"teacher": TEACHER, "distilled": STUDENT}.items():
        answers[name] = command(
            "deit_tf.train",
            f"--flagfile={CONFIGS}/digits_{name}.flags",
            f"--data_dir={data_dir}",
            f"--run_dir={folder / name}",
            *flags,
            *([f"--teacher={folder / 'teacher'}"] if name == "distilled" else []),
        )
        assert answers[name].returncode == 0, answers[name].stderr
    return folder, answers


def _history(run):
    """The rows of a run's history.csv."""
    return list(csv.DictReader((run / "history.csv").read_text().splitlines()))


def test_ends_with_a_table(runs):
    _, answers = runs
    rows = [line.split("  ")[0] for line in answers["distilled"].stdout.splitlines()[-4:]]
    assert rows == ["teacher", "class head", "distillation head", "fusion"]
    assert answers["teacher"].stdout.splitlines()[-1].startswith("class head")


def test_a_log_file_gets_a_line_an_epoch_and_no_bar(runs):
    _, answers = runs
    log = answers["distilled"].stderr
    line = r"epoch \d/3: \d+ images/s, \d:\d\d:\d\d left, \d\.\d GB, loss \d\.\d+, val_cls_top1 .*"
    assert len(re.findall(line, log)) == 3
    assert "\r" not in log


def test_prints_and_stores_the_checksum_of_the_split(runs):
    folder, answers = runs
    stored = json.loads((folder / "distilled" / "config.json").read_text())
    checksum = stored["facts"]["split_sha256"]
    assert len(checksum) == 64
    assert checksum in answers["distilled"].stderr
    teacher = rundir.weights_path(folder / "teacher")
    assert stored["facts"]["teacher_sha256"] == rundir.digest(teacher)


def test_run_directory_holds_what_it_should(runs):
    folder, _ = runs
    run = folder / "distilled"
    names = {path.name for path in run.iterdir()}
    files = {"best.weights.h5", "config.json", "curves.png", "history.csv"}
    assert names == files | {"checkpoints", "logs"}
    assert list((run / "logs" / "train").glob("events.*"))
    assert list((run / "logs" / "validation").glob("events.*"))
    assert list((run / "logs" / "tokens").glob("events.*"))
    assert not (folder / "teacher" / "logs" / "tokens").exists()  # it has none
    rows = _history(run)
    assert [row["epoch"] for row in rows] == ["1", "2", "3"]
    # The rates that were used: the released ladder's first two are the warm-up's beginning.
    peak = 0.016 * 32 / 512
    expected = [1e-6, 1e-6, (peak + 1e-6) / 2]
    np.testing.assert_allclose([float(row["lr"]) for row in rows], expected, rtol=1e-5)
    for name in ("lr", "loss", "class_loss", "distillation_loss", "val_fused_top1"):
        assert all(np.isfinite(float(row[name])) for row in rows)


def test_the_teacher_is_not_saved_with_the_student(runs):
    folder, _ = runs
    path = rundir.weights_path(folder / "distilled")
    items = []
    with h5py.File(path) as file:
        file.visititems(lambda name, item: items.append(item))
        sizes = [item.size for item in items if isinstance(item, h5py.Dataset)]
    student = checkpoint.load(folder / "distilled")
    ours = [int(np.prod(w.shape)) for w in student.weights]
    assert sorted(sizes) == sorted(ours)


def test_evaluate_answers_json_that_agrees_with_the_history(runs, command):
    folder, _ = runs
    answer = command("deit_tf.evaluate", f"--run_dir={folder / 'distilled'}", "--json")
    assert answer.returncode == 0, answer.stderr
    measured = json.loads(answer.stdout)
    assert list(measured) == ["images", "cls", "dist", "fused"]
    assert measured["images"] == 397
    last = _history(folder / "distilled")[-1]
    for head in ("cls", "dist", "fused"):
        for what in ("top1", "top5", "loss"):
            noted = float(last[f"val_{head}_{what}"])
            assert measured[head][what] == pytest.approx(noted, rel=1e-5)


def test_evaluate_prints_a_table_and_reads_the_best(runs, command):
    folder, _ = runs
    answer = command("deit_tf.evaluate", f"--run_dir={folder / 'teacher'}", "--checkpoint=best")
    assert answer.returncode == 0, answer.stderr
    assert answer.stdout.splitlines()[0].startswith("on 397 images")
    best = max(float(row["val_fused_top1"]) for row in _history(folder / "teacher"))
    assert f"{best:.2%}" in answer.stdout


@pytest.mark.parametrize("flags", [[], ["--eval_only"]], ids=["again", "eval_only"])
def test_started_again_a_finished_run_only_measures(flags, runs, command, data_dir):
    folder, answers = runs
    before = (folder / "teacher" / "history.csv").read_text()
    written = (folder / "teacher" / "config.json").stat().st_mtime_ns
    again = command(
        "deit_tf.train",
        f"--flagfile={CONFIGS}/digits_teacher.flags",
        f"--data_dir={data_dir}",
        f"--run_dir={folder / 'teacher'}",
        *TEACHER,
        *flags,
    )
    assert again.returncode == 0, again.stderr
    if flags:  # it writes nothing at all
        assert (folder / "teacher" / "config.json").stat().st_mtime_ns == written
    assert again.stdout.splitlines()[-2:] == answers["teacher"].stdout.splitlines()[-2:]
    assert (folder / "teacher" / "history.csv").read_text() == before


def _arguments(folder, data_dir, run, *flags):
    """The command that trained the student of `runs`, into another directory."""
    return [
        *(sys.executable, "-m", "deit_tf.train"),
        f"--flagfile={CONFIGS}/digits_distilled.flags",
        f"--data_dir={data_dir}",
        f"--run_dir={run}",
        f"--teacher={folder / 'teacher'}",
        *(*STUDENT, *flags),
    ]


def _wait_for(process, path):
    """Waits until a file is there."""
    deadline = time.monotonic() + 300
    while not path.exists():
        assert process.poll() is None, "it ended too early"
        assert time.monotonic() < deadline
        time.sleep(0.01)


def _state(run):
    """All that a run has reached, as bytes and arrays."""
    last = rundir.steps(run)[-1]
    found = {"history.csv": (run / "history.csv").read_text()}
    found["state.json"] = json.loads((last / "state.json").read_text())
    for path in (run / "best.weights.h5", last / rundir.WEIGHTS, last / rundir.AVERAGE):
        with h5py.File(path) as file:
            arrays = {}
            file.visititems(lambda name, item, to=arrays: to.update({name: item}))
            found |= {
                f"{path.name}/{name}": item[()]
                for name, item in arrays.items()
                if isinstance(item, h5py.Dataset)
            }
    with np.load(last / "optimizer.npz") as stored:
        found |= {f"optimizer/{name}": stored[name] for name in stored}
    return found


def _assert_same(one, other):
    """Bit for bit."""
    assert one.keys() == other.keys()
    for name, value in one.items():
        np.testing.assert_array_equal(value, other[name], err_msg=name)


def test_sigterm_saves_and_the_same_command_goes_on(runs, data_dir, tmp_path):
    folder, _ = runs
    run = tmp_path / "run"
    arguments = _arguments(folder, data_dir, run)
    with open(tmp_path / "log", "w") as log:
        child = subprocess.Popen(arguments, stdout=log, stderr=log)
    _wait_for(child, run / "history.csv")  # an epoch is over
    time.sleep(0.2)
    child.send_signal(signal.SIGTERM)
    assert child.wait(120) == 143
    step = int(rundir.steps(run)[-1].name.split("_")[1])
    said = f"stopped by SIGTERM after step {step}; started again it goes on"
    assert said in (tmp_path / "log").read_text()
    assert 43 <= step < 129
    again = subprocess.run(arguments, check=True, capture_output=True, text=True)
    assert again.stdout == runs[1]["distilled"].stdout
    _assert_same(_state(run), _state(folder / "distilled"))


@pytest.mark.slow
def test_an_epoch_that_was_left_while_it_was_evaluated_is_ended(runs, data_dir, tmp_path):
    folder, _ = runs
    run = tmp_path / "run"
    shutil.copytree(folder / "distilled", run)
    last = rundir.steps(run)[-1]
    state = json.loads((last / "state.json").read_text())
    row = state["history"].pop()  # as if the last evaluation had not been
    names = ("loss", "class_loss", "distillation_loss", "top1")
    state |= {"epoch": state["epoch"] - 1, "means": [*(row[name] for name in names), 1.0]}
    state["best"] = max(row["val_fused_top1"] for row in state["history"])
    (last / "state.json").write_text(json.dumps(state))
    again = subprocess.run(
        _arguments(folder, data_dir, run), check=True, capture_output=True, text=True
    )
    assert again.stdout == runs[1]["distilled"].stdout
    _assert_same(_state(run), _state(folder / "distilled"))


@pytest.mark.slow
@pytest.mark.parametrize("jit", ["--nojit", "--jit"])
def test_killed_twenty_times_it_ends_as_if_never_killed(jit, runs, data_dir, tmp_path, command):
    folder, rng = runs[0], random.Random(0)
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    flags = ["--checkpoint_every_steps=2", "--keep_checkpoints=2", "--epochs=8", jit]
    subprocess.run(_arguments(folder, data_dir, whole, *flags), check=True, capture_output=True)
    arguments = _arguments(folder, data_dir, killed, *flags)
    kills = saving = 0
    while kills < 20 or saving < 3:
        known = rundir.steps(killed)[-1:]
        with open(tmp_path / "log", "w") as log:
            child = subprocess.Popen(arguments, stdout=log, stderr=log)
        deadline = time.monotonic() + 300
        while rundir.steps(killed)[-1:] == known:  # it has saved once more
            assert child.poll() is None, (tmp_path / "log").read_text()[-2000:]
            assert time.monotonic() < deadline
            time.sleep(0.005)
        time.sleep(rng.uniform(0.0, 0.3))
        if kills % 3 == 0:  # some in the middle of a save
            _wait_for(child, killed / "checkpoints" / "writing")
        child.kill()
        assert child.wait() == -signal.SIGKILL
        kills += 1
        saving += (killed / "checkpoints" / "writing").exists()
    subprocess.run(arguments, check=True, capture_output=True)
    _assert_same(_state(killed), _state(whole))


def test_trains_by_xla_in_bfloat16_with_one_head(runs, command, data_dir, tmp_path):
    folder, _ = runs
    run = tmp_path / "run"
    answer = command(
        "deit_tf.train",
        f"--flagfile={CONFIGS}/digits_distilled.flags",
        f"--data_dir={data_dir}",
        f"--run_dir={run}",
        f"--teacher={folder / 'teacher'}",
        *STUDENT,
        "--epochs=1",
        "--jit",
        "--precision=bfloat16",
        "--nodistilled",
        "--distillation=soft",
        "--tau=3",
        "--flip_rate=0.5",
    )
    assert answer.returncode == 0, answer.stderr
    assert json.loads((run / "config.json").read_text())["facts"]["precision"] == "bfloat16"


def test_preview_draws_what_the_network_will_see(command, data_dir, tmp_path):
    picture = tmp_path / "preview.png"
    answer = command(
        "deit_tf.train",
        *("--model=deit", "--image_size=32", "--patch_size=8", "--num_classes=10"),
        *(f"--data_dir={data_dir}", f"--preview={picture}"),
    )
    assert answer.returncode == 0, answer.stderr
    with Image.open(picture) as found:
        assert found.size == (1920, 1944)  # six groups, eight images of each
        assert len(found.convert("RGB").getcolors(2**24)) > 1000
    assert list(tmp_path.iterdir()) == [picture]
