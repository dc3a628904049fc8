"""The house stands: imports go down only, and doors open at once."""

import ast
import pathlib
import subprocess
import sys
import time

import pytest

import deit_tf

PACKAGE = pathlib.Path(deit_tf.__file__).parent
ROOT = PACKAGE.parent


def _drawn():
    """The floors as CONTRIBUTING.md draws them, lowest first."""
    drawing = (ROOT / "CONTRIBUTING.md").read_text().split("```")[1]
    return [set(line.split(":")[1].split()) for line in drawing.splitlines() if ":" in line]


FLOORS = _drawn()


def _modules():
    return sorted(path.stem for path in PACKAGE.glob("*.py") if path.stem != "__init__")


def _imports(module):
    """Names of the modules of the package that a module imports, wherever it does."""
    found = set()
    for node in ast.walk(ast.parse((PACKAGE / f"{module}.py").read_text())):
        if isinstance(node, ast.ImportFrom) and node.module == "deit_tf":
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and (node.module or "").startswith("deit_tf."):
            found.add(node.module.split(".")[1])
        elif isinstance(node, ast.Import):
            names = [alias.name.split(".") for alias in node.names]
            found |= {parts[1] for parts in names if parts[0] == "deit_tf" and len(parts) > 1}
    return found


def _floor(module):
    return next(i for i, floor in enumerate(FLOORS) if module in floor)


def test_every_module_has_its_floor():
    assert sorted(set().union(*FLOORS)) == _modules()
    assert sum(map(len, FLOORS)) == len(_modules())


@pytest.mark.parametrize("module", _modules())
def test_imports_go_down_only(module):
    for other in _imports(module):
        assert _floor(other) < _floor(module), f"{module} imports {other}"


def _roots(path):
    """Top-level packages that a file imports, and the modules of ours."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom):
            found.add(node.module)
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
        elif isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
    return found


def test_the_library_knows_neither_export_nor_serving():
    for path in PACKAGE.glob("*.py"):
        assert not {name.split(".")[0] for name in _roots(path)} & {"export", "serving"}


def test_serving_knows_manifests_alone_and_no_tensorflow():
    for path in (ROOT / "serving").glob("*.py"):
        found = _roots(path)
        assert not {name.split(".")[0] for name in found} & {"tensorflow", "keras", "export"}
        ours = {name for name in found if name.split(".")[0] == "deit_tf"}
        assert all(name == "deit_tf" or name.startswith("deit_tf.manifest") for name in ours)


def test_networks_and_losses_are_keras_ops_alone():
    allowed = {"keras", "deit_tf", "dataclasses", "itertools", "math", "numpy"}
    for module in ("layers", "model", "regnet", "losses", "tokens"):
        for node in ast.walk(ast.parse((PACKAGE / f"{module}.py").read_text())):
            if isinstance(node, ast.ImportFrom):
                assert node.module.split(".")[0] in allowed
            elif isinstance(node, ast.Import):
                assert {alias.name.split(".")[0] for alias in node.names} <= allowed


def test_floor_zero_and_flags_need_no_tensorflow():
    script = "import sys, deit_tf.train, deit_tf.evaluate; print([*sys.modules])"
    loaded = subprocess.run(
        [sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout
    for heavy in ("tensorflow", "keras", "numpy", "sklearn"):
        assert f"'{heavy}'" not in loaded


@pytest.mark.parametrize("command", ["train", "evaluate"])
def test_help_answers_in_a_second(command):
    times = []
    for _ in range(3):
        start = time.perf_counter()
        answer = subprocess.run(
            [sys.executable, "-m", f"deit_tf.{command}", "--help"],
            cwd=ROOT,
            capture_output=True,
            text=True,
            check=False,
        )
        times.append(time.perf_counter() - start)
        assert "--run_dir" in answer.stdout
    assert min(times) < 1.0


def test_tests_share_by_fixtures_alone():
    # The tf2onnx wheel installs a package `tests` of its own; ours must not be imported by name.
    for path in pathlib.Path(__file__).parent.glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ImportFrom):
                assert (node.module or "").split(".")[0] != "tests"
