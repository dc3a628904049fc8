"""What the benchmarks wrote: read, held to what it must be, and its statistics."""

import json
import math
import pathlib
import statistics

from deit_tf.config import InputError

FOLDER = pathlib.Path(__file__).parent / "results"


def read(path):
    """A results file as a dictionary.

    Raises:
      InputError: it is no JSON, or does not say where and when it was made.
    """
    try:
        found = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"{path} cannot be read: {error}") from error
    if not isinstance(found, dict):
        raise InputError(f"{path} is no results file: it holds no JSON object")
    missing = {"date", "cpu", "cores", "python", "versions"} - set(found)
    if missing:
        raise InputError(f"{path} lacks {', '.join(sorted(missing))}; let its benchmark write it")
    return found


def samples(values):
    """The same values, of which there must be some: all numbers, finite and above 0."""
    if not values or not all(math.isfinite(value) and value > 0 for value in values):
        raise ValueError(f"samples must be numbers above 0, not {values}")
    return list(values)


def quartiles(values):
    """(lower quartile, median, upper quartile), interpolated as NumPy does."""
    values = samples(values)
    if len(values) == 1:
        return tuple(values * 3)
    return tuple(statistics.quantiles(values, n=4, method="inclusive"))


def median(values):
    """The middle one of samples."""
    return quartiles(values)[1]


def ratios(ones, others):
    """Turn by turn, one over the other: what slows a machine down for a while slows both."""
    return [a / b for a, b in zip(samples(ones), samples(others), strict=True)]


def verdict(speeds):
    """What ratios of speeds say of the first: "faster", "slower", or "not told apart".

    The middle half of the turns decides: it must lie on one side of 1.
    """
    lower, _, upper = quartiles(speeds)
    if lower > 1:
        return "faster"
    return "slower" if upper < 1 else "not told apart"


def number(value):
    """Three digits, or all before the point."""
    rounded = float(f"{value:.3g}")
    if rounded == 0 or rounded >= 1000:
        return f"{value:,.0f}"
    return f"{value:.{max(0, 2 - math.floor(math.log10(rounded)))}f}"


def spread(values):
    """Median and quartiles: "24.1 (23.9–24.4)"."""
    lower, middle, upper = quartiles(values)
    return f"{number(middle)} ({number(lower)}–{number(upper)})"


def times(values):
    """Median and quartiles of ratios, with two digits behind the point."""
    lower, middle, upper = quartiles(values)
    return f"{middle:.2f} ({lower:.2f}–{upper:.2f})"


def table(head, rows):
    """A table in Markdown, the first column to the left and the others to the right."""
    lines = [f"| {' | '.join(map(str, line))} |" for line in (head, *rows)]
    return "\n".join([lines[0], "|---|" + "--:|" * (len(head) - 1), *lines[1:]])
