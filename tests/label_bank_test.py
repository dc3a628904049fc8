"""The label bank by the real commands: the same student, and a teacher that is asked once."""

import random
import re
import signal
import subprocess
import sys
import time

import absl.flags
import numpy as np
import pytest

from deit_tf import bank, checkpoint, config, flags, label_bank, rundir, train

NANO = [
    *("--model=deit", "--distilled", "--image_size=32", "--patch_size=16", "--width=16"),
    *("--depth=2", "--heads=2", "--num_classes=10", "--batch_size=140", "--mix_group=14"),
    *("--lr_schedule=constant", "--warmup_epochs=0", "--distillation=hard", "--nojit"),
]
TEACHER = [
    *("--model=regnety_tiny", "--depth=2", "--initial_width=16", "--slope=16", "--group_width=16"),
    *("--num_classes=10", "--batch_size=64", "--epochs=2", "--lr=0.01", "--warmup_epochs=0"),
    *("--nojit", "--flip_rate=0", "--auto_augment=", "--erasing_rate=0", "--repeats=1"),
    *("--mixup_alpha=0", "--cutmix_alpha=0"),
]
POSITIONS = 1400


def _config(*given):
    """The configuration of some flags."""
    values = absl.flags.FlagValues()
    flags.define_config(values)
    values(["", *given])
    return flags.config_from_flags(values)


def _fill(*given):
    facts = _config(*given)
    return label_bank.fill(facts, range(facts.optimizer.epochs))


@pytest.fixture(scope="module")
def taught(tmp_path_factory, data_dir):
    """Flags of a student with its teacher and its data."""
    teacher = tmp_path_factory.mktemp("bank") / "teacher"
    train.train(_config(*TEACHER, f"--data_dir={data_dir}"), teacher)
    return [*NANO, f"--data_dir={data_dir}", f"--teacher={teacher}"]


@pytest.fixture
def run(command):
    """Function: a command that succeeds; answers what it says."""

    def run(module, *flags):
        answer = command(f"deit_tf.{module}", *flags)
        assert answer.returncode == 0, answer.stderr
        return answer

    return run


@pytest.fixture(scope="module")
def filled(taught, tmp_path_factory):
    """A bank of three epochs, that `fill` has made."""
    folder = tmp_path_factory.mktemp("filled") / "bank"
    said = _fill(*taught, f"--label_bank={folder}", "--epochs=3")
    assert said == f"{folder} has epochs 0:3, 3 of them by now"
    return folder


