"""Networks and runs on disk: build, load, save, go on. The files: see `rundir`."""

import csv
import io
import json
import math
import os
import pathlib
import shutil
import time
import zipfile

import keras
import numpy as np

from deit_tf import config as configuration
from deit_tf import curves, model, regnet, rundir, torch_weights, weights
from deit_tf.config import InputError

_SECONDS_BETWEEN_CURVES = 60  # a drawing takes one


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
    """

    def __init__(self, run_dir):
        self.path = pathlib.Path(run_dir)
        self.epoch, self.step, self.best, self.history = 0, 0, -1.0, []

    def restore(self, network, optimizer, average=None):
        """Puts the newest checkpoint, if any, into network, optimizer and average.

        Args:
          network: the network, built.
          optimizer: its optimizer, built.
          average: the network of its moving average, or None.

        Raises:
          InputError: a file of the checkpoint is damaged.
        """
        steps = rundir.steps(self.path)
        if not steps:
            return
        try:
            network.load_weights(steps[-1] / rundir.WEIGHTS)
            if average:
                average.load_weights(steps[-1] / rundir.AVERAGE)
            with open(steps[-1] / "optimizer.npz", "rb") as file, np.load(file) as stored:
                optimizer.load_own_variables(dict(stored))
            state = json.loads((steps[-1] / "state.json").read_text())
        except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
            raise InputError(f"{steps[-1]} is damaged: {error}; remove it to start anew") from error
        for name, value in state.items():
            setattr(self, name, value)

    def save(self, network, optimizer, average=None):
        """Writes the state as the newest checkpoint and drops those before it."""
        final = self.path / "checkpoints" / f"step_{self.step:08d}"
        part = final.with_name("writing")
        shutil.rmtree(part, ignore_errors=True)
        part.mkdir()
        network.save_weights(part / rundir.WEIGHTS)
        if average:
            average.save_weights(part / rundir.AVERAGE)
        store = {}
        optimizer.save_own_variables(store)
        np.savez(part / "optimizer.npz", **store)
        names = ("epoch", "step", "best", "history")
        rundir.write(
            part / "state.json",
            json.dumps({name: getattr(self, name) for name in names}),
        )
        older = rundir.steps(self.path)
        shutil.rmtree(final, ignore_errors=True)
        os.replace(part, final)
        for folder in older:
            if folder != final:
                shutil.rmtree(folder)

    def save_best(self, network):
        """Writes the network's weights as the best so far."""
        part = self.path / "best.part.weights.h5"
        network.save_weights(part)
        os.replace(part, self.path / "best.weights.h5")

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


class SaveRun(keras.callbacks.Callback):
    """Keeps a run directory up to date, epoch by epoch.

    Args:
      run: a `Run`.

    Raises:
      InputError: it can no longer be written.
    """

    def __init__(self, run):
        super().__init__()
        self.run, self.drawn = run, -math.inf

    def on_train_begin(self, logs=None):
        """Mends what a kill left behind its checkpoint."""
        self.run.write_history()
        self.run.draw_curves()

    def on_epoch_end(self, epoch, logs=None):
        """Notes the epoch, saves and draws; the best is judged by val_fused_top1."""
        pair, run = self.model, self.run
        values = {name: float(value) for name, value in (logs or {}).items()}
        number = keras.ops.convert_to_numpy  # of one replica's copy, where there are several
        run.epoch, run.step = epoch + 1, int(number(pair.optimizer.iterations))
        rate = float(pair.optimizer.rate_at(run.step - 1))
        run.history.append({"epoch": epoch + 1, "step": run.step, "lr": rate, **values})
        try:
            if values["val_fused_top1"] > run.best:
                run.best = values["val_fused_top1"]
                run.save_best(pair.evaluated)
            run.save(pair.student, pair.optimizer, pair.average and pair.average.network)
            run.write_history()
            if time.monotonic() - self.drawn > _SECONDS_BETWEEN_CURVES:
                run.draw_curves()
                self.drawn = time.monotonic()
        except OSError as error:
            raise InputError(f"{run.path} can no longer be written: {error}") from error

    def on_train_end(self, logs=None):
        """Draws the whole of it."""
        self.run.draw_curves()


def describe(network):
    """One line about a network: its kind and its number of trainable parameters."""
    count = sum(int(np.prod(v.shape)) for v in network.trainable_variables)
    kind = "distilled " if getattr(network.config, "distilled", False) else ""
    return f"{kind}{type(network).__name__}, {count:,} parameters"
