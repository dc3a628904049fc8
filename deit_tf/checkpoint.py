"""Networks and runs on disk: build, load, save, go on. The files: see `rundir`."""

import csv
import io
import json
import os
import pathlib
import shutil
import zipfile

import numpy as np

from deit_tf import config as configuration
from deit_tf import curves, devices, model, regnet, rundir, torch_weights, weights
from deit_tf.config import InputError

_STATE = ("epoch", "step", "best", "history", "means", "bad_steps", "bad_in_a_row")


def build_network(facts):
    """The network of a configuration, with new weights.

    Args:
      facts: a `config.DeiTConfig` or a `config.RegNetYConfig`.

    Returns:
      A `keras.Model`: image [B, S, S, 3], 0–255 -> {"cls": [B, K]} and perhaps "dist".
    """
    if isinstance(facts, configuration.DeiTConfig):
        return model.build_deit(facts)
    return regnet.build_regnety(facts)


def load(path, which="last", model=None, **changes):
    """The network of a run with its weights, or of a file of PyTorch weights.

    Args:
      path: a run directory, or a file that `torch_weights.read` takes.
      which: "last" or "best", of a run.
      model: for a file, a name from `config.VARIANTS`; None reads the network off the shapes of
        its tensors, see `torch_weights.network_of`.
      **changes: for a file, fields of the network's configuration that differ.

    Returns:
      A `keras.Model`: image [B, S, S, 3], 0–255 -> {"cls": [B, K]} and perhaps "dist".

    Raises:
      InputError: no such run or file, no checkpoint yet, or files that do not fit together.
    """
    if torch_weights.is_file(path):
        values = torch_weights.read(path)
        return from_torch(values, torch_weights.network_of(values, path, model, **changes)[1], path)
    if model or changes:
        raise InputError(f"{path} is a run: its network is known; leave model and its fields away")
    return _load_run(path, which)


def from_torch(values, facts, source):
    """A network with weights from PyTorch.

    Args:
      values: what `torch_weights.read` gave.
      facts: a `config.DeiTConfig` or a `config.RegNetYConfig`.
      source: where the weights are from.

    Returns:
      A `keras.Model`, as `build_network` makes it.

    Raises:
      InputError: they do not fit it.
    """
    network = build_network(facts)
    weights.assign(network, values, source, torch_weights.official_name)
    return network


def start(network, config, classes):
    """Gives a network the weights to start from, adapted to it.

    Args:
      network: the network to train.
      config: a `config.RunConfig` with `init_from`.
      classes: the data set's own names of its classes.

    Returns:
      What was changed, a list of short texts.

    Raises:
      InputError: the weights are not there or do not fit.
    """
    source = config.init_from
    if torch_weights.is_file(source):
        found, name_of = torch_weights.read(source), torch_weights.official_name
        same_classes = True  # as far as anyone can tell
    else:
        record = rundir.read_config(source)
        _check_same_facts(record["config"].network, network.config, source)
        found, name_of = weights.of(_load_run(source)), str
        same_classes = record["classes"] == list(classes)
    method = config.pos_embed_resize
    return weights.start(network, found, source, same_classes, method, name_of)


def _check_same_facts(theirs, ours, source):
    """Raises InputError where two networks differ in what the shapes of weights do not show."""
    for name in ("mean", "std", "heads", "layer_norm_epsilon"):
        old, new = getattr(theirs, name, None), getattr(ours, name, None)
        if None not in (old, new) and old != new:
            given = ",".join(map(str, old)) if isinstance(old, tuple) else old
            raise InputError(
                f"{source} was trained with {name} {old}, not {new}; give --{name}={given}"
            )


def _load_run(run_dir, which="last"):
    """The network of a run with its weights."""
    network = build_network(rundir.read_config(run_dir)["config"].network)
    path = rundir.weights_path(run_dir, which)
    try:
        network.load_weights(path)
    except (OSError, ValueError) as error:
        raise InputError(f"{path} does not fit its config.json: {error}") from error
    return network


