"""The sections of docs/performance.md: each reads one results file, and types no figure by hand.

A section's function takes what a file holds and answers Markdown. Ratios are taken turn by turn,
and of these the median and the quartiles; see `results.verdict` for what "faster" means.
"""

import ast
import dataclasses
import pathlib
from collections.abc import Callable

from benchmarks import cost_page, plots, words
from benchmarks.results import median, number, quartiles, ratios, spread, table, times, verdict


@dataclasses.dataclass(frozen=True)
class Section:
    """A results file and what is shown of it.

    Attributes:
      name: of its file, and of its plot.
      title: its heading.
      script: what writes the file; its docstring says what is measured, and how.
      text: function of what the file holds: Markdown.
      draw: function of what the file holds and a `matplotlib.figure.Figure`.
      turns: function of what the file holds: turns of each engine; None where it takes none.
      flags: of the script.
      said: what is measured, where the script's docstring is not what says it.
    """

    name: str
    title: str
    script: str
    text: Callable
    draw: Callable
    turns: Callable | None = None
    flags: str = ""
    said: str = ""

    def command(self, turns=None):
        """How the file is made, by so many turns."""
        rounds = f" --rounds={turns}" if turns else ""
        out = f"benchmarks/results/{self.name}.json"
        start = "-m benchmarks.cost" if self.script == "cost" else f"benchmarks/{self.script}.py"
        return f"python {start}{self.flags}{rounds} --out={out}"


def about(script):
    """What a benchmark says of itself, without its commands; and the packages it depends on."""
    path = pathlib.Path(__file__).parent / f"{script}.py"
    tree = ast.parse(path.read_text("utf-8"))
    paragraphs = ast.get_docstring(tree).split("\n\n")
    said = " ".join(" ".join(each.split()) for each in paragraphs if not each.startswith(" "))
    packages = [
        ast.literal_eval(node.value)
        for node in tree.body
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "PACKAGES"
    ]
    return said, packages[0]


def provenance(section, found):
    """How, on what, when, and with which versions, as a list."""
    packages = about(section.script)[1]
    versions = {**dict.fromkeys(packages, "not recorded"), **found["versions"]}
    count = section.turns(found) if section.turns else None
    lines = [
        f"command: `{section.command(count)}`",
        f"machine: {found['cpu']}, {found['cores']} cores",
        f"date: {found['date']}" + (f" ({found['date_from']})" if "date_from" in found else ""),
        f"commit: {found.get('commit', 'not recorded')}",
        f"versions: Python {found['python']}, "
        + ", ".join(f"{name} {version}" for name, version in versions.items()),
    ]
    if count:
        lines.append(f"turns of each: {count}; figures are medians (lower–upper quartile)")
    return "\n".join(f"- {line}" for line in lines)


def train_step(found):
    """Images per second and memory, and ours over each peer."""
    rows, told = [], {"faster": [], "slower": [], "not told apart": []}
    for row in found["rows"]:
        case, ours = words.case(row), row["engines"]["deit_tf"]["images_per_second"]
        for name, engine in row["engines"].items():
            rates, over = engine["images_per_second"], ""
            if name != "deit_tf":
                ratio = ratios(ours, rates)
                over = times(ratio)
                told[verdict(ratio)].append(f"{words.ENGINES[name]} ({case}: {median(ratio):.2f})")
            rows.append([case, words.ENGINES[name], spread(rates), over, words.memory(engine)])
    head = ["case", "engine", "images/s", "deit-tf ÷ this", "peak memory, GiB"]
    said = [f"- deit-tf is {_than(way)} {'; '.join(on)}." for way, on in told.items() if on]
    return f"{table(head, rows)}\n\n" + "\n".join(said)


def _than(verdict):
    return f"{verdict} {'from' if 'apart' in verdict else 'than'}"


def growth(found):
    """Ours as batch, replicas, size and depth grow."""
    rows = []
    for row in found["rows"]:
        engine = row["engines"]["deit_tf"]
        rates, memory = engine["images_per_second"], words.memory(engine)
        seconds = spread([row["batch"] / rate for rate in rates])
        shape = [row[name] for name in ("batch", "accumulate", "replicas", "size", "depth")]
        rows.append([words.SIZES[row["model"]], *shape, spread(rates), seconds, memory])
    head = ["model", "batch", "micro-batches", "replicas", "pixels", "depth"]
    head += ["images/s", "seconds a step", "peak memory, GiB"]
    note = "Rows were measured one after the other, not in turns: no ratios between them are given."
    return f"{table(head, rows)}\n\n{note}"


def pipeline(found):
    """Images per second of each stage."""
    rates, rows, told = found["images_per_second"], [], {}
    for stage, ours in rates["deit_tf"].items():
        theirs = rates["timm"][stage]
        ratio = ratios(ours, theirs)
        told.setdefault(verdict(ratio), []).append(stage)
        rows.append([stage, spread(ours), spread(theirs), times(ratio)])
    head = ["images/s, up to and with", "deit-tf", "timm", "deit-tf ÷ timm"]
    said = [f"deit-tf is {_than(way)} timm with {'; '.join(on)}." for way, on in told.items()]
    said.append(f"The whole makes {number(per_core(found))} images a second a core.")
    said.append(f"The JPEGs have {found['jpeg_bytes']:,} bytes on average.")
    return f"{table(head, rows)}\n\n{' '.join(said)}"


