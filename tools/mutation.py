"""Asks the tests whether they notice small faults in what they test.

    python tools/mutation.py --mutants=160 --seed=0 --output=docs/mutation.jsonl

Of all the faults that `mutants.find` knows, a random sample, fixed by its seed. Each is written
into a copy of the repository, in which the tests of its file then run: those of deit_tf/bank.py
are tests/bank_test.py, and what only others notice counts as unnoticed. Each run is a fork of a
process that has imported TensorFlow and done nothing with it, so that it starts at once.

Results are appended as they come, and a second call goes on behind them. While their file is the
same it tries again only survivors whose tests have changed and that nobody has explained, in
*_survivors.json by their keys. In the end it writes a page next to the results, which lists the
survivors with what was said of them.
"""

import argparse
import contextlib
import hashlib
import importlib
import json
import os
import pathlib
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import traceback

sys.path.insert(0, str(pathlib.Path(__file__).parent))

import mutants

ROOT = pathlib.Path(__file__).parent.parent
MODULES = ("losses", "mixing", "schedule", "lessons", "bank", "distiller", "label_bank")
FILES = ",".join(f"deit_tf/{name}.py" for name in MODULES)
PRELOADED = "tensorflow,keras,scipy.ndimage,sklearn.datasets,pytest"


class _Watch:
    """A plugin of pytest: the shortest test first, and each within its time."""

    def __init__(self, expected, patience):
        self.expected, self.patience = expected, patience
        self.took, self.failed = {}, ""

    def pytest_collection_finish(self, session):
        session.items.sort(key=lambda item: self.expected.get(item.nodeid, 0))

    def pytest_runtest_logstart(self, nodeid, location):
        # Nothing handles the alarm, so that it ends even a loop that never comes back to Python.
        signal.alarm(int(self.patience + 3 * self.expected.get(nodeid, 0)))

    def pytest_runtest_logreport(self, report):
        self.took[report.nodeid] = self.took.get(report.nodeid, 0) + report.duration
        if report.failed:
            self.failed = report.nodeid


def _tests_of(path):
    return pathlib.Path("tests", pathlib.Path(path).stem + "_test.py")


