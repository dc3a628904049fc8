"""What is installed: its commands, its files, what it asks for; by a wheel, away from the clone."""

import email
import importlib
import importlib.metadata
import os
import pathlib
import re
import shutil
import subprocess
import sys
import tomllib
import zipfile

import pytest
import yaml

import deit_tf

ROOT = pathlib.Path(__file__).parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
SCRIPTS = PROJECT["project"]["scripts"]
PACKAGES = ("deit_tf", "export", "serving")
FILES = ("pyproject.toml", "README.md", "LICENSE", "setup.cfg", "MANIFEST.in")


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """The wheel, built from a copy of what it is built from."""
    if int(importlib.metadata.version("setuptools").split(".")[0]) < 77:
        pytest.skip("setuptools is too old to build: pip install -r requirements-dev.txt")
    source = tmp_path_factory.mktemp("source")
    for package in PACKAGES:
        shutil.copytree(
            ROOT / package, source / package, ignore=shutil.ignore_patterns("__pycache__")
        )
    for path in (*ROOT.glob("requirements*.txt"), *map(ROOT.joinpath, FILES)):
        if path.exists():
            shutil.copy(path, source)
    build = ["wheel", "--no-deps", "--no-build-isolation", "--wheel-dir", source / "dist", source]
    _pip(*build)
    (found,) = (source / "dist").iterdir()
    return found


@pytest.fixture(scope="module")
def installed(wheel, tmp_path_factory):
    """The folder that the wheel was installed into, beside what this environment has."""
    target = tmp_path_factory.mktemp("installed")
    _pip("install", "--no-deps", "--no-compile", "--target", target, wheel)
    return target


def _pip(*arguments):
    quiet = ["--quiet", "--disable-pip-version-check", "--no-input"]
    answer = subprocess.run(
        [sys.executable, "-m", "pip", *map(str, arguments), *quiet],
        capture_output=True,
        text=True,
        check=False,
    )
    assert answer.returncode == 0, answer.stdout + answer.stderr


@pytest.fixture
def run(installed, tmp_path):
    """Function of a command and its arguments: runs what is installed, away from the clone."""

    def started(*arguments):
        return subprocess.run(
            list(map(str, arguments)),
            cwd=tmp_path,
            env={**os.environ, "PYTHONPATH": str(installed), "PYTHONDONTWRITEBYTECODE": "1"},
            capture_output=True,
            text=True,
            check=False,
        )

    return started


def _listed(name):
    """The requirements that a file lists, without what is said about them."""
    lines = [line.partition("#")[0].strip() for line in (ROOT / name).read_text().splitlines()]
    return [line for line in lines if line]


def _parts(requirement):
    """A requirement as its name, and its bounds in any order."""
    name, bounds = re.fullmatch(r"([\w.\[\]-]+)(.*)", requirement.replace(" ", "")).groups()
    return name.lower(), frozenset(filter(None, bounds.split(",")))


def test_every_file_of_requirements_is_an_extra_and_the_other_way_round():
    dynamic = PROJECT["tool"]["setuptools"]["dynamic"]
    files = {path.name for path in ROOT.glob("requirements-*.txt")}
    extras = dynamic["optional-dependencies"]
    assert {f"requirements-{extra}.txt" for extra in extras} == files
    assert all(facts == {"file": [f"requirements-{extra}.txt"]} for extra, facts in extras.items())
    for name in ("requirements.txt", *files):  # setuptools cannot read -r other.txt
        assert not [line for line in _listed(name) if line.startswith("-")]


def test_the_wheel_asks_for_what_the_files_list(wheel):
    with zipfile.ZipFile(wheel) as found:
        (path,) = [name for name in found.namelist() if name.endswith("/METADATA")]
        told = email.message_from_string(found.read(path).decode())
    asked = {}
    for line in told.get_all("Requires-Dist"):
        requirement, _, marker = line.partition(";")
        extra = re.search(r'extra == "(\w+)"', marker)
        asked.setdefault(extra and extra[1], set()).add(_parts(requirement))
    assert asked.pop(None) == set(map(_parts, _listed("requirements.txt")))
    assert set(asked) == set(told.get_all("Provides-Extra"))
    for extra, requirements in asked.items():
        assert requirements == set(map(_parts, _listed(f"requirements-{extra}.txt"))), extra
    assert told["Version"] == deit_tf.__version__


