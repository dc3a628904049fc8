"""What `benchmarks.ablation` has measured, as a page beside the paper's tables, and as a picture.

Every number is computed from the lines of results; a sentence that depends on one is, too.
"""

import collections
import math
import statistics

from scipy import stats

from benchmarks.results import table

TRAIN_IMAGES = 1400
_CNN, _VIT = (
    "convolutional teacher",
    "no distillation",
)  # what teaches; the latter is a student, too

# Touvron et al. 2021, table 3: top-1 on ImageNet after 300 epochs, per cent, of Ti, S and B.
PAPER = {
    (_CNN, "cls"): (82.9, 82.9, 82.9),
    (_VIT, "cls"): (72.2, 79.8, 81.8),
    ("soft", "cls"): (72.2, 79.8, 81.8),
    ("hard", "cls"): (74.3, 80.9, 83.0),
    ("token", "cls"): (73.9, 80.9, 83.0),
    ("token", "dist"): (74.6, 81.1, 83.1),
    ("token", "fused"): (74.5, 81.2, 83.4),
}
HEADS = {
    (_CNN, "cls"): "the teacher",
    (_VIT, "cls"): "no distillation",
    ("soft", "cls"): "soft, class token",
    ("hard", "cls"): "hard, class token",
    ("token", "cls"): "distillation token: class head",
    ("token", "dist"): "distillation token: distillation head",
    ("token", "fused"): "distillation token: both",
}
# Table 2: of the teacher, and of DeiT-B that learned from it.
TEACHERS = (
    (_VIT, "token, transformer teacher", "transformer", (81.8, 81.9)),
    (_CNN, "token", "convolutional", (82.9, 83.1)),
)
# Table 8: of DeiT-B with the whole recipe (81.8), and without this part of it.
PARTS = (
    ("token, repeated augmentation", "repeated augmentation", "76.5"),
    ("token, mixup and cutmix", "mixup and cutmix", "75.8"),
    ("token, random erasing", "random erasing", "4.3 (diverged)"),
)
# What is compared: (way, head) over (way, head).
COMPARISONS = (
    (("soft", "cls"), (_VIT, "cls"), "soft over none"),
    (("hard", "cls"), (_VIT, "cls"), "hard over none"),
    (("hard", "cls"), ("soft", "cls"), "hard over soft"),
    (("token", "fused"), ("hard", "cls"), "token over hard"),
    (("token", "dist"), ("token", "cls"), "its head over the class head"),
    (("token", "fused"), ("token", "dist"), "both heads over its head"),
    (
        ("token", "fused"),
        ("token, transformer teacher", "fused"),
        "convolutional over transformer teacher",
    ),
    (("token", "fused"), (_CNN, "cls"), "student over teacher"),
)

Mean = collections.namedtuple("Mean", "value half")


def mean(values):
    """Mean and half of its 95 % confidence interval by Student's t; nan of fewer than 3 values.

    Of two that happen to be equal it would be nothing, and accuracies come in steps.
    """
    count, middle = len(values), statistics.fmean(values)
    if count < 3:
        return Mean(middle, math.nan)
    spread = statistics.stdev(values) / math.sqrt(count)
    return Mean(middle, float(stats.t.ppf(0.975, count - 1)) * spread)


class Rows:
    """The lines of results.

    Args:
      rows: {`ablation.Run`: its line}.
    """

    def __init__(self, rows):
        self.rows = rows
        self.amounts = sorted({run.labels for run in rows})

    def top1(self, way, head, labels):
        """{seed: per cent} of a head."""
        return {
            run.seed: 100 * row["top1"][head]
            for run, row in sorted(self.rows.items())
            if (run.way, run.labels) == (way, labels) and head in row["top1"]
        }

    def mean(self, way, head, labels):
        """The `Mean` over seeds, per cent; None where nothing was measured."""
        found = list(self.top1(way, head, labels).values())
        return mean(found) if found else None

    def gain(self, better, worse, labels):
        """The `Mean` of what `better` (way, head) is above `worse`, seed by seed; or None."""
        a, b = self.top1(*better, labels), self.top1(*worse, labels)
        both = [a[seed] - b[seed] for seed in a if seed in b]
        return mean(both) if both else None


def direction(gain):
    """1 or -1 where the interval of a `Mean` lies above or below zero, else 0."""
    if not abs(gain.value) > gain.half:
        return 0
    return 1 if gain.value > 0 else -1


