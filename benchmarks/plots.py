"""The plots of docs/performance.md: each shows one results file on a `matplotlib.figure.Figure`.

A small dot is a turn, a large one the median, a bar the quartiles.
"""

from benchmarks import cost, words
from benchmarks.results import quartiles

# Okabe and Ito's, told apart by the colour-blind; ours is always blue.
BLUE, ORANGE, GREEN, GREY = "#0072B2", "#E69F00", "#009E73", "#666666"


def train_step(found, picture):
    """A panel a case, a line an engine."""
    panels = picture.subplots(1, len(found["rows"]), sharey=True, squeeze=False)[0]
    picture.set_size_inches(13, 2.8)
    names = list(dict.fromkeys(name for row in found["rows"] for name in row["engines"]))
    for axes, row in zip(panels, found["rows"], strict=True):
        for y, name in enumerate(names):
            if name in row["engines"]:
                values = row["engines"][name]["images_per_second"]
                _dots(axes, y, values, BLUE if name == "deit_tf" else ORANGE)
        axes.set_title(words.case(row).replace(", ", ",\n", 1), fontsize="medium")
    _label(panels, [words.ENGINES[name] for name in names], "images/s")


def growth(found, picture):
    """Speed and memory, a line a case."""
    rows = found["rows"]
    picture.set_size_inches(10, 0.35 * len(rows) + 0.9)
    speed, memory = panels = picture.subplots(1, 2, sharey=True)
    for y, row in enumerate(rows):
        engine = row["engines"]["deit_tf"]
        _dots(speed, y, engine["images_per_second"], BLUE)
        memory.barh(y, engine["peak_bytes"] / words.GIBIBYTE, 0.5, color=BLUE)
    _label(panels, [_changes(row, rows) for row in rows], "images/s")
    memory.set_xlabel("peak memory, GiB")


def _changes(row, rows):
    """What sets a case apart: its batch, and where it differs from most."""
    told = {"accumulate": "{} micro-batches", "replicas": "{} replicas", "size": "{} pixels"}
    told["depth"] = "depth {}"
    counted = {name: [each[name] for each in rows] for name in told}
    usual = {name: max(values, key=values.count) for name, values in counted.items()}
    changed = [text.format(row[n]) for n, text in told.items() if row[n] != usual[n]]
    return ", ".join([f"batch {row['batch']}", *changed])


def pipeline(found, picture):
    """A line a stage, ours above theirs."""
    rates = found["images_per_second"]
    stages = list(rates["deit_tf"])
    picture.set_size_inches(8, 0.55 * len(stages) + 0.9)
    axes = picture.subplots()
    for y, stage in enumerate(stages):
        for name, colour, aside in (("deit_tf", BLUE, -0.15), ("timm", ORANGE, 0.15)):
            label = words.ENGINES[name] if y == 0 else None
            _dots(axes, y + aside, rates[name][stage], colour, label)
    names = [stage if i == 0 else f"+ {stage}" for i, stage in enumerate(stages)]
    _label([axes], names, "images/s")
    axes.legend(frameon=False, loc="lower left")


def label_bank(found, picture):
    """A line a way to learn."""
    picture.set_size_inches(8, 1.9)
    axes = picture.subplots()
    for y, engine in enumerate(found["engines"].values()):
        _dots(axes, y, engine["seconds"], BLUE)
    _label([axes], list(found["engines"]), "seconds a step")