class Run:
    """Where a run stands, and its checkpoints.

    Args:
      run_dir: the run directory, made by `rundir.begin`.
      keep: how many checkpoints are kept.
    """

    def __init__(self, run_dir, keep=1):
        self.path, self.keep = pathlib.Path(run_dir), keep
        self.epoch, self.best, self.history = 0, -1.0, []  # of whole epochs
        self.step, self.means = 0, None  # within the epoch that was begun
        self.bad_steps, self.bad_in_a_row = 0, 0

    def restore(self, pair):
        """Puts the newest checkpoint, if any, into what is trained.

        Args:
          pair: a `distiller.Distiller`, built and compiled.

        Raises:
          InputError: a file of the checkpoint is damaged.
        """
        steps = rundir.steps(self.path)
        if not steps:
            return
        try:
            pair.student.load_weights(steps[-1] / rundir.WEIGHTS)
            if pair.average:
                pair.average.network.load_weights(steps[-1] / rundir.AVERAGE)
            with open(steps[-1] / "optimizer.npz", "rb") as file, np.load(file) as stored:
                _load_optimizer(pair.optimizer, dict(stored))
            state = json.loads((steps[-1] / "state.json").read_text())
        except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
            raise InputError(
                f"{steps[-1]} is damaged: {error}; remove it to go on from the one before, or anew"
            ) from error
        for name, value in state.items():
            setattr(self, name, value)
        pair.position.assign(self.step)
        pair.bad_steps.assign(self.bad_steps)
        pair.bad_in_a_row.assign(self.bad_in_a_row)

    def save(self, pair):
        """Writes the state as the newest checkpoint and drops those that are too many.

        Args:
          pair: a `distiller.Distiller`.
        """
        for name in ("bad_steps", "bad_in_a_row"):
            setattr(self, name, devices.number(getattr(pair, name)))
        final = self.path / "checkpoints" / f"step_{self.step:08d}"
        part = final.with_name("writing")
        shutil.rmtree(part, ignore_errors=True)
        part.mkdir()
        average = pair.average.network.weights if pair.average else []
        rundir.reserve(part, _bytes(pair.student.weights, average, pair.optimizer.variables))
        pair.student.save_weights(part / rundir.WEIGHTS)
        if pair.average:
            pair.average.network.save_weights(part / rundir.AVERAGE)
        store = {}
        pair.optimizer.save_own_variables(store)
        np.savez(part / "optimizer.npz", **store)
        state = {name: getattr(self, name) for name in _STATE}
        rundir.write(part / "state.json", json.dumps(state))
        rundir.publish(part, final)
        for folder in rundir.steps(self.path)[: -self.keep]:
            shutil.rmtree(folder, ignore_errors=True)

    def save_best(self, network):
        """Writes the network's weights as the best so far."""
        part = self.path / "best.part.weights.h5"
        rundir.reserve(self.path, _bytes(network.weights))
        network.save_weights(part)
        os.replace(part, self.path / "best.weights.h5")

    def mend(self):
        """Writes history.csv and curves.png anew where a kill left them behind the checkpoint."""
        path = self.path / "history.csv"
        before = path.read_text() if path.exists() else ""
        self.write_history()
        if self.history and path.read_text() != before:
            self.draw_curves()

    def write_history(self):
        """Writes history.csv anew from the history."""
        if not self.history:
            return
        text = io.StringIO()
        names = list(dict.fromkeys(name for row in self.history for name in row))
        table = csv.DictWriter(text, names, lineterminator="\n")
        table.writeheader()
        table.writerows(self.history)
        rundir.write(self.path / "history.csv", text.getvalue())

    def draw_curves(self):
        """Draws curves.png anew from the history."""
        if not self.history:
            return
        part = self.path / "curves.png.part"
        curves.draw(self.history).savefig(part, format="png", dpi=80)
        os.replace(part, self.path / "curves.png")


def _load_optimizer(optimizer, values):
    """Puts an optimizer's variables back; Keras would only warn of others, and begin anew."""
    if [values[str(i)].shape for i in range(len(values))] != [v.shape for v in optimizer.variables]:
        raise ValueError("optimizer.npz is of another optimizer")
    optimizer.load_own_variables(values)


def _bytes(*variables):
    """About how much room some lists of variables take on the disk."""
    sizes = [np.prod(v.shape) * np.dtype(v.dtype).itemsize for part in variables for v in part]
    return 2**20 + int(sum(sizes))


def describe(network):
    """One line about a network: its kind and its number of trainable parameters."""
    count = sum(int(np.prod(v.shape)) for v in network.trainable_variables)
    kind = "distilled " if getattr(network.config, "distilled", False) else ""
    return f"{kind}{type(network).__name__}, {count:,} parameters"
