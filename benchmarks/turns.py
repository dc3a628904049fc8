"""Engines that are measured against each other: a process each, taking turns in changing order."""

import json
import os
import pathlib
import statistics
import subprocess
import sys
import time

ROOT = pathlib.Path(__file__).resolve().parent.parent


def measure(script, cases, rounds, steps):
    """Seconds of a step, turn by turn, and peak memory.

    Args:
      script: runs itself as an engine when called with `--serve=CASE`, see `serve`.
      cases: {name: JSON value}, what each engine is told.
      rounds: turns of each.
      steps: in a turn.

    Returns:
      {name: {"seconds": [median of each turn], "all_seconds": [of each step], "peak_bytes": int}}.
    """
    engines = {name: _Engine(script, case) for name, case in cases.items()}
    names, turns = list(engines), {name: [] for name in engines}
    for turn in range(rounds):
        for i in range(len(names)):
            name = names[(i + turn) % len(names)]
            turns[name].append(engines[name].ask(steps)["seconds"])
    return {
        name: {
            "seconds": [statistics.median(turn) for turn in taken],
            "all_seconds": [second for turn in taken for second in turn],
            "peak_bytes": engines[name].leave(),
        }
        for name, taken in turns.items()
    }


class _Engine:
    """A process that takes steps when asked.

    Args:
      script: what it runs.
      case: what it is told.
    """

    def __init__(self, script, case):
        self.process = subprocess.Popen(
            [sys.executable, script, f"--serve={json.dumps(case)}"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "PYTHONPATH": str(ROOT), "TF_CPP_MIN_LOG_LEVEL": "3"},
        )
        self.ask(1)  # compiles
        self.ask(1)

    def ask(self, steps):
        """Has it take some steps; answers {"seconds": [...], "peak_bytes": int}."""
        self.process.stdin.write(f"{steps}\n")
        self.process.stdin.flush()
        for line in self.process.stdout:
            if line.startswith("{"):
                self.last = json.loads(line)
                return self.last
        raise RuntimeError(f"the engine ended with {self.process.wait()}")

    def leave(self):
        """Ends it; answers its peak memory, bytes."""
        self.process.communicate()  # it ends with its input
        return self.last["peak_bytes"]


def serve(step):
    """Is an engine: takes as many steps as each line of the input says.

    Args:
      step: function without arguments that returns when a step is done.
    """
    for line in sys.stdin:
        seconds = []
        for _ in range(int(line)):
            start = time.perf_counter()
            step()
            seconds.append(time.perf_counter() - start)
        print(json.dumps({"seconds": seconds, "peak_bytes": _peak_bytes()}), flush=True)


def _peak_bytes():
    """The most memory that this process had at once; getrusage would count its parent's as well."""
    lines = pathlib.Path("/proc/self/status").read_text().splitlines()
    return next(1024 * int(line.split()[1]) for line in lines if line.startswith("VmHWM"))