def label_bank(found):
    """Seconds of a step with a bank and with the live teacher, over one without a teacher."""
    base, rows = found["engines"]["no teacher"]["seconds"], []
    for name, engine in found["engines"].items():
        ratio = times(ratios(engine["seconds"], base))
        rows.append([name, spread(engine["seconds"]), ratio, words.memory(engine)])
    live, bank = (found["engines"][name]["seconds"] for name in ("live teacher", "label bank"))
    head = ["a training step", "seconds", "× of one without a teacher", "peak memory, GiB"]
    return (
        f"{table(head, rows)}\n\nA step that reads a bank is {_than(verdict(ratios(base, bank)))}"
        f" one without a teacher, and {times(ratios(live, bank))} times as fast as one that asks."
    )


def inference(found):
    """Latency and throughput of each engine, by model."""
    parts = [f"× is the speed over that of {words.ANSWERS[words.BASE]}."]
    for model in dict.fromkeys(row["model"] for row in found["rows"]):
        rows = [row for row in found["rows"] if row["model"] == model]
        head, lines = [words.SIZES[model]], {name: [words.ANSWERS[name]] for name in words.ANSWERS}
        for row in rows:
            head += [words.unit(row), "×"]
            for name in row["engines"]:
                lines[name] += [spread(words.answers(row, name)), times(words.speeds(row, name))]
        parts.append(table(head, [line for line in lines.values() if len(line) == len(head)]))
        parts.append("\n".join(_best(row) + _moods(row) for row in rows))
    return "\n\n".join(parts)


def _best(row):
    """The fastest of ours beside the fastest of the others, in words."""
    ours = {name: each for name, each in row["engines"].items() if words.is_ours(name)}
    fastest, peer = (
        min(group, key=lambda name: median(row["engines"][name]["seconds"]))
        for group in (ours, row["engines"].keys() - ours)
    )
    ratio = ratios(*(row["engines"][name]["seconds"] for name in (peer, fastest)))
    ours, theirs = words.ANSWERS[fastest], words.ANSWERS[peer]
    return (
        f"- {words.SIZES[row['model']]}, batch {row['batch']}: the fastest of ours ({ours}) is"
        f" {times(ratio)} times as fast as the fastest of the others ({theirs}): {verdict(ratio)}."
    )


def _moods(row):
    """A word of warning where quartiles lie far apart: then only ratios within a turn are sound."""
    found = [quartiles(engine["seconds"]) for engine in row["engines"].values()]
    apart = max(upper / lower for lower, _, upper in found)
    if apart < 1.25:
        return ""
    return (
        f" The machine was not as fast in every turn (quartiles up to {apart:.1f} times apart):"
        " compare engines by ×."
    )


def serving(found):
    """Requests a second and their milliseconds, by who asks and how many at once."""
    rows, raw = [], True
    for name, one in found["measured"].items():
        *asks, level = name.split()
        raw = raw and "milliseconds" in one
        middle = spread(one["milliseconds"]) if "milliseconds" in one else number(one["p50"])
        figures = [number(one["per_second"]), middle, number(one["p95"]), number(one["p99"])]
        rows.append([" ".join(asks), level, one["requests"], one["errors"], *figures])
    head = [
        "asked",
        "at once",
        "requests",
        "errors",
        "answers/s",
        "median, ms",
        "p95, ms",
        "p99, ms",
    ]
    if not rows:
        raise ValueError("nothing was measured")
    first = next(iter(found["measured"].values()))
    seconds = f"{first['requests'] / first['per_second']:.0f} seconds"
    said = f"Each row was asked for {seconds}, one after the other: no ratios are given."
    if not raw:
        said += " The milliseconds of each request were not recorded, so there are no quartiles."
    return f"{table(head, rows)}\n\n{said}"


def per_core(found):
    """Images per second that a core makes with the whole recipe."""
    return median(list(found["images_per_second"]["deit_tf"].values())[-1]) / found["cores"]


def _turns(found):
    """How many samples each engine has."""
    rows = found.get("rows", [found])
    engines = [engine for row in rows for engine in row["engines"].values()]
    return len(engines[0].get("seconds") or engines[0]["images_per_second"])


def _pipeline_turns(found):
    return len(next(iter(found["images_per_second"]["deit_tf"].values())))


SECTIONS = (
    Section("train_step", "A training step", "train_step", train_step, plots.train_step, _turns),
    Section(
        "train_step_growth",
        "A training step as it grows",
        "train_step",
        growth,
        plots.growth,
        _turns,
        " --growth",
        "Ours alone, in steps as above, as batch, replicas, resolution and depth grow.",
    ),
    Section(
        "input_pipeline",
        "Training images",
        "input_pipeline",
        pipeline,
        plots.pipeline,
        _pipeline_turns,
    ),
    Section("label_bank", "The label bank", "label_bank", label_bank, plots.label_bank, _turns),
    Section("inference", "An answer", "inference", inference, plots.inference, _turns),
    Section("serving_load", "Serving under load", "serving_load", serving, plots.serving),
    Section("operations", "What ImageNet would cost", "cost", cost_page.text, plots.run_cost),
)
