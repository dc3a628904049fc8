"""The conversion of the largest DeiT, as a command."""

import json
import subprocess
import sys

import numpy as np
import pytest
import safetensors.numpy


@pytest.mark.slow
def test_deit_b_takes_little_memory(tmp_path):
    from deit_tf import model, torch_weights, weights

    tensors = {}
    for name, value in weights.of(model.build_deit("deit_base_distilled_patch16_384")).items():
        value = value.transpose(3, 2, 0, 1) if value.ndim == 4 else value
        value = value.T if value.ndim == 2 else value
        tensors[torch_weights.official_name(name)] = np.ascontiguousarray(value)
    safetensors.numpy.save_file(tensors, tmp_path / "base.safetensors")
    # A process of its own measures the command: this one's children are many.
    measure = (
        "import resource, subprocess, sys\n"
        "command = [sys.executable, '-m', 'deit_tf.convert', *sys.argv[1:]]\n"
        "subprocess.run(command, check=True)\n"
        "print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * 1024)\n"
    )
    flags = [f"--weights={tmp_path / 'base.safetensors'}", f"--run_dir={tmp_path / 'run'}"]
    answer = subprocess.run(
        [sys.executable, "-c", measure, *flags], capture_output=True, text=True, check=True
    )
    assert int(answer.stdout.splitlines()[-1]) < 2.5e9
    assert json.loads((tmp_path / "run/config.json").read_text())["config"]["model"] == (
        "deit_base_distilled_patch16_384"
    )