def _percent(found, sign=""):
    """A `Mean` as a cell of a table."""
    if found is None:
        return "–"
    half = "" if math.isnan(found.half) else f" ± {found.half:.1f}"
    return f"{found.value:{sign}.1f}{half}"


def _difference(gain):
    """A `Mean` of differences as a cell, bold where its interval does not hold zero."""
    cell = _percent(gain, "+")
    return f"**{cell}**" if gain and direction(gain) else cell


def _published(better, worse):
    """The paper's differences, of Ti, S and B; of the two teachers, of B alone."""
    if better in PAPER and worse in PAPER:
        pairs = zip(PAPER[better], PAPER[worse], strict=True)
    else:
        (*_, (_, transformer)), (*_, (_, convolutional)) = TEACHERS
        pairs = [(convolutional, transformer)]
    return [round(a - b, 1) for a, b in pairs]


def _images(labels):
    return f"{labels} images"


def _heads(rows):
    """Table 3."""
    amounts = rows.amounts
    titles = ["", *("paper: Ti", "S", "B"), *map(_images, amounts)]
    lines = [
        [name, *PAPER[way, head], *(_percent(rows.mean(way, head, n)) for n in amounts)]
        for (way, head), name in HEADS.items()
    ]
    return table(titles, lines)


def _teachers(rows):
    """Table 2."""
    titles = ["teacher", "paper: teacher", "student"]
    titles += [f"{_images(n)}: {who}" for n in rows.amounts for who in ("teacher", "student")]
    lines = []
    for teacher, student, name, paper in TEACHERS:
        pairs = [
            (rows.mean(teacher, "cls", n), rows.mean(student, "fused", n)) for n in rows.amounts
        ]
        lines.append([name, *paper, *(_percent(one) for pair in pairs for one in pair)])
    return table(titles, lines)


def _parts(rows):
    """Table 8."""
    labels, lines = rows.amounts[-1], []
    for way, name, without in PARTS:
        gain = rows.gain((way, "fused"), ("token", "fused"), labels)
        here = _percent(rows.mean(way, "fused", labels))
        lines.append([name, without, here, _difference(gain)])
    base = _percent(rows.mean("token", "fused", labels))
    lines.insert(0, ["the recipe that it is compared with", "81.8", base, ""])
    titles = ["", "paper: B without it", f"{_images(labels)}: with it", "difference"]
    return table(titles, lines)


def _comparisons(rows):
    """What the paper finds, and what is found here."""
    lines = []
    for better, worse, name in COMPARISONS:
        paper = " / ".join(f"{value:+.1f}" for value in _published(better, worse))
        gains = (rows.gain(better, worse, n) for n in rows.amounts)
        lines.append([name, paper, *map(_difference, gains)])
    return table(["", "paper: Ti / S / B", *map(_images, rows.amounts)], lines)


def _kind(here, there):
    """What directions found here say to those of the paper."""
    if not here:
        return "open"
    if len(there) > 1:
        return "both" if len(here) == 1 else "as there"
    return "as there" if here <= there else "otherwise"


def _sentences(rows):
    """What carries over: the paper's directions and those that are found here."""
    found = collections.defaultdict(list)
    for better, worse, name in COMPARISONS:
        gains = [gain for n in rows.amounts if (gain := rows.gain(better, worse, n))]
        if not gains:
            continue
        here = {direction(gain) for gain in gains} - {0}
        paper = _published(better, worse)
        there = {int(math.copysign(1, value)) for value in paper if value}
        found[_kind(here, there)].append(name)
    said = {
        "as there": "In the paper's direction, with at least one number of images",
        "otherwise": "In a direction that the paper does not have",
        "both": "In one direction, where the paper has both, by the size of the network",
        "open": "Neither found nor excluded by so few images and seeds",
    }
    return "\n".join(f"- {said[kind]}: {', '.join(found[kind])}." for kind in said if found[kind])


def _learned(rows):
    """How much of its own training images a teacher knows: what else could it tell of them?"""
    known = collections.defaultdict(list)
    for run, row in rows.rows.items():
        if run.way == _CNN:
            known[run.labels].append(100 * row["train_top1"])
    if not known:
        return ""
    means = ", ".join(f"{statistics.fmean(known[n]):.1f} % of {n}" for n in sorted(known))
    return f"""In its last epoch a convolutional teacher names so many of the augmented views of its
training images as they are labelled: {means}.
So there is little that its decision could add to the label; the paper expects it to differ from
crop to crop (section 4).

"""


