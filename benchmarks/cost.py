"""What a run on ImageNet would cost: a calculation from counted operations.

    python -m benchmarks.cost --out=benchmarks/results/operations.json

The operations of a forward pass are those that TensorFlow counts in our networks at 224 pixels, all
else is arithmetic on them. The last block computes only what the heads see, so that these are
somewhat fewer than in the original; batch statistics count as parameters.
"""

import argparse
import dataclasses
import json
import pathlib

PACKAGES = ("tensorflow", "keras")
STUDENTS = ("tiny", "small", "base")
WAYS = ("undistilled", "live", "bank")
GPUS = (1, 2, 4, 8, 16, 32, 64)

# The recipe: table 9 of the paper, deit_tf/configs/deit_*_distilled.flags.
IMAGES, EPOCHS, BATCH, SIZE = 1_281_167, 300, 1024, 224
STEPS = IMAGES // BATCH * EPOCHS  # an epoch is whole batches
BACKWARD = 2  # forward passes that a backward pass costs: gradients by inputs and by weights
GRADIENT_BYTES = 4  # of a parameter: variables and gradients are float32
# deit_tf/bank.py: a class as uint16; NumPy's header and a SHA-256 an epoch.
LABEL_BYTES, EPOCH_BYTES = 2, 128 + 32
# Assumed; the report shows the first beside what others reached.
USED = 0.3  # of the peak
READ = 100e6  # bytes/s of the bank's disk: any disk
MACHINE = 8  # GPUs that NVLink joins: a DGX
CORES = 16  # a GPU: 128 in a DGX A100 (NVIDIA's data sheet)


@dataclasses.dataclass(frozen=True)
class Accelerator:
    """What its maker's data sheet says.

    Attributes:
      name: of the GPU.
      peak: FLOP/s in bfloat16, dense.
      link: bytes/s between the GPUs of a machine, one direction.
      network: bytes/s a GPU between machines.
    """

    name: str
    peak: float
    link: float
    network: float


# NVLink of 600 and 900 GB/s, both directions; a port of 200 and 400 Gbit/s a GPU (DGX data sheets).
A100 = Accelerator("A100", 312e12, 300e9, 25e9)
H100 = Accelerator("H100", 989e12, 450e9, 50e9)


@dataclasses.dataclass(frozen=True)
class Anchor:
    """What others reached.

    Attributes:
      what: they did.
      source: where they say so.
      student: by which network.
      passes: forward passes an image, or what costs as many.
      gpus: how many.
      peak: FLOP/s of each, by its maker's data sheet.
      images_per_second: by all.
    """

    what: str
    source: str
    student: str
    passes: int
    gpus: int
    peak: float
    images_per_second: float


def _anchors():
    v100, rtx4090 = 125e12, 165e12  # tensor cores: in float16, and summed in float32
    paper = "Touvron et al. 2020, section 6"
    timm = "timm's results: AMP, torch 2.9.1, batch 1024"
    for gpus, hours in ((8, 53), (16, 37)):
        what, rate = f"training, {gpus} V100, {hours} hours", IMAGES * EPOCHS / (3600 * hours)
        yield Anchor(what, paper, "base", 1 + BACKWARD, gpus, v100, rate)
    for student, rate in (("tiny", 18_500), ("small", 8_200), ("base", 2_989)):
        yield Anchor(f"inference, RTX 4090, {rate:,} images/s", timm, student, 1, 1, rtx4090, rate)


ANCHORS = tuple(_anchors())


@dataclasses.dataclass(frozen=True)
class Plan:
    """A whole run, as calculated.

    Attributes:
      hours: from first to last step.
      gpu_hours: of all GPUs together.
      efficiency: images/s of a GPU, relative to those of one that is alone; 1 at most.
      images_per_second: of all GPUs together, while they learn.
    """

    hours: float
    gpu_hours: float
    efficiency: float
    images_per_second: float


def plan(counted, student, gpus, way, accelerator=A100):
    """What a run costs.

    Args:
      counted: {network: {"flops", "parameters"}} of the students and of "teacher".
      student: one of STUDENTS.
      gpus: how many.
      way: "undistilled", "live" (the teacher is asked, which is also the run that fills a bank) or
        "bank" (a bank that is full is read).
      accelerator: which GPU.

    Returns:
      A `Plan`.
    """
    asked = counted["teacher"]["flops"] if way == "live" else 0
    flops = (1 + BACKWARD) * counted[student]["flops"] + asked
    alone = BATCH * flops / (accelerator.peak * USED)
    step = alone / gpus + reduce_seconds(counted[student]["parameters"], gpus, accelerator)
    reading = bank_bytes() / READ if way == "bank" else 0
    hours = (STEPS * step + reading) / 3600
    return Plan(hours, hours * gpus, alone / (gpus * step), BATCH / step)


def reduce_seconds(parameters, gpus, accelerator=A100):
    """A ring's sum of the gradients of a step, which nothing overlaps."""
    bandwidth = accelerator.link if gpus <= MACHINE else accelerator.network
    return 2 * (gpus - 1) / gpus * parameters * GRADIENT_BYTES / bandwidth


def bank_bytes():
    """A bank of hard labels, whole."""
    return EPOCHS * (STEPS // EPOCHS * BATCH * LABEL_BYTES + EPOCH_BYTES)


def cores(found, per_core):
    """Cores that make images as fast as a `Plan` learns from them, at so many images/s a core."""
    return found.images_per_second / per_core


def feeding_hours(gpus, per_core):
    """Hours that CORES a GPU take to make the images of a run, which go on beside its steps."""
    return STEPS * BATCH / (CORES * gpus * per_core * 3600)


def share(counted, anchor):
    """The share of the peak that an `Anchor` reached, by the operations of our networks."""
    flops = anchor.images_per_second * anchor.passes * counted[anchor.student]["flops"]
    return flops / (anchor.gpus * anchor.peak)


def main():
    """Counts, prints, and writes a JSON file where asked."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", help="JSON file for what is counted")
    arguments = parser.parse_args()

    from benchmarks import machine
    from deit_tf import config, model, regnet

    networks = {"teacher": regnet.build_regnety(config.network("regnety_160"))}
    for name in STUDENTS:
        networks[name] = model.build_deit(f"deit_{name}_distilled_patch16_224")
    counted = {
        name: {"flops": _flops(network), "parameters": network.count_params()}
        for name, network in networks.items()
    }
    print(json.dumps(counted, indent=1))
    if arguments.out:
        result = {"networks": counted, **machine.facts(*PACKAGES)}
        pathlib.Path(arguments.out).write_text(json.dumps(result, indent=1) + "\n")


def _flops(network):
    """Floating-point operations of a forward pass of one image; a multiply-add is two."""
    import tensorflow as tf

    # The counter does not look into functions, which Keras puts grouped convolutions in.
    tf.config.run_functions_eagerly(True)
    image = tf.TensorSpec([1, SIZE, SIZE, 3], tf.float32)
    graph = tf.function(lambda x: network(x, training=False)["cls"]).get_concrete_function(image)
    profiler = tf.compat.v1.profiler
    options = profiler.ProfileOptionBuilder.float_operation()
    options["output"] = "none"
    return profiler.profile(graph.graph, options=options).total_float_ops


if __name__ == "__main__":
    main()
