"""The paper's comparison of ways to distil, on the digits: `python -m benchmarks.ablation`.

Every way has a student for each seed and each number of labels; every run is a
`python -m deit_tf.train` of its own, on one core, and one line of results. What has its line is
not run again, and a run that was stopped goes on; runs under way are stopped with their runner. The
teachers see the same labelled images as their students, and nothing else.

Reference: Touvron et al. 2021, tables 2, 3 and 8.
"""

import argparse
import collections
import concurrent.futures
import contextlib
import csv
import fcntl
import hashlib
import json
import os
import pathlib
import re
import subprocess
import sys
import threading

import tqdm

from benchmarks import ablation_page, machine
from deit_tf.config import InputError

ROOT = pathlib.Path(__file__).resolve().parent.parent
CONFIGS = ROOT / "deit_tf" / "configs"
TRAIN_IMAGES = ablation_page.TRAIN_IMAGES
LABELS = (100, 300, TRAIN_IMAGES)
SEEDS = 5

# Section 6 of the paper, and the divergence summed over classes as its equation (2) has it; the
# released code divides by their number, too, and has other defaults.
_SOFT = ("--distillation=soft", "--tau=3", "--alpha=0.1", "--soft_reduction=batchmean")
_MIXED = ("--mixup_alpha=0.8", "--cutmix_alpha=1.0")

Way = collections.namedtuple("Way", "teacher flags")
# What is compared: {name: whose run teaches it, and what differs from the digits' flagfile}.
WAYS = {
    "convolutional teacher": Way(None, ()),
    "no distillation": Way(None, ("--distillation=none", "--nodistilled")),
    "soft": Way("convolutional teacher", (*_SOFT, "--nodistilled")),
    "hard": Way("convolutional teacher", ("--nodistilled",)),
    "token": Way("convolutional teacher", ()),
    "token, transformer teacher": Way("no distillation", ()),
    "token, repeated augmentation": Way("convolutional teacher", ("--repeats=3",)),
    "token, mixup and cutmix": Way("convolutional teacher", _MIXED),
    "token, random erasing": Way("convolutional teacher", ("--erasing_rate=0.25",)),
}
# These are compared with "token" where all images have labels; the others with any number of them.
AUGMENTED = tuple(way for way in WAYS if WAYS[way].flags and way.startswith("token"))

Run = collections.namedtuple("Run", "way labels seed")


def plan(seeds, amounts):
    """All runs, a teacher before its students, and all of a seed before the next.

    Args:
      seeds: how many.
      amounts: numbers of labelled images, the largest last.

    Returns:
      A list of `Run`.
    """
    order = sorted(WAYS, key=_generation)
    return [
        Run(way, n, seed)
        for seed in range(seeds)
        for way in order
        for n in (amounts[-1:] if way in AUGMENTED else amounts)
    ]


def _teacher(run):
    """The `Run` that teaches another, or None."""
    way = WAYS[run.way].teacher
    return way and run._replace(way=way)


def _generation(way):
    """How many runs stand before one of this way."""
    teacher = WAYS[way].teacher
    return 0 if teacher is None else 1 + _generation(teacher)


def train_split(labels, seed):
    """The labelled images of a seed, so often that an epoch is about as long as with all of them.

    Args:
      labels: how many.
      seed: the next seed takes the next images, as long as there are any.

    Returns:
      A TFDS split.
    """
    if labels == TRAIN_IMAGES:
        return "train"
    start = min(seed * labels, TRAIN_IMAGES - labels)
    return "+".join([f"train[{start}:{start + labels}]"] * round(TRAIN_IMAGES / labels))


def command(run, runs_dir, epochs):
    """What is typed for a run.

    Args:
      run: a `Run`.
      runs_dir: folder of the run directories.
      epochs: passes over about 1400 images.
    """
    way = WAYS[run.way]
    convolutional = run.way == "convolutional teacher"
    flagfile = "digits_teacher" if convolutional else "digits_distilled"
    teacher = _teacher(run)
    return [
        *(sys.executable, "-m", "deit_tf.train"),
        f"--flagfile={CONFIGS / flagfile}.flags",
        f"--train_split={train_split(run.labels, run.seed)}",
        *(f"--epochs={epochs}", f"--warmup_epochs={epochs / 10:g}", f"--seed={run.seed}"),
        "--nojit",  # so short a run does not repay what compiling takes
        *([] if convolutional else ["--patch_size=8"]),  # a quarter of the work, and enough here
        *way.flags,
        *([f"--teacher={run_dir(teacher, runs_dir)}"] if teacher else []),
        f"--run_dir={run_dir(run, runs_dir)}",
    ]


def recipe(run, epochs):
    """What a line was made by: the run's flags but for paths, and the digest of its flagfile."""
    words = command(run, ".", epochs)[3:]
    given = [word for word in words if not re.match("--(run_dir|teacher|flagfile)=", word)]
    flagfile = next(word for word in words if word.startswith("--flagfile="))
    content = pathlib.Path(flagfile.partition("=")[2]).read_bytes()
    return [*given, hashlib.sha256(content).hexdigest()[:12]]


def run_dir(run, runs_dir):
    """Where a run is kept."""
    name = f"{run.way.replace(',', '').replace(' ', '_')}_{run.labels}_{run.seed}"
    return pathlib.Path(runs_dir) / name


def read(path):
    """{`Run`: its line, a dictionary} of a file of results; {} where there is none."""
    path, rows = pathlib.Path(path), {}
    for line in path.read_text().splitlines() if path.exists() else []:
        with contextlib.suppress(json.JSONDecodeError):  # it was cut off: its run is run again
            row = json.loads(line)
            rows[Run(row["way"], row["labels"], row["seed"])] = row
    return rows