def inference(found, picture):
    """A panel a model and batch, a line an engine."""
    rows = found["rows"]
    models = list(dict.fromkeys(row["model"] for row in rows))
    names = [name for name in words.ANSWERS if any(name in row["engines"] for row in rows)]
    picture.set_size_inches(6.5 * len(rows) // len(models), 3.6 * len(models))
    panels = picture.subplots(len(models), len(rows) // len(models), sharey=True, squeeze=False)
    for axes, row in zip(panels.flat, rows, strict=True):
        for y, name in enumerate(names):
            if name in row["engines"]:
                _dots(axes, y, words.speeds(row, name), BLUE if words.is_ours(name) else ORANGE)
        axes.axvline(1, color=GREY, linewidth=0.8, zorder=0)
        size = "one image" if row["batch"] == 1 else f"batch {row['batch']}"
        axes.set_title(f"{words.SIZES[row['model']]}, {size}", fontsize="medium")
    base = words.ANSWERS[words.BASE]
    _label(panels.flat, [words.ANSWERS[name] for name in names], f"× the speed of {base}")


def serving(found, picture):
    """Answers a second and the median of their milliseconds, by how many ask at once."""
    series = {}
    for name, one in found["measured"].items():
        *asks, level = name.split()
        series.setdefault(" ".join(asks), []).append((int(level), one))
    picture.set_size_inches(10, 3.6)
    rate, taken = picture.subplots(1, 2)
    colours = dict(zip(("onnx", "grpc", "rest"), (BLUE, ORANGE, GREEN), strict=True))
    for name, points in series.items():
        levels = [level for level, _ in points]
        style = {
            "color": colours[name.split()[0]],
            "linestyle": "-" if name.endswith("jpeg") else "--",
            "marker": "o" if name.endswith("jpeg") else "s",
            "markersize": 4,
        }
        rate.plot(levels, [one["per_second"] for _, one in points], label=name, **style)
        taken.plot(levels, [one["p50"] for _, one in points], **style)
    for axes, title in ((rate, "answers/s"), (taken, "ms an answer, median")):
        axes.set_xscale("log", base=2)
        axes.set_xticks(levels, [str(level) for level in levels])
        axes.set_xlabel("requests at once")
        axes.set_title(title, fontsize="medium")
        axes.grid(alpha=0.3)
    rate.set_ylim(bottom=0)
    taken.set_yscale("log")
    taken.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
    picture.legend(frameon=False, loc="outside right center")


def run_cost(found, picture):
    """Hours of a run by GPUs, a panel a student."""
    picture.set_size_inches(11, 3.6)
    panels = picture.subplots(1, len(cost.STUDENTS), sharey=True)
    counted, ways = found["networks"], {"live": (ORANGE, "o"), "bank": (BLUE, "s")}
    for axes, student in zip(panels, cost.STUDENTS, strict=True):
        for way, (colour, marker) in ways.items():
            hours = [cost.plan(counted, student, gpus, way).hours for gpus in cost.GPUS]
            style = {"color": colour, "marker": marker, "markersize": 4}
            axes.plot(cost.GPUS, hours, label=words.WAYS[way], **style)
        if found["per_core"]:
            fed = [cost.feeding_hours(gpus, found["per_core"]) for gpus in cost.GPUS]
            label = f"to make the images\non {cost.CORES} cores a GPU"
            axes.plot(cost.GPUS, fed, "--", color=GREY, label=label)
        axes.set_xscale("log", base=2)
        axes.set_yscale("log", base=10)
        axes.set_xticks(cost.GPUS, [str(gpus) for gpus in cost.GPUS])
        axes.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
        axes.set_title(words.SIZES[student], fontsize="medium")
        axes.set_xlabel(f"{cost.A100.name} GPUs")
        axes.grid(alpha=0.3)
    panels[0].set_ylabel("hours, calculated")
    handles, labels = panels[0].get_legend_handles_labels()
    picture.legend(handles, labels, frameon=False, loc="outside right center")


def _dots(axes, y, values, colour, label=None):
    """Turns, their median and their quartiles, on one line."""
    lower, middle, upper = quartiles(values)
    axes.scatter(values, [y] * len(values), s=8, color=colour, alpha=0.35, linewidths=0)
    axes.plot([lower, upper], [y, y], color=colour, linewidth=2.5, solid_capstyle="butt")
    axes.plot(middle, y, "o", color=colour, markersize=6, label=label)


def _label(panels, names, unit):
    """Names the lines, from the top down; the scale begins at 0."""
    for axes in panels:
        axes.set_xlim(left=0)
        axes.set_xlabel(unit)
        axes.grid(axis="x", alpha=0.3)
        axes.spines[["top", "right"]].set_visible(False)
    panels[0].set_yticks(range(len(names)), [name.replace("`", "") for name in names])
    panels[0].set_ylim(len(names) - 0.5, -0.5)