def test_the_wheel_holds_all_that_a_run_reads_and_nothing_else(wheel):
    with zipfile.ZipFile(wheel) as found:
        names = {name for name in found.namelist() if ".dist-info/" not in name}
        assert any(name.endswith("/licenses/LICENSE") for name in found.namelist())
    source = {
        str(path.relative_to(ROOT))
        for package in PACKAGES
        for path in (ROOT / package).rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    # Which machines install serving/requirements.txt from a clone.
    assert names == {name for name in source if not name.endswith("requirements.txt")}
    assert {f"{package}/py.typed" for package in PACKAGES} <= names


def test_every_command_has_a_script():
    commands = {
        f"{path.parent.name}.{path.stem}:run"
        for package in PACKAGES
        for path in (ROOT / package).glob("*.py")
        if '__name__ == "__main__"' in path.read_text()
    }
    assert set(SCRIPTS.values()) == commands
    for place in SCRIPTS.values():
        module, _, name = place.partition(":")
        assert callable(getattr(importlib.import_module(module), name))


@pytest.mark.parametrize("script", SCRIPTS)
def test_help_names_the_script_that_was_asked(script, installed, run):
    answer = run(installed / "bin" / script, "--help")
    assert not answer.stderr
    assert script in "".join(answer.stdout.split("\n\n")[:2])
    assert f"python -m {SCRIPTS[script].partition(':')[0]}" not in answer.stdout


@pytest.mark.parametrize(
    ("script", "arguments", "code", "words"),
    [
        ("deit-train", ["--model=deit"], 1, "no run directory; give --run_dir=DIR"),
        ("deit-train", ["--epoch=1"], 1, "Unknown command line flag 'epoch'"),
        ("deit-train", ["--flagfile=digits_distilled_finetune_48"], 1, "no run directory"),
        ("deit-label-bank", ["empty"], 1, "say one of fill, check, info"),
        ("deit-export-onnx", ["--run_dir=x"], 1, "no output; give --run_dir=DIR and --output="),
        ("deit-predict", ["x.png", "--model=none.onnx"], 1, "none.onnx is no ONNX file"),
        ("deit-predict", ["x.png"], 2, "--backend=onnx needs --model"),
    ],
)
def test_a_script_and_its_module_refuse_alike(script, arguments, code, words, installed, run):
    answer = run(installed / "bin" / script, *arguments)
    assert answer.returncode == code
    (line,) = answer.stderr.splitlines()
    assert line.startswith("error: ")
    assert words in line
    same = run(sys.executable, "-m", SCRIPTS[script].partition(":")[0], *arguments)
    assert (same.returncode, same.stderr) == (code, answer.stderr)


def test_what_runs_is_what_is_installed(installed, run):
    script = "import deit_tf, export, serving; print(deit_tf.__file__, *export.__path__)"
    found = run(sys.executable, "-c", script).stdout.split()
    assert found == [str(installed / "deit_tf" / "__init__.py"), str(installed / "export")]


@pytest.mark.slow
def test_what_is_installed_trains_and_draws(installed, run, data_dir, tmp_path):
    """A flagfile by its name alone, in a folder where nothing is."""
    flags = ("--flagfile=digits_teacher", f"--data_dir={data_dir}", "--epochs=1", "--nojit")
    made = run(installed / "bin" / "deit-train", *flags, "--warmup_epochs=0", "--run_dir=teacher")
    assert made.returncode == 0, made.stderr
    assert made.stdout.splitlines()[-1].startswith("class head")
    assert (tmp_path / "teacher" / "best.weights.h5").exists()
    drawn = run(installed / "bin" / "deit-train", *flags, "--preview=preview.png")
    assert drawn.returncode == 0, drawn.stderr
    assert (tmp_path / "preview.png").exists()


def test_the_citation_is_of_this_version():
    cited = yaml.safe_load((ROOT / "CITATION.cff").read_text("utf-8"))
    assert cited["cff-version"] == "1.2.0"
    assert cited["version"] == deit_tf.__version__
    assert cited["license"] == PROJECT["project"]["license"]
    paper = cited["preferred-citation"]
    assert (paper["authors"][0]["family-names"], paper["year"]) == ("Touvron", 2021)


def test_the_hooks_are_the_style_and_fetch_nothing():
    hooks = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())["repos"]
    assert [repo["repo"] for repo in hooks] == ["local"]
    commands = [hook["entry"].removesuffix(" --force-exclude") for hook in hooks[0]["hooks"]]
    assert all(hook["language"] == "system" for hook in hooks[0]["hooks"])
    assert commands == ["ruff check", "ruff format"]
