import fcntl
import json
import math
import pathlib
import re
import subprocess
import sys
import time

import pytest

from benchmarks import ablation, ablation_page
from deit_tf.config import InputError


def test_a_teacher_stands_before_its_students_and_a_seed_before_the_next():
    runs = ablation.plan(2, (100, 1400))
    place = {run: i for i, run in enumerate(runs)}
    assert len(place) == len(runs) == 2 * (6 * 2 + 3)
    for run in runs:
        teacher = ablation.WAYS[run.way].teacher
        assert teacher is None or place[run._replace(way=teacher)] < place[run]
    assert [run.seed for run in runs] == sorted(run.seed for run in runs)


def test_each_seed_sees_its_own_images_in_epochs_of_one_length():
    seen = []
    for seed in range(5):
        parts = ablation.train_split(100, seed).split("+")
        assert len(set(parts)) == 1
        start, end = map(int, parts[0].removeprefix("train[").removesuffix("]").split(":"))
        assert (end - start) * len(parts) == ablation.TRAIN_IMAGES
        seen += range(start, end)
    assert len(set(seen)) == 500
    assert ablation.train_split(300, 4) == "+".join(["train[1100:1400]"] * 5)


def test_a_student_is_told_who_teaches_it():
    run = ablation.Run("token, transformer teacher", 300, 2)
    words = ablation.command(run, "R", 12)
    assert "--teacher=R/no_distillation_300_2" in words
    assert "--run_dir=R/token_transformer_teacher_300_2" in words
    assert "--seed=2" in words


def test_the_interval_is_students():
    found = ablation_page.mean([1.0, 2.0, 3.0, 4.0, 5.0])
    assert found.value == 3.0
    # t of 4 degrees of freedom at 97.5 %, by its table, times the deviation over the root.
    assert found.half == pytest.approx(2.776 * math.sqrt(2.5 / 5), abs=1e-3)
    assert math.isnan(ablation_page.mean([1.0, 1.0]).half)


def _lines(token, hard):
    """Two ways with given accuracies of the class head, by seed."""
    for way, values in (("token", token), ("hard", hard)):
        for seed, value in enumerate(values):
            heads = ("cls", "dist", "fused") if way == "token" else ("cls",)
            yield {
                **{"way": way, "labels": 100, "seed": seed, "steps": 7, "date": "2026-01-01"},
                **{"top1": dict.fromkeys(heads, value), "cpu": "one", "python": "3"},
                **{"versions": {"tensorflow": "2"}},
            }


def _page(path, **ways):
    path.write_text("".join(json.dumps(line) + "\n" for line in _lines(**ways)))
    return ablation_page.text(ablation_page.Rows(ablation.read(path)))


def test_the_page_says_what_the_lines_say(tmp_path):
    clear = _page(tmp_path / "a", token=[0.91, 0.92, 0.93], hard=[0.81, 0.81, 0.83])
    assert "| distillation token: both | 74.5 | 81.2 | 83.4 | 92.0 ± 2.5 |" in clear
    assert "| token over hard | +0.2 / +0.3 / +0.4 | **+10.3 ± 1.4** |" in clear
    assert "In the paper's direction, with at least one number of images: token over hard." in clear
    other = _page(tmp_path / "b", token=[0.81, 0.81, 0.83], hard=[0.91, 0.92, 0.93])
    assert "In a direction that the paper does not have: token over hard." in other
    unclear = _page(tmp_path / "c", token=[0.91, 0.82, 0.93], hard=[0.91, 0.92, 0.83])
    assert "excluded by so few images and seeds: token over hard" in unclear


@pytest.mark.parametrize(
    ("here", "there", "kind"),
    [
        (set(), {1}, "open"),
        ({1}, {1}, "as there"),
        ({-1}, {1}, "otherwise"),
        ({1}, set(), "otherwise"),
        ({-1}, {-1, 1}, "both"),
        ({-1, 1}, {-1, 1}, "as there"),
    ],
)
def test_directions_are_compared_with_the_papers(here, there, kind):
    assert ablation_page._kind(here, there) == kind


def test_the_papers_differences_are_those_of_its_tables():
    found = {name: ablation_page._published(*pair) for *pair, name in ablation_page.COMPARISONS}
    assert found["hard over none"] == [2.1, 1.1, 1.2]
    assert found["student over teacher"] == [-8.4, -1.7, 0.5]
    assert found["convolutional over transformer teacher"] == [1.2]


