"""Every command in README.md and docs/ is run as it stands, on less work, or says why it is not."""

import collections
import os
import pathlib
import re
import shutil
import subprocess
import sys
import tomllib

import pytest

ROOT = pathlib.Path(__file__).parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
_BLOCK = re.compile(
    r"(?:^<!-- not run: (?P<why>[^>]+) -->\n)?^```(?P<language>\w*)\n(?P<text>.*?)^```", re.M | re.S
)
_LESS = "--train_split=train[:64] --eval_split=test[:32] --warmup_epochs=0"
# What is added, by module and, where it has any, its own command.
SHORTER = {
    "deit_tf.train": f"{_LESS} --epochs=1",
    "deit_tf.label_bank fill": f"{_LESS} --epochs=0:1",
    "deit_tf.label_bank check": f"{_LESS} --sample=32",
    "export.savedmodel": "--max_batch_size=4",
}
_DONE = {}  # {command: what it printed}


def blocks(page, language="bash"):
    """The commands of a page, block by block, but those that are not run."""
    found = (match for match in _BLOCK.finditer(page.read_text("utf-8")))
    return [m["text"] for m in found if m["language"] == language and not m["why"]]


def commands(block):
    """The commands of a block, shortened; `make` as what it would do once it has installed."""
    for line in block.replace("\\\n", " ").splitlines():
        if line.startswith("make "):
            told = subprocess.run(
                ["make", "-n", "BIN=", "PYTHON=python", *line.split()[1:]],
                cwd=ROOT,
                capture_output=True,
                text=True,
                check=True,
            )
            made = told.stdout.splitlines()
            yield from (
                shorter(do[1:]) for do in made if re.match("/python (-m (?!venv|pip)|tools)", do)
            )
        else:
            yield shorter(line)


def shorter(command):
    """A command with what makes it do less."""
    words = command.split()
    for name, flags in SHORTER.items():
        if name in (" ".join(words[2:3]), " ".join(words[2:4])):
            return " ".join([command, *(f"'{flag}'" for flag in flags.split())])
    return command


@pytest.fixture(scope="module")
def house(tmp_path_factory, data_dir):
    """A folder as a reader has it: the clone, the digits, and photographs."""
    from sklearn import datasets

    folder = tmp_path_factory.mktemp("house")
    for name in ("deit_tf", "export", "serving", "tools", "benchmarks"):
        (folder / name).symlink_to(ROOT / name)
    (folder / "data").symlink_to(data_dir)
    (folder / "photos").mkdir()
    images = pathlib.Path(datasets.__file__).parent / "images"
    shutil.copy(images / "flower.jpg", folder / "photo.jpg")
    shutil.copy(images / "china.jpg", folder / "photos")
    return folder


def run(house, page):
    """Runs a page's commands, once for all pages; answers [(command, what it printed)]."""
    path = f"{pathlib.Path(sys.executable).parent}:{os.environ['PATH']}"
    env = {**os.environ, "PATH": path, "PYTHONPATH": str(ROOT)}
    answers = []
    for command in (one for block in blocks(page) for one in commands(block)):
        if command in _DONE:
            answers.append((command, _DONE[command]))
            continue
        told = subprocess.run(
            ["bash", "-c", command], cwd=house, env=env, capture_output=True, text=True
        )
        assert told.returncode == 0, f"{page.name}: {command}\n{told.stderr[-2000:]}"
        _DONE[command] = told.stdout
        answers.append((command, told.stdout))
    return answers


@pytest.fixture(scope="module")
def readme(house):
    """What the README's commands answer; all other pages begin with what they make."""
    return run(house, PAGES[0])


def test_the_readme_leads_from_digits_to_a_named_photograph(readme, house):
    *_, (_, named) = readme
    assert "photo.jpg" in named
    assert [c.split()[2] for c, _ in readme] == [
        *("deit_tf.train", "deit_tf.train", "deit_tf.train"),
        *("export.onnxmodel", "serving.predict"),
    ]
    assert (house / "runs/mine/history.csv").exists()


@pytest.mark.parametrize("page", [page for page in PAGES[1:] if blocks(page)], ids=lambda p: p.stem)
def test_commands_of_the_page_run(page, readme, house):
    assert run(house, page)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_every_block_says_what_it_is(page):
    for match in _BLOCK.finditer(page.read_text("utf-8")):
        assert match["language"] in ("bash", "text", "python", "yaml", "diff"), match["text"][:80]
        if match["language"] == "text":
            assert not re.match(r"(python|make|pip|docker|curl) ", match["text"]), match["text"]


def _inline():
    """Commands within the prose: what starts each, and all flags that it is shown with."""
    scripts = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["scripts"]
    found = collections.defaultdict(set)
    for page in [*PAGES, ROOT / "CONTRIBUTING.md"]:
        for command in re.findall(r"`([^`]+)`", _BLOCK.sub("", page.read_text("utf-8"))):
            first, *rest = command.split()
            if first in scripts:
                start = ("-m", scripts[first].partition(":")[0])
            else:
                start = tuple(rest[: 2 if rest[:1] == ["-m"] else 1])
            if first in scripts or (first == "python" and rest):
                found[start] |= set(re.findall(r"--(\w+)", command))
    return sorted(found.items())


@pytest.mark.parametrize(("start", "flags"), _inline(), ids=lambda given: " ".join(sorted(given)))
def test_flags_of_commands_in_the_prose_are_known(start, flags):
    command = [sys.executable, *start, "--help"]
    told = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert told.returncode == 0, told.stderr
    assert flags <= set(re.findall(r"--(?:\[no\])?(\w+)", told.stdout)) | {"flagfile", "help"}


def test_links_lead_somewhere():
    for page in [*PAGES, ROOT / "CONTRIBUTING.md", ROOT / "tests/data/README.md"]:
        text = page.read_text("utf-8")
        for target in re.findall(r"(?:\]\(|src=\")(?!https?://)([^)#\"]+)", text):
            assert (page.parent / target).exists(), f"{page.name}: {target}"
        for anchor in re.findall(r"\]\(([^)]*#[^)]+)\)", text):
            file, name = anchor.split("#", 1)
            if not file.startswith("http"):
                other = (page.parent / file if file else page).read_text("utf-8")
                titles = re.findall(r"^#+ (.+)$", other, re.M)
                slugs = [re.sub(r"[^\w -]", "", t).lower().replace(" ", "-") for t in titles]
                assert name in slugs, f"{page.name}: {anchor}"
