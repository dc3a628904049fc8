"""Where and with what something was measured, and how the peers are made to run there."""

import datetime
import functools
import importlib.metadata
import os
import pathlib
import platform
import subprocess


def cores():
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0))


def facts(*packages):
    """The machine, the versions and the day, JSON values.

    Args:
      *packages: whose versions decide.
    """
    lines = pathlib.Path("/proc/cpuinfo").read_text().splitlines()
    model = [line for line in lines if line.startswith("model name")]
    return {
        "date": datetime.date.today().isoformat(),
        **_commit(),
        "cpu": model[0].split(":")[1].strip() if model else platform.processor(),
        "cores": cores(),
        "python": platform.python_version(),
        "versions": {name: importlib.metadata.version(name) for name in packages},
    }


def _commit():
    """{"commit": short hash, with -dirty where files differ from it}; {} outside a git tree."""
    command = ["git", "describe", "--always", "--dirty", "--exclude=*"]
    here = pathlib.Path(__file__).parent
    try:
        found = subprocess.run(command, cwd=here, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return {}
    return {"commit": found.stdout.strip()}


@functools.cache  # what is named so lives as long as the library that is answered
def let_timm_import():
    """Names the operations that timm's import looks for; torchvision may lack them, unused here."""
    import torch

    library = torch.library.Library("torchvision", "FRAGMENT")
    for name in ("nms", "qnms"):
        if not hasattr(torch.ops.torchvision, name):
            library.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    return library
