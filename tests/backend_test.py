"""The networks are `keras.ops` alone: the same golden answers on another backend."""

import importlib.util
import os
import pathlib
import subprocess
import sys

import pytest

SCRIPT = """
import json, sys, zlib
import numpy as np
from deit_tf import checkpoint, config, model

name, weights, answers = sys.argv[1:]
facts = config.network(name, mean=(0.0,) * 3, std=(1 / 255,) * 3)
network = checkpoint.build_network(facts)
with np.load(weights) as stored:
    network.set_weights([stored[str(i)] for i in range(len(network.weights))])
    image = stored["image"]
logits = network(image, training=False)
np.savez(answers, **{head: np.asarray(value.detach() if hasattr(value, "detach") else value)
                     for head, value in logits.items()})
"""


@pytest.mark.slow
@pytest.mark.parametrize("backend", ["jax", "torch"])
@pytest.mark.parametrize("name", ["deit_tiny_distilled_patch16_224", "regnety_160"])
def test_answers_as_the_original(backend, name, golden, golden_file, golden_image, tmp_path):
    if importlib.util.find_spec(backend) is None:
        pytest.skip(f"{backend} is not installed")
    import numpy as np

    from deit_tf import checkpoint

    network = checkpoint.load(golden_file(name))
    image = golden_image(name)
    weights = {str(i): value for i, value in enumerate(network.get_weights())}
    np.savez(tmp_path / "weights.npz", image=image, **weights)
    subprocess.run(
        [sys.executable, "-c", SCRIPT, name, tmp_path / "weights.npz", tmp_path / "answers.npz"],
        cwd=pathlib.Path(__file__).parent.parent,
        env={**os.environ, "KERAS_BACKEND": backend},
        check=True,
    )
    with np.load(tmp_path / "answers.npz") as answers:
        found = sum(answers.values()) / len(answers)
    expected = golden[f"{name}/logits"]
    assert np.max(np.abs(found - expected)) <= 1e-5 * np.max(np.abs(expected))