class _Copy:
    """A copy of a repository, whose tests run in forks of this process.

    Args:
      root: the repository.
      tree: where to; the folder above it is for answers.
      patience: seconds that a test may take, beside three times what it takes without a fault.
    """

    def __init__(self, root, tree, patience):
        self.tree, self.patience = tree, patience
        self._answer, self._expected = tree.parent / "answer.json", {}
        # What git knows or would know; all of it where it knows nothing of this folder.
        names = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
        listed = subprocess.run(names, cwd=root, capture_output=True, text=True, check=False)
        if not listed.stdout:
            shutil.copytree(root, tree)
        for name in filter(None, listed.stdout.split("\0")):
            if (root / name).exists():
                (tree / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy2(root / name, tree / name)

    def _run_tests(self, path, expected):
        """Runs the tests of a file, in a process of its own; writes what came of it."""
        import pytest

        os.chdir(self.tree)
        sys.path[0] = str(self.tree)
        with open(self._answer.with_suffix(".log"), "w") as log:
            os.dup2(log.fileno(), 1)
            os.dup2(log.fileno(), 2)
        # Nobody knows yet how long tests take where none is expected.
        patience = self.patience if expected else 10 * self.patience
        signal.alarm(patience)  # for importing and collecting
        watch = _Watch(expected, patience)
        options = ["-x", "-q", "-p", "no:cacheprovider", "--import-mode=importlib"]
        places = [f"--rootdir={self.tree}", f"--basetemp={self._answer.with_suffix('.tmp')}"]
        code = pytest.main([*options, *places, str(_tests_of(path))], plugins=[watch])
        module = sys.modules.get(".".join(pathlib.Path(path).with_suffix("").parts))
        if module and pathlib.Path(module.__file__) != self.tree / path:
            raise RuntimeError(f"tested was {module.__file__}")
        found = {"passed": code == 0, "failed": watch.failed, "took": watch.took}
        self._answer.write_text(json.dumps(found))

    def _fork(self, path, expected):
        """What came of the tests of a file: what happened, in which, and how long they took."""
        self._answer.unlink(missing_ok=True)
        sys.stdout.flush()
        child = os.fork()
        if not child:
            try:
                os.setsid()
                self._run_tests(path, expected)
            except BaseException:
                traceback.print_exc()
            finally:
                os._exit(0)
        _, status = os.waitpid(child, 0)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(child, signal.SIGKILL)  # what the tests have started, and left
        if self._answer.exists():
            found = json.loads(self._answer.read_text())
            return {"outcome": "survived" if found["passed"] else "killed", **found}
        late = os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGALRM
        return {"outcome": "timed out" if late else "crashed", "failed": "", "took": {}}

    def control(self, path):
        """Runs the tests of a file without a fault; answers the seconds of each.

        Raises:
          SystemExit: they fail.
        """
        found = self._fork(path, self._expected.get(path, {}))
        if found["outcome"] != "survived":
            log = self._answer.with_suffix(".log").read_text()
            sys.exit(f"{log}\n{_tests_of(path)} {found['outcome']} without a fault")
        return found["took"]

    def digests(self, path):
        """What the result of a mutant depends on, nearly: its file, and the tests of that."""
        tests = (_tests_of(path), "tests/conftest.py")
        return {"source": self._digest(path), "tests": self._digest(*tests)}

    def _digest(self, *paths):
        files = [self.tree / path for path in paths]
        content = b"".join(file.read_bytes() for file in files if file.exists())
        return hashlib.sha256(content).hexdigest()[:12]

    def try_(self, mutant):
        """A line of the results: what the tests say of a mutant."""
        path, file = mutant.path, self.tree / mutant.path
        if path not in self._expected:
            self._expected[path] = self.control(path)
        digests, source, start = self.digests(path), file.read_text(), time.perf_counter()
        file.write_text(mutant.source)
        try:
            found = self._fork(path, self._expected[path])
        finally:
            file.write_text(source)
        names = ("key", "path", "line", "before", "after")
        return {
            **{name: getattr(mutant, name) for name in names},
            **digests,
            "outcome": found["outcome"],
            "by": found["failed"],
            "seconds": round(time.perf_counter() - start, 1),
        }


def _read(path):
    """Results by the keys of their mutants; of several the last."""
    lines = path.read_text().splitlines() if path.exists() else ()
    return {line["key"]: line for line in map(json.loads, lines)}


def _reasons_file(output):
    return output.with_name(f"{output.stem}_survivors.json")


def _reasons(output):
    """{key of a mutant: why nothing notices it}, as people have found out."""
    path = _reasons_file(output)
    return json.loads(path.read_text()) if path.exists() else {}


def _is_known(line, digests, reasons):
    """Whether a result still tells what trying the mutant again would."""
    if line is None or line["source"] != digests["source"]:
        return False
    same = line["tests"] == digests["tests"]
    return line["outcome"] != "survived" or same or line["key"] in reasons


def run(root, sample, output, patience):
    """Tries all mutants of a sample that have no result yet; answers all results."""
    lines, reasons = _read(output), _reasons(output)
    with tempfile.TemporaryDirectory() as folder:
        copy = _Copy(root, pathlib.Path(folder).resolve() / "tree", patience)
        left = [
            mutant
            for mutant in sample
            if not _is_known(lines.get(mutant.key), copy.digests(mutant.path), reasons)
        ]
        for done, mutant in enumerate(left, len(sample) - len(left) + 1):
            line = lines[mutant.key] = copy.try_(mutant)
            with output.open("a") as file:
                file.write(json.dumps(line) + "\n")
            place = f"{line['path']}:{line['line']}"
            print(f"{done}/{len(sample)}  {line['outcome']:<9} {line['seconds']:6.1f} s  {place}")
            print(f"    - {line['before']}\n    + {line['after']}", flush=True)
        # A survivor shows that the tests pass in the order in which they run here.
        alive = {m.path for m in left if lines[m.key]["outcome"] == "survived"}
        for path in {m.path for m in left} - alive:
            copy.control(path)
    found = [lines[mutant.key] for mutant in sample]
    output.write_text("".join(json.dumps(line) + "\n" for line in found))
    return found


def table(lines):
    """How many mutants of each file were killed, as Markdown."""
    rows = [
        "| file | mutants | killed | timed out | survived | noticed |",
        "|---|--:|--:|--:|--:|--:|",
    ]
    for path in (*dict.fromkeys(line["path"] for line in lines), "all"):
        outcomes = [line["outcome"] for line in lines if path in (line["path"], "all")]
        killed, late, alive = (
            sum(outcome in kinds for outcome in outcomes)
            for kinds in (("killed", "crashed"), ("timed out",), ("survived",))
        )
        count = len(outcomes)
        rows.append(f"| {path} | {count} | {killed} | {late} | {alive} | {1 - alive / count:.0%} |")
    return "\n".join(rows)


_PAGE = """# Mutation testing

Small faults are planted in these files, one at a time, and the tests of the file run: do they
notice? `python tools/mutation.py` wrote this page from `{results}`, where each mutant has a line,
and `{reasons}`, which explains the survivors. What the faults are: `tools/mutants.py`.

{table}

Crashes count as killed. What was killed stays so until its file changes, whatever becomes of the
tests. Together the runs took {minutes:.0f} minutes.

## Survivors

{survivors}
"""


def page(lines, output):
    """The page, Markdown.

    Args:
      lines: the results.
      output: where they are.
    """
    reasons = _reasons(output)
    survivors = [
        f"`{line['path']}`, line {line['line']} ({line['key']})\n\n"
        f"```diff\n- {line['before']}\n+ {line['after']}\n```\n\n"
        f"{reasons.get(line['key'], 'Not explained yet.')}"
        for line in sorted(lines, key=lambda line: (line["path"], line["line"]))
        if line["outcome"] == "survived"
    ]
    return _PAGE.format(
        results=output.name,
        reasons=_reasons_file(output).name,
        table=table(lines),
        minutes=sum(line["seconds"] for line in lines) / 60,
        survivors="\n\n".join(survivors) or "None.",
    )


def _parse():
    """What the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--mutants", type=int, default=160, help="about how many; %(default)s")
    parser.add_argument("--seed", type=int, default=0, help="of the sample; %(default)s")
    parser.add_argument("--output", type=pathlib.Path, default=ROOT / "docs" / "mutation.jsonl")
    parser.add_argument("--root", type=pathlib.Path, default=ROOT, help="the repository")
    parser.add_argument("--files", default=FILES, help="which to mutate; %(default)s")
    parser.add_argument("--preload", default=PRELOADED, help="what to import once; %(default)s")
    parser.add_argument("--patience", type=int, default=60, help="seconds; %(default)s")
    parser.add_argument("--list", action="store_true", help="say the sample, and try nothing")
    parser.add_argument("--page", action="store_true", help="write the page of the results again")
    return parser.parse_args()


def main():
    """Draws, tries, and writes the page."""
    given = _parse()
    everything = [
        mutant
        for path in given.files.split(",")
        for mutant in mutants.find(path, (given.root / path).read_text())
    ]
    sample = mutants.sample(everything, given.mutants / len(everything), given.seed)
    if given.list:
        for each in sample:
            print(f"{each.path}:{each.line}\n    - {each.before}\n    + {each.after}")
        return
    if given.page:
        lines = [*_read(given.output).values()]
    else:
        # Stale bytecode is of the same age and size as many a mutant's.
        sys.dont_write_bytecode = True
        os.environ |= {"PYTHONDONTWRITEBYTECODE": "1", "TF_CPP_MIN_LOG_LEVEL": "2"}
        for name in filter(None, given.preload.split(",")):
            importlib.import_module(name)
        lines = run(given.root, sample, given.output, given.patience)
    given.output.with_suffix(".md").write_text(page(lines, given.output))
    print(table(lines))


if __name__ == "__main__":
    main()
