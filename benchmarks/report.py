"""Writes docs/performance.md and its plots from the results files of the benchmarks.

    python -m benchmarks.report
    python -m benchmarks.report --check

No figure of the page is typed by hand. Blocks between `<!-- performance:NAME -->` and
`<!-- end -->` in README.md and in the other pages of docs are filled with it (`blocks.BLOCKS` are
the names). `--check` writes nothing, and fails where a page is not what the files give.
"""

import argparse
import contextlib
import pathlib
import sys

from benchmarks import blocks, pages, results
from deit_tf.config import InputError

ROOT = pathlib.Path(__file__).resolve().parent.parent
PAGE, PLOTS = "performance.md", "performance"
_INTRODUCTION = """# Performance

Made by `python -m benchmarks.report` from the files of `benchmarks/results`: nothing here is typed
by hand. Engines that are compared ran side by side, each in a process of its own, and took turns; a
ratio is taken within a turn, and shown as the median of all turns with the quartiles in brackets.
*Faster* and *slower* are said where the middle half of the turns lies on one side of 1, *not told
apart* otherwise. In the plots small dots are turns, large ones medians, bars the quartiles; ours is
blue."""


def load(folder):
    """{name: what its results file holds}.

    Raises:
      InputError: a file is broken, or none that a benchmark writes.
    """
    known = {section.name for section in pages.SECTIONS}
    found = {}
    for path in sorted(pathlib.Path(folder).glob("*.json")):
        if path.stem in known:
            found[path.stem] = results.read(path)
        else:
            raise InputError(
                f"{path}: no benchmark writes it; known are {', '.join(sorted(known))}"
            )
    if "operations" in found:  # how many cores feed a GPU is another benchmark's to say
        found["operations"]["per_core"] = None
        if "input_pipeline" in found:
            with _as_written("input_pipeline"):
                found["operations"]["per_core"] = pages.per_core(found["input_pipeline"])
    return found


@contextlib.contextmanager
def _as_written(name):
    """Says of which results file it is that something in it is not as its benchmark writes it."""
    try:
        yield
    except (AttributeError, LookupError, TypeError, ValueError) as error:
        raise InputError(
            f"{name}.json is not what its benchmark writes: {type(error).__name__}: {error}"
        ) from error


def render(files, folder):
    """The pages as they ought to be: {path: text}.

    Args:
      files: what `load` answered.
      folder: docs; README.md lies beside it.
    """
    page = folder / PAGE
    links = [f"[{each.title}](#{_anchor(each.title)})" for each in pages.SECTIONS]
    if (folder / "ablation.md").exists():
        links.append("[Ways to distil, measured small](ablation.md)")
    parts = [_INTRODUCTION, "\n".join(f"- {link}" for link in links)]
    parts += [_section(each, files.get(each.name)) for each in pages.SECTIONS]
    made = {page: "\n\n".join(parts) + "\n"}
    for path in [folder.parent / "README.md", *sorted(folder.glob("*.md"))]:
        if path.exists() and path != page:
            made[path] = blocks.fill(path.read_text("utf-8"), files, path)
    return made


def _anchor(title):
    return title.lower().replace(" ", "-")


def _section(section, found):
    """A heading and what stands below; how to make the file, where there is none."""
    title, command = f"## {section.title}", section.command()
    if found is None:
        return f"{title}\n\nNot measured: there is no {section.name}.json. `{command}` makes it."
    with _as_written(section.name):
        text, provenance = section.text(found), pages.provenance(section, found)
    said, plot = section.said or pages.about(section.script)[0], f"{PLOTS}/{section.name}.png"
    return f"{title}\n\n{said}\n\n{provenance}\n\n![{section.title}]({plot})\n\n{text}"


def draw(files, folder):
    """Draws a plot for each results file."""
    from matplotlib import figure  # no pyplot: no display, no state; a second to import

    (folder / PLOTS).mkdir(parents=True, exist_ok=True)
    for path, section in _plots(files, folder).items():
        picture = figure.Figure(layout="constrained")
        section.draw(files[section.name], picture)
        picture.savefig(path, dpi=110, metadata={"Software": None})


def _plots(files, folder):
    """{path: section} of the plots that there must be."""
    return {
        folder / PLOTS / f"{section.name}.png": section
        for section in pages.SECTIONS
        if section.name in files
    }


def main(words=None):
    """Writes or checks the pages; what a person can mend is one line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--results_dir", default=results.FOLDER, type=pathlib.Path)
    parser.add_argument("--output_dir", default=ROOT / "docs", type=pathlib.Path)
    parser.add_argument("--check", action="store_true", help="write nothing, fail where it differs")
    arguments = parser.parse_args(words)
    try:
        files = load(arguments.results_dir)
        made = render(files, arguments.output_dir)
    except InputError as error:
        sys.exit(f"error: {error}")
    if arguments.check:
        stale = [path for path, text in made.items() if _read(path) != text]
        stale += [path for path in _plots(files, arguments.output_dir) if not path.exists()]
        if stale:
            names = ", ".join(map(str, stale))
            sys.exit(f"error: not what the results give: {names}; run python -m benchmarks.report")
        return
    draw(files, arguments.output_dir)
    for path, text in made.items():
        if _read(path) != text:
            path.write_text(text, "utf-8")


def _read(path):
    return path.read_text("utf-8") if path.exists() else None


if __name__ == "__main__":
    main()
