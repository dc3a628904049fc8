"""Short tables for other pages, between `<!-- performance:NAME -->` and `<!-- end -->`."""

import re

from benchmarks import cost, words
from benchmarks.results import median, number, ratios, table
from deit_tf.config import InputError

_MARKED = re.compile(r"(<!-- performance:(\w+) -->)(.*?)(<!-- end -->)", re.DOTALL)
_OPENS = re.compile(r"<!-- performance:")


def fill(page, files, where):
    """A page whose marked blocks say what the results files give.

    Args:
      page: Markdown.
      files: {name: what a results file holds}.
      where: the page's name, for errors.

    Raises:
      InputError: a block is unknown or not closed, or its results file is not there.
    """
    if len(_OPENS.findall(page)) != sum(
        not _OPENS.search(found[3]) for found in _MARKED.finditer(page)
    ):
        raise InputError(f"{where}: a performance block has no <!-- end -->")

    def filled(found):
        opened, name, _, closed = found.groups()
        if name not in BLOCKS:
            raise InputError(f"{where}: no performance block {name}; there are {', '.join(BLOCKS)}")
        source, make = BLOCKS[name]
        if source not in files:
            raise InputError(f"{where}: the block {name} needs {source}.json")
        return f"{opened}{make(files[source])}{closed}"

    return _MARKED.sub(filled, page)


def _paragraph(make):
    """The same on lines of its own, as a table must stand."""
    return lambda found: f"\n\n{make(found)}\n\n"


def _train_step(found):
    peers = [name for name in words.ENGINES if name != "deit_tf"]
    rows = []
    for row in found["rows"]:
        rates = {name: each["images_per_second"] for name, each in row["engines"].items()}
        ours = rates["deit_tf"]
        over = [f"{median(ratios(ours, rates[p])):.2f}" if p in rates else "–" for p in peers]
        rows.append([words.case(row), number(median(ours)), *over])
    return table(["case", "images/s", *(f"÷ {words.ENGINES[name]}" for name in peers)], rows)


def _pipeline(found):
    rates = found["images_per_second"]
    rows = []
    for stage, ours in rates["deit_tf"].items():
        theirs = rates["timm"][stage]
        middles = (number(median(each)) for each in (ours, theirs))
        rows.append([stage, *middles, f"{median(ratios(ours, theirs)):.2f}"])
    return table(["images/s", "deit-tf", f"timm {found['versions']['timm']}", "ratio"], rows)


def _pipeline_ratio(found):
    ours, theirs = (
        list(found["images_per_second"][name].values())[-1] for name in ("deit_tf", "timm")
    )
    return f"{median(ratios(ours, theirs)):.2f}"


def _label_bank(found):
    base = found["engines"]["no teacher"]["seconds"]
    rows = [
        [name, number(median(each["seconds"])), f"{median(ratios(each['seconds'], base)):.2f}"]
        for name, each in found["engines"].items()
    ]
    return table(["a training step", "seconds", "×"], rows)


def _inference(found):
    head, lines = [""], {name: [title] for name, title in words.ANSWERS.items()}
    for row in found["rows"]:
        head += [f"{words.SIZES[row['model']]}, {words.unit(row)}", "×"]
        for name in row["engines"]:
            speed = median(words.speeds(row, name))
            lines[name] += [number(median(words.answers(row, name))), f"{speed:.2f}"]
    return table(head, [line for line in lines.values() if len(line) == len(head)])


def _cost(found):
    rows = []
    for student in cost.STUDENTS:
        asked, read = (
            cost.plan(found["networks"], student, cost.MACHINE, way) for way in ("live", "bank")
        )
        hours = [number(asked.gpu_hours), number(read.gpu_hours)]
        rows.append([words.SIZES[student], *hours, f"{1 - read.hours / asked.hours:.0%}"])
    name = f"{cost.A100.name}-hours on {cost.MACHINE} GPUs"
    return table([name, "teacher asked, or bank filled", "bank read", "saved"], rows)


BLOCKS = {
    "train_step": ("train_step", _paragraph(_train_step)),
    "pipeline": ("input_pipeline", _paragraph(_pipeline)),
    "pipeline_ratio": ("input_pipeline", _pipeline_ratio),
    "label_bank": ("label_bank", _paragraph(_label_bank)),
    "inference": ("inference", _paragraph(_inference)),
    "cost": ("operations", _paragraph(_cost)),
}