def _files(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def _same(one, other):
    """Whether two runs have the same weights and the same history, bit for bit."""
    weights = [checkpoint.load(path).get_weights() for path in (one, other)]
    equal = all(np.array_equal(a, b) for a, b in zip(*weights, strict=True))
    return equal and (one / "history.csv").read_text() == (other / "history.csv").read_text()


@pytest.mark.parametrize(
    "flags",
    [
        ("--nojit", "--accumulate=2"),
        pytest.param(("--jit",), marks=pytest.mark.slow),
        pytest.param(("--replicas=2", "--jit"), marks=pytest.mark.slow),
        pytest.param(("--nodistilled", "--alpha=0.3"), marks=pytest.mark.slow),
        pytest.param(("--distillation=soft", "--bank_topk=3", "--tau=2"), marks=pytest.mark.slow),
    ],
    ids=" ".join,
)
def test_a_bank_teaches_as_the_live_teacher_bit_for_bit(flags, taught, tmp_path):
    flags, runs = [*taught, *flags, "--epochs=2"], [tmp_path / name for name in "abc"]
    banked = f"--label_bank={tmp_path / 'bank'}"
    live = train.train(_config(*flags), runs[0])
    writing = train.train(_config(*flags, banked), runs[1])
    written = _files(tmp_path / "bank")
    assert set(written) == {"bank.json", "epoch_00000.npy", "epoch_00001.npy"}
    reading = train.train(_config(*flags, banked), runs[2])
    assert reading == {**live, "teacher": None}  # it was not loaded
    assert writing == live
    assert _same(runs[0], runs[1])
    assert _same(runs[0], runs[2])
    assert _files(tmp_path / "bank") == written
    _fill(*flags, f"--label_bank={tmp_path / 'filled'}")
    assert _files(tmp_path / "filled") == written


def test_what_is_missing_is_asked_and_written_down(taught, filled, tmp_path):
    folder = tmp_path / "bank"
    folder.mkdir()
    content = _files(filled)
    (folder / "bank.json").write_bytes(content["bank.json"])
    (folder / "epoch_00000.npy").write_bytes(content["epoch_00000.npy"][:-1])
    (folder / "epoch_00001.npy").write_bytes(content["epoch_00001.npy"])
    assert bank.Bank(folder).missing(range(3)) == [0, 2]
    train.train(_config(*taught, "--epochs=3", f"--label_bank={folder}"), tmp_path / "run")
    assert _files(folder) == content


@pytest.mark.slow
def test_stopped_within_an_epoch_it_loses_no_label(taught, run, filled, tmp_path):
    folder = tmp_path / "bank"
    flags = [*taught, "--epochs=3", f"--label_bank={folder}", f"--run_dir={tmp_path / 'run'}"]
    flags += ["--checkpoint_every_steps=3"]
    arguments = [sys.executable, "-m", "deit_tf.train", *flags]
    with subprocess.Popen(arguments, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as child:
        while not rundir.steps(tmp_path / "run"):
            assert child.poll() is None, child.stderr.read()
            time.sleep(0.01)
        child.kill()
    assert len(list(folder.glob("epoch_*.part"))) == 1
    run("train", *flags)
    assert _files(folder) == _files(filled)


@pytest.mark.slow
def test_a_bank_that_a_run_meets_on_its_way_is_completed_by_fill(taught, run, filled, tmp_path):
    flags = [*taught, f"--run_dir={tmp_path / 'run'}", "--checkpoint_every_steps=3"]
    arguments = [sys.executable, "-m", "deit_tf.train", *flags, "--epochs=1"]
    with subprocess.Popen(arguments, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as child:
        while not rundir.steps(tmp_path / "run"):
            assert child.poll() is None, child.stderr.read()
            time.sleep(0.01)
        child.kill()
    banked = f"--label_bank={tmp_path / 'bank'}"
    answer = run("train", *flags, "--epochs=1", banked)
    known = 1 - int(re.search(r"(\d+) labels are from before", answer.stderr)[1]) / POSITIONS
    said = run("label_bank", "info", banked)
    assert re.search(rf"^epoch 0 +{known:.0%}$", said.stdout, re.M)
    assert re.search("^epochs +none$", said.stdout, re.M)
    run("label_bank", "fill", *taught, "--epochs=1", banked)
    content = _files(filled)
    assert _files(tmp_path / "bank")["epoch_00000.npy"] == content["epoch_00000.npy"]


def test_check_and_info_say_what_a_bank_holds(taught, run, filled, tmp_path):
    banked = f"--label_bank={filled}"
    said = label_bank.check(_config(*taught, banked), 300)
    assert said == f"{filled}: 420 of 420 labels agree (100.00%)"
    said = run("label_bank", "info", banked).stdout
    for line in ("epochs +0:3", "positions +1400", "mixup_alpha +0.8", "device +CPU"):
        assert re.search(f"^{line}$", said, re.M), line
    other = tmp_path / "other"
    other.mkdir()
    for name, content in _files(filled).items():
        (other / name).write_bytes(content)
    found = bank.Bank(other)
    rows = np.array(found.answers(1))
    rows["classes"] = (rows["classes"] + 1) % 10
    found._publish(1, rows)  # labels that no teacher has said, whole
    for epoch in (0, 2):
        (other / f"epoch_{epoch:05d}.npy").unlink()
    with pytest.raises(config.InputError, match="0 of 1120 labels agree, which is too few"):
        label_bank.check(_config(*taught, f"--label_bank={other}"), 1024)


def test_check_asks_about_every_step_once_where_the_sample_is_all(taught, filled, tmp_path):
    for name, content in _files(filled).items():
        if name in ("bank.json", "epoch_00000.npy"):
            (tmp_path / name).write_bytes(content)
    found = bank.Bank(tmp_path)
    rows = np.array(found.answers(0))
    steps = rows["classes"].reshape(10, 140)
    for step in range(8):  # so many wrong that no other choice of steps has as many
        steps[step, : 2**step] = (steps[step, : 2**step] + 1) % 10
    found._publish(0, rows)
    with pytest.raises(config.InputError, match="1145 of 1400 labels agree, which is too few"):
        label_bank.check(_config(*taught, f"--label_bank={tmp_path}"), 1400)


@pytest.fixture
def small(tmp_path):
    """A bank of 40 views an epoch that knows no teacher: epochs 0, 1 and 3, and half of 4."""
    found = bank.Bank(
        tmp_path / "bank", {"positions": 40, "num_classes": 10, "bank_topk": 0, "seed": 0}
    )
    found.begin()
    for epoch, count in ((0, 40), (1, 40), (3, 40), (4, 20)):
        found.hear(epoch * 40, np.zeros((count, 1), np.int32))
        found.flush()
        found.join(epoch)
        found.leave(epoch)
    return tmp_path / "bank"


INFO = """\
positions             40
num_classes           10
bank_topk             0
seed                  0
epochs                {epochs}
epoch 4               50%
{damaged}size                  0.0 MB"""


def test_info_lists_what_is_whole_begun_and_damaged(small):
    assert label_bank.info(small) == INFO.format(epochs="0:2, 3:4", damaged="")
    for epochs, damaged in (("0:1, 3:4", "1:2"), ("3:4", "0:2"), ("none", "0:2, 3:4")):
        for span in damaged.split(", "):
            path = small / f"epoch_{int(span[0]):05d}.npy"
            path.write_bytes(b"damaged")
        said = f"damaged               {damaged}; fill writes them anew\n"
        assert label_bank.info(small) == INFO.format(epochs=epochs, damaged=said)


def test_info_needs_a_bank(tmp_path):
    with pytest.raises(config.InputError, match="no label bank; give --label_bank=DIR"):
        label_bank.info("")
    with pytest.raises(config.InputError, match="there is no label bank"):
        label_bank.info(tmp_path / "none")


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (("fill", "--seed=1"), "(seed: 0 -> 1); give another --label_bank, or the flags"),
        (("check", "--repeats=1", "--image_size=64"), "(repeats: 3 -> 1; image_size: 32 -> 64)"),
        (("fill", "--distillation=none"), "distillation is none; give --distillation=hard or soft"),
        (("fill", "--distillation=soft"), "say how many by --bank_topk"),
        (("fill", "--bank_topk=3"), "it is for --distillation=soft"),
        (("fill", "--epochs=5:2"), "give the first, counted from 0, and the end after it"),
        (("fill", "--epochs=some"), "give numbers as 0:100, or 100 for all before it"),
        (("fill", "--label_bank="), "no label bank; give --label_bank=DIR"),
        (("empty",), "'empty' is not what this command does; say one of fill, check, info"),
        ((), "'nothing' is not what this command does"),
        (("check", "--strategy=multi_worker"), "check on one machine"),
    ],
    ids=str,
)
def test_what_cannot_be_is_one_line(words, says, taught, command, filled):
    before = _files(filled)
    flags = [*taught, f"--label_bank={filled}", *words]
    answer = command("deit_tf.label_bank", *flags)
    assert answer.returncode == 1
    assert says in answer.stderr.splitlines()[-1]
    assert "Traceback" not in answer.stderr
    assert _files(filled) == before


@pytest.mark.slow
def test_train_refuses_the_labels_of_something_else(taught, command, filled, tmp_path):
    run = tmp_path / "run"
    flags = [*taught, f"--label_bank={filled}", f"--run_dir={run}", "--erasing_rate=0"]
    answer = command("deit_tf.train", *flags)
    assert answer.returncode == 1
    assert "(erasing_rate: 0.25 -> 0.0)" in answer.stderr.splitlines()[-1]
    assert not run.exists()


def _agreement(one, other):
    """How many labels of two banks' first epochs are the same."""
    found = [bank.Bank(folder).answers(epoch) for folder in (one, other) for epoch in range(3)]
    return np.mean([np.mean(a == b) for a, b in zip(found[:3], found[3:], strict=True)])


@pytest.mark.slow
def test_replicas_say_the_same(taught, run, filled, tmp_path):
    run("label_bank", "fill", *taught, "--epochs=3", f"--label_bank={tmp_path}", "--replicas=2")
    assert _agreement(tmp_path, filled) >= 0.9999


@pytest.mark.slow
@pytest.mark.parametrize("flags", [("--jit",), ("--accumulate=5",), ("--strategy=one_device",)])
def test_other_ways_to_compute_say_the_same(flags, taught, run, filled, tmp_path):
    run("label_bank", "fill", *taught, "--epochs=3", f"--label_bank={tmp_path}", *flags)
    assert _agreement(tmp_path, filled) >= 0.9999


@pytest.mark.slow
def test_workers_fill_and_train_together(taught, filled, tmp_path, start_workers, finish):
    common = [*taught, "--strategy=multi_worker", "--epochs=3"]
    fill = ["-m", "deit_tf.label_bank", "fill", *common, f"--label_bank={tmp_path / 'bank'}"]
    assert finish(start_workers(fill, tmp_path)) == [0, 0], (tmp_path / "worker_0.log").read_text()
    assert _agreement(tmp_path / "bank", filled) >= 0.9999
    assert not list((tmp_path / "bank").glob("*.part"))
    train = ["-m", "deit_tf.train", *common]
    for name in ("live", "written", "read"):
        flags = [f"--run_dir={tmp_path / name}"]
        flags += [f"--label_bank={tmp_path / 'other'}"] * (name != "live")
        assert finish(start_workers([*train, *flags], tmp_path)) == [0, 0], name
    assert _same(tmp_path / "live", tmp_path / "written")
    assert _same(tmp_path / "live", tmp_path / "read")
    files = [_files(tmp_path / name) for name in ("other", "bank")]
    assert files[0] == files[1]


@pytest.mark.slow
def test_killed_at_random_and_filled_again_it_has_the_same_bytes(taught, run, tmp_path):
    flags, rng = [*taught, "--epochs=30"], random.Random(0)
    run("label_bank", "fill", *flags, f"--label_bank={tmp_path / 'whole'}")
    killed = tmp_path / "killed"
    arguments = [sys.executable, "-m", "deit_tf.label_bank", "fill", *flags]
    kills = within = 0
    while kills < 12 or within < 3:
        before = _progress(killed)
        with subprocess.Popen(
            [*arguments, f"--label_bank={killed}"],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
        ) as child:
            while _progress(killed) == before:
                assert child.poll() is None, child.stderr.read()
                time.sleep(0.005)
            time.sleep(rng.uniform(0.0, 0.5))
            child.kill()
            assert child.wait() == -signal.SIGKILL
        kills += 1
        within += any(killed.glob("*.part"))
    assert len(list(killed.glob("epoch_*.npy"))) < 30  # it was killed to the end
    run("label_bank", "fill", *flags, f"--label_bank={killed}")
    assert _files(killed) == _files(tmp_path / "whole")


def _progress(folder):
    """Names and sizes of what a bank has of its epochs."""
    return {(path.name, path.stat().st_size) for path in folder.glob("epoch_*")}
