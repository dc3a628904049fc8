"""The tool that asks whether tests notice faults, on a tiny project with tests of its own."""

import ast
import importlib.util
import json
import pathlib
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).parent.parent
TOOL = ROOT / "tools" / "mutation.py"
MODULE = '''
def loss(found, wanted):
    """Nothing of this is touched."""
    return -(found * wanted)


def unasked(number):
    return number


def wait():
    while idle():
        pass


def idle():
    pass
'''
TESTS = """
import subprocess, sys

from thing import losing

def test_the_loss_has_its_sign():
    assert losing.loss(2, 4) == -8

def test_it_waits_for_nothing():
    losing.wait()

def test_other_processes_have_the_same_fault():
    code = "from thing import losing; print(losing.loss(3, 3))"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert int(found.stdout) == losing.loss(3, 3)
"""


def _run(*arguments):
    command = [sys.executable, TOOL, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


@pytest.fixture(scope="module")
def mutants():
    spec = importlib.util.spec_from_file_location("mutants", TOOL.with_name("mutants.py"))
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def project(tmp_path):
    """Function (tests): arguments of the tool for a project that has such."""

    def make(tests):
        for path, text in (("thing/losing.py", MODULE), ("tests/losing_test.py", tests)):
            file = tmp_path / "project" / path
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(text)
        (tmp_path / "project" / "pytest.ini").write_text("[pytest]\npythonpath = .\n")
        places = [f"--root={tmp_path / 'project'}", f"--output={tmp_path / 'found.jsonl'}"]
        return [*places, "--files=thing/losing.py", "--preload=pytest", "--patience=5"]

    return make


def test_what_tests_notice_is_killed_and_what_they_do_not_survives(project, tmp_path):
    arguments = project(TESTS)
    answer = _run(*arguments)
    assert answer.returncode == 0, answer.stderr
    lines = [json.loads(line) for line in (tmp_path / "found.jsonl").read_text().splitlines()]
    found = {(line["before"], line["after"]): line["outcome"] for line in lines}
    assert found == {
        ("return -(found * wanted)", "return (found * wanted)"): "killed",
        ("return -(found * wanted)", "return -(found / wanted)"): "killed",
        ("return -(found * wanted)", "return None"): "killed",
        ("return number", "return None"): "survived",
        ("while idle():", "while (not (idle())):"): "timed out",
    }
    by = {line["by"].rpartition("::")[2] for line in lines if line["outcome"] == "killed"}
    assert by == {"test_the_loss_has_its_sign"}
    assert (tmp_path / "project" / "thing" / "losing.py").read_text() == MODULE
    assert "| all | 5 | 3 | 1 | 1 | 80% |" in answer.stdout
    page = (tmp_path / "found.md").read_text()
    assert "```diff\n- return number\n+ return None\n```\n\nNot explained yet." in page

    # Again: only the survivor, once tests have changed that may notice it.
    assert _run(*arguments).stdout.startswith("| file |")
    asked = "\ndef test_it_answers():\n    assert losing.unasked(7) == 7\n"
    again = _run(*project(TESTS + asked)).stdout
    assert again.startswith("5/5  killed")
    assert "| all | 5 | 4 | 1 | 0 | 100% |" in again
    assert (tmp_path / "found.jsonl").read_text().count("\n") == 5


def test_tests_that_fail_without_a_fault_tell_nothing(project):
    answer = _run(*project(TESTS + "\ndef test_wrong():\n    assert losing.loss(1, 1) == 1\n"))
    assert answer.returncode == 1
    assert "losing_test.py killed without a fault" in answer.stderr


SOURCE = '''"""Docstring."""
import math


def area(radius, half=True, names=("sum", "a b")):
    if radius < 0 and not half:
        raise ValueError("radius is", radius)
    ä = "ü"; total = sum([math.pi, -radius]) ** 2
    self.total = total
    print("total", 3)
    total += 1
    return f"{total} {7}"
'''
EDITS = [
    ("half=True", "half=False"),
    ('("sum"', "('mean'"),
    ("radius < 0 and not half", "(not (radius < 0 and not half))"),
    ("<", "<="),
    ("< 0", "< (1)"),
    ("< 0", "< (-1)"),
    ("and", "or"),
    ("not half", " half"),
    ('raise ValueError("radius is", radius)', "pass"),
    ('"ü"', "'XXüXX'"),
    ("sum([", "mean(["),
    ("-radius", "radius"),
    ("**", "*"),
    ("** 2", "** (3)"),
    ("** 2", "** (1)"),
    ("self.total = total", "pass"),
    ("total += 1", "pass"),
    ("+=", "-="),
    ("+= 1", "+= (2)"),
    ("+= 1", "+= (0)"),
    ('f"{total} {7}"', "None"),
]


def test_faults_are_edits_of_code_and_not_of_words(mutants):
    found = [mutant.source for mutant in mutants.find("area.py", SOURCE)]
    assert sorted(found) == sorted(SOURCE.replace(*edit, 1) for edit in EDITS)


def test_every_fault_is_a_program_and_has_its_own_name(mutants):
    path = ROOT / "deit_tf" / "label_bank.py"
    found = mutants.find("label_bank.py", path.read_text())
    assert len({mutant.key for mutant in found}) == len(found) > 100
    for mutant in found:
        ast.parse(mutant.source)
        assert mutant.source != path.read_text()


def test_a_larger_sample_adds_to_the_smaller(mutants):
    found = mutants.find("area.py", SOURCE)
    small, large = (mutants.sample(found, share, 3) for share in (0.2, 0.6))
    assert 0 < len(small) < len(large) < len(found)
    assert large[: len(small)] == small
    assert small != mutants.sample(found, 0.2, 4)


def test_the_page_is_what_the_results_say_and_explains_every_survivor(tmp_path):
    for name in ("mutation.jsonl", "mutation_survivors.json"):
        (tmp_path / name).write_bytes((ROOT / "docs" / name).read_bytes())
    assert _run("--page", f"--output={tmp_path / 'mutation.jsonl'}").returncode == 0
    page = (tmp_path / "mutation.md").read_text()
    assert page == (ROOT / "docs" / "mutation.md").read_text()
    assert "Not explained yet" not in page
    lines = [json.loads(line) for line in (tmp_path / "mutation.jsonl").read_text().splitlines()]
    survived = sum(line["outcome"] == "survived" for line in lines)
    assert len({line["key"] for line in lines}) == len(lines) >= 150
    assert survived <= 0.15 * len(lines)