def _machines(rows):
    """Where, when and with what the lines were made."""
    found = {
        (row["cpu"], row["python"], *row["versions"].items(), row["date"])
        for row in rows.rows.values()
    }
    return "; ".join(
        f"{cpu}, one core a run, Python {python}, "
        + ", ".join(f"{name} {version}" for name, version in facts)
        + f", {date}"
        for cpu, python, *facts, date in sorted(found)
    )


def text(rows):
    """The page.

    Args:
      rows: a `Rows`.

    Returns:
      A text in Markdown.
    """
    seeds = len({run.seed for run in rows.rows})
    *some, last = map(str, rows.amounts)
    amounts = " or ".join(
        filter(None, [", ".join(some), "all" if last == str(TRAIN_IMAGES) else last])
    )
    students = (row for run, row in rows.rows.items() if run.way != _CNN)
    steps = sorted({row["steps"] for row in students})
    return f"""# Ways to distil, measured small

Made by `python -m benchmarks.ablation` ({len(rows.rows)} runs); do not edit.

The paper's comparisons, on scikit-learn's handwritten digits instead of ImageNet, with a small DeiT
and a small RegNetY as its teacher. Of the {TRAIN_IMAGES} training images, teacher and student see
the same {amounts}, and no others; accuracy is top-1 on the 397 test images, per cent.
Every student takes about as many steps ({" or ".join(map(str, steps))}), whatever it is taught
with, and whatever the number of images. {seeds} seed(s): each has its own first weights and draws
and, where not all images have labels, other images, as far as there are any. ± is half of the 95 %
confidence interval of the mean over seeds (Student's t); other test images would add to it.

![Every student, its mean and the interval](ablation.png)

## Distillation (the paper's table 3)

{_heads(rows)}

## The teacher (table 2)

Both heads of the student. (The paper's own tables differ: 83.1 here, 83.4 in table 3.)

{_teachers(rows)}

## Parts of the augmentation (table 8)

The paper takes a part away from the whole recipe of an undistilled DeiT-B; here it is added to the
digits' own, which has crops, rotations and shifts alone. {_images(rows.amounts[-1])} with labels,
the distillation token, both heads; bold where the interval does not hold zero.

{_parts(rows)}

## What carries over

Points of one over the other, seed by seed; bold where the interval does not hold zero (by chance,
one in twenty does not). The paper's are of Ti, S and B; of the two teachers, of B alone.

{_comparisons(rows)}

{_sentences(rows)}

{_learned(rows)}What this cannot say: digits are easy, the network is small, its images are
8 × 8 pixels made 32 × 32, a run is a minute long, and the teacher knows no more images than its
student. The paper's gains are those of 300 epochs of ImageNet. That this code distils as the
paper's is held by the tests, against the released losses and weights, not by these tables.

Machine: {_machines(rows)}.
"""


def draw(rows, path):
    """Draws every student, its mean and the interval, a panel for each number of labels.

    Args:
      rows: a `Rows`.
      path: the picture, a name that ends in .png.
    """
    from matplotlib import figure

    shown = {**HEADS, ("token, transformer teacher", "fused"): "both, transformer teacher"}
    size = (3.6 * len(rows.amounts) + 1.5, 3.6)
    sheet = figure.Figure(figsize=size, layout="constrained")
    panels = sheet.subplots(1, len(rows.amounts), sharey=True, squeeze=False)[0]
    for panel, labels in zip(panels, rows.amounts, strict=True):
        for place, (way, head) in enumerate(shown):
            top1 = list(rows.top1(way, head, labels).values())
            if not top1:
                continue
            colour = "0.45" if way == _CNN else "tab:blue"
            panel.plot(top1, [place] * len(top1), "o", color=colour, alpha=0.35, markersize=4)
            found = mean(top1)
            half = None if math.isnan(found.half) else found.half
            panel.errorbar(found.value, place, xerr=half, fmt="|", color=colour, capsize=3)
        panel.set(title=f"{_images(labels)} with labels", xlabel="top-1, %")
        panel.set_yticks(range(len(shown)), list(shown.values()))
        panel.grid(axis="x", alpha=0.3)
    panels[0].invert_yaxis()
    sheet.savefig(path, dpi=110)


def write(rows, folder):
    """Writes page and picture.

    Args:
      rows: {`ablation.Run`: its line}.
      folder: where `ablation.md` and `ablation.png` go.
    """
    found = Rows(rows)
    folder.mkdir(parents=True, exist_ok=True)
    draw(found, folder / "ablation.png")
    (folder / "ablation.md").write_text(text(found))