class Runner:
    """Runs what has no line yet, as many at a time as there are cores, each on its own.

    Args:
      results: file of the lines.
      runs_dir: folder of the run directories.
      epochs: of each run.
    """

    def __init__(self, results, runs_dir, epochs):
        self.results, self.runs_dir = pathlib.Path(results), pathlib.Path(runs_dir)
        self.epochs, self.done = epochs, read(results)
        text = self.results.read_text() if self.results.exists() else ""
        self.cut_off = not text.endswith("\n") and bool(text)
        self.free = sorted(os.sched_getaffinity(0))
        self.writing, self.failed = threading.Lock(), threading.Event()

    def run_all(self, runs):
        """Runs them; a student waits for its teacher, which stands before it in the list.

        Raises:
          InputError: a line of the results was made by another recipe, or another runner is at
            work in the folder of the runs.
          RuntimeError: a run failed; those under way end, and no other begins.
        """
        for run in runs:
            if run in self.done and self.done[run]["recipe"] != recipe(run, self.epochs):
                raise InputError(
                    f"{self.results} has {run} by another recipe; give another --results and"
                    " --runs_dir"
                )
        self.runs_dir.mkdir(parents=True, exist_ok=True)
        with open(self.runs_dir / "lock", "w") as self.lock:
            try:
                fcntl.flock(self.lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError as error:
                raise InputError(
                    f"another process trains in {self.runs_dir}; wait for it"
                ) from error
            self._run_all(runs)

    def _run_all(self, runs):
        """`run_all`, once it may."""
        needed = {_teacher(run) for run in runs if run not in self.done}
        bar, tasks = tqdm.tqdm(total=len(runs), unit="run", dynamic_ncols=True), {}
        with concurrent.futures.ThreadPoolExecutor(len(self.free)) as pool:
            for run in runs:
                tasks[run] = pool.submit(self._run, run, run in needed, tasks.get(_teacher(run)))
            for task in concurrent.futures.as_completed(tasks.values()):
                task.result()
                bar.update()

    def _run(self, run, teaches, teacher):
        """One run, unless it has its line, and is not needed as a teacher."""
        if teacher:
            teacher.result()
        if self.failed.is_set() or (run in self.done and not teaches):
            return
        core = self.free.pop()
        try:
            last = self._train(run, core)
        except BaseException:
            self.failed.set()
            raise
        finally:
            self.free.append(core)
        if run not in self.done:
            self.write(run, last)

    def _train(self, run, core):
        """Trains; answers the last row of the run's history."""
        # Who is orphaned saves and ends; until then it holds the lock.
        started = ["setpriv", "--pdeathsig", "TERM", "taskset", "--cpu-list", str(core)]
        told = subprocess.run(
            [*started, *command(run, self.runs_dir, self.epochs)],
            cwd=ROOT,
            env={**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3", "CUDA_VISIBLE_DEVICES": "-1"},
            pass_fds=[self.lock.fileno()],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )
        if told.returncode:
            raise RuntimeError(f"{run} ended with {told.returncode}: {told.stderr[-500:].strip()}")
        with open(run_dir(run, self.runs_dir) / "history.csv") as history:
            return list(csv.DictReader(history))[-1]

    def write(self, run, last):
        """Adds a run's line, by the last row of its history."""
        heads = [name for name in ("cls", "dist", "fused") if f"val_{name}_top1" in last]
        row = {
            **run._asdict(),
            "top1": {head: round(float(last[f"val_{head}_top1"]), 5) for head in heads},
            "train_top1": round(float(last["top1"]), 5),
            "steps": int(last["step"]),
            "recipe": recipe(run, self.epochs),
            **machine.facts("tensorflow", "keras"),
        }
        with self.writing, open(self.results, "a") as file:
            file.write("\n" * self.cut_off + json.dumps(row) + "\n")
            self.cut_off = False


def main():
    """Flags -> runs -> lines -> page."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    folder = ROOT / "benchmarks" / "results"
    parser.add_argument("--results", type=pathlib.Path, default=folder / "ablation.jsonl")
    parser.add_argument("--runs_dir", type=pathlib.Path, default=ROOT / "runs" / "ablation")
    parser.add_argument("--docs_dir", type=pathlib.Path, default=ROOT / "docs")
    parser.add_argument("--seeds", type=int, default=SEEDS)
    parser.add_argument("--labels", type=int, nargs="+", default=LABELS)
    parser.add_argument("--epochs", type=int, default=24)
    parser.add_argument("--report", action="store_true", help="run nothing, draw what there is")
    given = parser.parse_args()
    amounts = sorted(set(given.labels))
    if not 1 <= amounts[0] <= amounts[-1] <= TRAIN_IMAGES:
        parser.error(f"labels are {amounts}; give numbers from 1 to {TRAIN_IMAGES}")
    if given.seeds < 1:
        parser.error(f"seeds is {given.seeds}; give at least 1")
    try:
        if not given.report:
            given.results.parent.mkdir(parents=True, exist_ok=True)
            Runner(given.results, given.runs_dir, given.epochs).run_all(plan(given.seeds, amounts))
        if not (rows := read(given.results)):
            raise InputError(f"{given.results} has no lines; run without --report first")
    except (InputError, RuntimeError) as error:
        sys.exit(f"error: {error}")
    ablation_page.write(rows, given.docs_dir)


if __name__ == "__main__":
    main()