def test_the_page_is_what_the_results_say():
    folder = ablation.ROOT / "benchmarks" / "results"
    rows = ablation_page.Rows(ablation.read(folder / "ablation.jsonl"))
    assert (ablation.ROOT / "docs" / "ablation.md").read_text() == ablation_page.text(rows)


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--labels=0"], r"labels are \[0\]; give numbers from 1 to 1400"),
        (["--labels", "100", "1401"], r"labels are \[100, 1401\]; give numbers from 1 to 1400"),
        (["--seeds=0"], "seeds is 0; give at least 1"),
        (["--report"], "has no lines; run without --report first"),
    ],
)
def test_what_cannot_be_run_is_said_in_one_line(tmp_path, monkeypatch, capsys, flags, said):
    places = [f"--results={tmp_path / 'r'}", f"--docs_dir={tmp_path / 'docs'}"]
    monkeypatch.setattr(sys, "argv", ["ablation", *places, *flags])
    with pytest.raises(SystemExit) as left:
        ablation.main()
    assert re.search(said, f"{capsys.readouterr().err}{left.value.code}")
    assert not list(tmp_path.iterdir())


def test_a_line_that_was_cut_off_is_run_again(tmp_path):
    lines = [json.dumps(line) for line in _lines(token=[0.9, 0.9], hard=[])]
    (tmp_path / "r").write_text(f"{lines[0]}\n{lines[1][:40]}")
    assert list(ablation.read(tmp_path / "r")) == [ablation.Run("token", 100, 0)]
    runner = ablation.Runner(tmp_path / "r", tmp_path / "runs", epochs=1)
    runner.write(ablation.Run("token", 100, 1), {"val_cls_top1": "0.5", "top1": "0.9", "step": "7"})
    assert list(ablation.read(tmp_path / "r")) == [ablation.Run("token", 100, n) for n in (0, 1)]


def test_what_has_its_line_is_not_run_again(tmp_path):
    runs = ablation.plan(1, (100,))
    lines = [json.dumps({**run._asdict(), "recipe": ablation.recipe(run, 1)}) for run in runs]
    (tmp_path / "r").write_text("\n".join(lines) + "\n")
    ablation.Runner(tmp_path / "r", tmp_path / "runs", epochs=1).run_all(runs)
    assert [path.name for path in (tmp_path / "runs").iterdir()] == ["lock"]
    assert (tmp_path / "r").read_text() == "\n".join(lines) + "\n"
    other = ablation.Runner(tmp_path / "r", tmp_path / "runs", epochs=2)
    with pytest.raises(InputError, match="by another recipe; give another --results"):
        other.run_all(runs)


def test_two_runners_do_not_share_a_folder(tmp_path):
    (tmp_path / "runs").mkdir()
    with open(tmp_path / "runs" / "lock", "w") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        with pytest.raises(InputError, match="another process trains in"):
            ablation.Runner(tmp_path / "r", tmp_path / "runs", epochs=1).run_all([])


def test_a_run_that_fails_ends_all_with_its_words(tmp_path):
    runner = ablation.Runner(tmp_path / "r", tmp_path / "runs", epochs=0)
    with pytest.raises(RuntimeError, match="epochs is 0; it must be at least 1"):
        runner.run_all(ablation.plan(1, (100, 200, 300)))
    assert not (tmp_path / "r").exists()
    assert runner.failed.is_set()


def test_a_run_does_not_outlive_its_runner(tmp_path):
    code = f"""
import pathlib, sys
from benchmarks import ablation
ablation.command = lambda *_: ["sh", "-c", "echo $$ > {tmp_path}/pid; exec sleep 60"]
ablation.Runner("{tmp_path}/r", "{tmp_path}/runs", 1).run_all(ablation.plan(1, (100,))[:1])
"""
    runner = subprocess.Popen([sys.executable, "-c", code], cwd=ablation.ROOT)
    pid = tmp_path / "pid"
    _wait(lambda: pid.exists() and pid.read_text().strip())
    runner.kill()
    runner.wait()
    _wait(lambda: not _alive(pid.read_text().strip()))


def _wait(until):
    deadline = time.monotonic() + 60
    while not until():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def _alive(pid):
    """Whether a process runs; one that only waits to be reaped does not."""
    stat = pathlib.Path(f"/proc/{pid}/stat")
    return stat.exists() and stat.read_text().split()[2] != "Z"
