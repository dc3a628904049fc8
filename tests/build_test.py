"""BUILD says what the source says: its libraries are the floors, and every test has a target."""

import ast
import functools
import importlib.metadata
import pathlib
import re
import sys

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = pathlib.Path(__file__).parent.parent
BUILD = ast.parse((ROOT / "BUILD").read_text())  # Starlark, as far as we use it, parses as Python
DRAWING = (ROOT / "CONTRIBUTING.md").read_text().split("```")[1]
FLOORS = [line.split(":")[1].split() for line in DRAWING.splitlines() if ":" in line]


def _strings(node):
    """The strings of a list in BUILD; of a glob in it, the files that it finds."""
    if isinstance(node, ast.List):
        return [item.value for item in node.elts if isinstance(item, ast.Constant)]
    patterns = _strings(node.args[0])
    return [str(path.relative_to(ROOT)) for name in patterns for path in ROOT.glob(name)]


def _packages(node):
    """The packages that a list of dependencies in BUILD requires."""
    calls = [item for item in node.elts if isinstance(item, ast.Call)]
    return {canonicalize_name(call.args[0].value) for call in calls}


def _libraries():
    """The arguments of every py_library that holds modules, by name."""
    found = {}
    for node in BUILD.body:
        if isinstance(node, ast.Expr) and getattr(node.value, "func", None):
            given = {argument.arg: argument.value for argument in node.value.keywords}
            if node.value.func.id == "py_library" and "testonly" not in given:
                given.setdefault("deps", ast.List([]))
                found[given["name"].value] = given
    return found


LIBRARIES = _libraries()
HOME = {file: name for name, given in LIBRARIES.items() for file in _strings(given["srcs"])}


def _modules():
    return sorted(
        f"{package}/{path.name}"
        for package in ("deit_tf", "export", "serving")
        for path in (ROOT / package).glob("*.py")
    )


def _imports(file):
    """What a file imports, wherever it does: our files, and the names of others' packages."""
    ours, theirs = set(), set()
    for node in ast.walk(ast.parse((ROOT / file).read_text())):
        if isinstance(node, ast.ImportFrom):
            names = [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
        elif isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        else:
            continue
        ours |= {f"{name.replace('.', '/')}.py" for name in names} & HOME.keys()
        theirs.add(names[0].split(".")[0])
    return ours, theirs - sys.stdlib_module_names - {"deit_tf", "export", "serving"}


@functools.cache
def _providers():
    """By the name that is imported, the installed packages that it may come from."""
    return importlib.metadata.packages_distributions()


def _pins():
    """The version of every package of the lock."""
    lock = (ROOT / "requirements_lock.txt").read_text()
    return dict(re.findall(r"^([a-z0-9-]+)==([^ ]+) \\$", lock, re.MULTILINE))


def test_every_file_of_tests_has_its_target():
    tests = next(
        ast.literal_eval(node.value)
        for node in BUILD.body
        if isinstance(node, ast.Assign) and node.targets[0].id == "TESTS"
    )
    named = [name for group in tests.values() for name in group]
    assert sorted(named) == sorted(path.stem for path in (ROOT / "tests").glob("*_test.py"))


def test_every_module_is_in_exactly_one_library():
    held = [file for given in LIBRARIES.values() for file in _strings(given["srcs"])]
    assert sorted(held) == _modules()


def _level(library):
    """How high a library stands: its floor in the picture, then serving, then export."""
    files = [pathlib.Path(file) for file, name in HOME.items() if name == library]
    if files[0].parent.name != "deit_tf":
        return len(FLOORS) + ("session", "serving", "export").index(library)
    (level,) = {
        next(i for i, floor in enumerate(FLOORS) if file.stem in floor)
        for file in files
        if file.stem != "__init__"
    }
    return level


@pytest.mark.parametrize("library", LIBRARIES)
def test_a_library_depends_on_lower_floors_only(library):
    for other in _strings(LIBRARIES[library]["deps"]):
        assert _level(other[1:]) < _level(library), other


def test_serving_depends_on_manifests_alone():
    assert _strings(LIBRARIES["session"]["deps"]) == [":manifest"]
    assert set(_strings(LIBRARIES["serving"]["deps"])) == {":manifest", ":session"}
    assert _strings(LIBRARIES["manifest"]["deps"]) == [":words"]
    assert ":serving" not in _strings(LIBRARIES["export"]["deps"])


@pytest.mark.parametrize("library", LIBRARIES)
def test_a_library_depends_on_what_its_modules_import(library):
    files = [file for file, name in HOME.items() if name == library]
    used = {f":{HOME[other]}" for file in files for other in _imports(file)[0]}
    assert set(_strings(LIBRARIES[library]["deps"])) == used - {f":{library}"}


@pytest.mark.parametrize("library", LIBRARIES)
def test_a_library_requires_the_packages_that_its_modules_import(library):
    required, pins, providers = _packages(LIBRARIES[library]["deps"]), _pins(), _providers()
    for file in (file for file, name in HOME.items() if name == library):
        for package in _imports(file)[1]:
            offers = {canonicalize_name(name) for name in providers.get(package, [package])}
            # What the lock has not, such as PyTorch, is optional and found where it is installed.
            assert offers & required or not offers & pins.keys(), f"{file} imports {package}"


@pytest.mark.parametrize("name", ["requirements.txt", "requirements-dev.txt"])
def test_the_lock_satisfies_what_is_required(name):
    pins = _pins()
    lines = (line.split("#")[0].strip() for line in (ROOT / name).read_text().splitlines())
    for wanted in (Requirement(line) for line in lines if line and not line.startswith("-")):
        pinned = pins[canonicalize_name(wanted.name)]
        assert wanted.specifier.contains(pinned), f"{wanted}, but {pinned} in the lock"


def test_the_lock_names_no_host():
    assert "://" not in (ROOT / "requirements_lock.txt").read_text()
