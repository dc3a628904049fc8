"""The section of docs/performance.md on what a run on ImageNet would cost."""

from benchmarks import cost, words
from benchmarks.results import number, table

RUNS = (1, 2, 5, 10)
FEW = (1, cost.MACHINE, cost.GPUS[-1])  # GPUs


def text(found):
    """The calculation, with all that it assumes.

    Args:
      found: what operations.json holds, and "per_core": images/s that a core makes, or None.
    """
    counted, per_core = found["networks"], found["per_core"]
    return "\n\n".join(
        [
            "**A calculation: nothing of it was measured on a GPU.** Counted are these:",
            _counted(counted),
            "It assumes:",
            _assumptions(),
            "What others reached of the peak, by the operations above:",
            _anchors(counted),
            _explained(counted),
            _runs(counted, cost.A100, cost.GPUS),
            f"The same on {cost.H100.name}:",
            _runs(counted, cost.H100, FEW),
            _fed(counted, per_core),
            f"{cost.A100.name} GPU-hours of several runs on {cost.MACHINE} GPUs, by the GPUs alone;"
            " the first fills the bank, and the others differ in what"
            " [a bank does not depend on](label_bank.md#what-must-be-the-same):",
            _sweep(counted),
        ]
    )


def _counted(counted):
    names = {**words.SIZES, "teacher": "RegNetY-16GF"}
    rows = [
        [name, f"{counted[key]['flops'] / 2e9:.2f}", f"{counted[key]['parameters'] / 1e6:.1f}"]
        for key, name in names.items()
    ]
    return table(["network", "GMAC, forward, an image", "million parameters"], rows)


def _assumptions():
    slow, fast = cost.USED - 0.1, cost.USED + 0.1
    a100, h100 = cost.A100, cost.H100
    lines = [
        f"the paper's recipe: {cost.IMAGES:,} images, {cost.EPOCHS} epochs, a batch of"
        f" {cost.BATCH} over all GPUs; a backward pass costs {cost.BACKWARD} forward ones; the"
        " teacher looks at each view once, forward",
        f"{cost.USED:.0%} of the dense peak in bfloat16 ({a100.peak / 1e12:.0f} TFLOP/s on"
        f" {a100.name}, {h100.peak / 1e12:.0f} on {h100.name}), at any number of images a GPU; at"
        f" {slow:.0%} steps take {cost.USED / slow:.2f} times as long, at {fast:.0%}"
        f" {cost.USED / fast:.2f}",
        f"after each step a ring adds up {cost.GRADIENT_BYTES} bytes a parameter, 2 (n − 1) / n"
        f" times, with nothing beside it: at {a100.link / 1e9:.0f} GB/s within a machine of"
        f" {cost.MACHINE} GPUs, at {a100.network / 1e9:.0f} GB/s beyond ({h100.name}:"
        f" {h100.link / 1e9:.0f} and {h100.network / 1e9:.0f})",
        f"a bank holds {cost.LABEL_BYTES} bytes a view, {cost.bank_bytes() / 1e6:.0f} MB in all,"
        f" and is read at {cost.READ / 1e6:.0f} MB/s with nothing beside it",
        "images come as fast as they are learned from; nothing is evaluated or saved",
    ]
    return "\n".join(f"- {line}" for line in lines)


def _anchors(counted):
    rows = [
        [
            words.SIZES[each.student],
            each.what,
            each.source,
            f"{each.peak / 1e12:.0f}",
            f"{cost.share(counted, each):.0%}",
        ]
        for each in cost.ANCHORS
    ]
    alone, joined = cost.ANCHORS[:2]
    kept = joined.images_per_second / (2 * alone.images_per_second)
    ours = [cost.plan(counted, "base", gpus, "undistilled") for gpus in (8, 16)]
    calculated = ours[1].images_per_second / (2 * ours[0].images_per_second)
    return (
        table(["network", "what", "source", "peak of a GPU, TFLOP/s", "share of it"], rows)
        + f"\n\nOn two machines each of the paper's GPUs kept {kept:.0%} of what it did on one; on"
        f" {cost.A100.name} the calculation below says {calculated:.0%}."
    )


def _explained(counted):
    shares = [
        counted["teacher"]["flops"]
        / (counted["teacher"]["flops"] + (1 + cost.BACKWARD) * counted[student]["flops"])
        for student in cost.STUDENTS
    ]
    said = ", ".join(
        f"{share:.0%} for {words.SIZES[name]}"
        for name, share in zip(cost.STUDENTS, shares, strict=True)
    )
    return (
        "Every view of every epoch is another, so a bank must hear the teacher as often as a run"
        " without one: the run that fills a bank costs as much as one that asks. What is saved is"
        f" the teacher's part of every further run: on one GPU {said}. On many GPUs it is less, as"
        " the sum of the gradients stays. A run without a teacher takes as long as one that reads,"
        f" less {cost.bank_bytes() / cost.READ:.0f} seconds of reading."
    )


def _runs(counted, accelerator, gpu_counts):
    head = ["student", "GPUs", "teacher asked, h", "bank read, h", "saved"]
    head += ["asked, GPU-hours", "read, GPU-hours", "asked, efficiency", "read, efficiency"]
    rows = []
    for student in cost.STUDENTS:
        for gpus in gpu_counts:
            plans = asked, read = _plans(counted, student, gpus, accelerator)
            row = [words.SIZES[student], gpus, *(number(each.hours) for each in plans)]
            row += [f"{1 - read.hours / asked.hours:.0%}"]
            row += [number(each.gpu_hours) for each in plans]
            rows.append(row + [f"{each.efficiency:.0%}" for each in plans])
    return table(head, rows)


def _plans(counted, student, gpus, accelerator=cost.A100):
    """The run that asks (and may fill a bank), and the one that reads."""
    return tuple(cost.plan(counted, student, gpus, way, accelerator) for way in ("live", "bank"))


def _fed(counted, per_core):
    """The same where cores make the images."""
    if per_core is None:
        return "How many cores that feeds is not known: there is no input_pipeline.json."
    said = (
        f"A core makes {number(per_core)} images a second, as measured above on the machine named"
        f" there. So many feed the GPUs; and with {cost.CORES} cores a GPU, which work beside it,"
        " the slower of both gives the hours. Where cores are the slower, a bank saves less, or"
        " nothing:"
    )
    head = ["student", "GPUs", "images/s, read", "asked, cores", "read, cores"]
    head += [f"{cost.CORES} cores a GPU: asked, h", "read, h", "saved"]
    rows = []
    for accelerator in (cost.A100, cost.H100):
        for student in cost.STUDENTS:
            for gpus in FEW:
                plans = _plans(counted, student, gpus, accelerator)
                feeding = cost.feeding_hours(gpus, per_core)
                asked, read = (max(each.hours, feeding) for each in plans)
                row = [words.SIZES[student], f"{gpus} {accelerator.name}"]
                row.append(number(plans[1].images_per_second))
                row += [f"{cost.cores(each, per_core):,.0f}" for each in plans]
                rows.append([*row, number(asked), number(read), f"{1 - read / asked:.0%}"])
    return f"{said}\n\n{table(head, rows)}"


def _sweep(counted):
    rows = []
    for student in cost.STUDENTS:
        asked, read = (each.gpu_hours for each in _plans(counted, student, cost.MACHINE))
        for way, first, next_ in (("asked", asked, asked), ("bank", asked, read)):
            hours = [number(first + (count - 1) * next_) for count in RUNS]
            rows.append([f"{words.SIZES[student]}, {way}", *hours])
    return table(["runs", *RUNS], rows)
