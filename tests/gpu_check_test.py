import pathlib
import subprocess
import sys

import pytest
import tensorflow as tf

TOOL = pathlib.Path(__file__).parent.parent / "tools" / "gpu_check.py"


@pytest.mark.slow
def test_says_plainly_what_it_found():
    answer = subprocess.run([sys.executable, TOOL], capture_output=True, text=True, check=False)
    gpus = tf.config.list_physical_devices("GPU")
    lines = answer.stdout.splitlines()
    assert lines[0].endswith(f"sees: {len(gpus)}")
    assert answer.returncode == (0 if gpus else 2), answer.stdout + answer.stderr
    for part in ("training", "SavedModel", "ONNX"):
        assert any(line.startswith(part) for line in lines)
