"""Run directories: what a run is, where it stands, how to go on and how to load it.

config.json            the configuration, the data's facts, class names, versions
history.csv            one row an epoch
curves.png             the same as a picture
logs/                  TensorBoard events
best.weights.h5        the network at its best evaluation accuracy
checkpoints/step_N/    the newest state, whole or not there at all:
    network.weights.h5   the network
    average.weights.h5   the moving average of its weights, where there is one
    optimizer.npz        the optimizer's variables
    state.json           epoch, step, best accuracy, history
"""

import csv
import hashlib
import importlib.metadata
import io
import json
import os
import pathlib
import platform
import shutil
import zipfile

import keras
import numpy as np

from deit_tf import config as configuration
from deit_tf import curves, model, regnet
from deit_tf.config import InputError

_CHOICES = ("last", "best")
_WEIGHTS, _AVERAGE = "network.weights.h5", "average.weights.h5"


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


def read_config(run_dir):
    """What config.json says: {"config", "facts", "labels", "versions"}.

    Raises:
      InputError: no such run, or a file that is not whole.
    """
    path = pathlib.Path(run_dir) / "config.json"
    try:
        record = json.loads(path.read_text())
        known = {name: record[name] for name in ("facts", "labels", "versions")}
        return {"config": configuration.from_json(record["config"]), **known}
    except FileNotFoundError as error:
        raise InputError(f"{run_dir} is no run directory: it has no config.json") from error
    except (json.JSONDecodeError, KeyError, TypeError, OSError) as error:
        raise InputError(f"{path} cannot be read: {error}") from error


def weights_path(run_dir, which="last"):
    """The file that holds a run's weights; those of the moving average where there is one.

    Args:
      run_dir: the run directory.
      which: "last", or "best" by top-1 accuracy of the fused heads on the evaluation images.

    Raises:
      InputError: there is none yet.
    """
    if which not in _CHOICES:
        raise InputError(f"checkpoint is {which!r}; choose one of {', '.join(_CHOICES)}")
    if which == "best":
        path = pathlib.Path(run_dir) / "best.weights.h5"
    else:
        folder = [pathlib.Path(run_dir), *_steps(pathlib.Path(run_dir))][-1]
        path = folder / (_AVERAGE if (folder / _AVERAGE).exists() else _WEIGHTS)
    if not path.is_file():
        raise InputError(f"{run_dir} has no {which} checkpoint yet; train it first")
    return path


def load(run_dir, which="last"):
    """The network of a run with its weights.

    Args:
      run_dir: the run directory.
      which: "last" or "best".

    Returns:
      A `keras.Model`: image [B, S, S, 3], 0–255 -> {"cls": [B, K]} and perhaps "dist".

    Raises:
      InputError: no such run, no checkpoint yet, or files that do not fit together.
    """
    network = build_network(read_config(run_dir)["config"].network)
    path = weights_path(run_dir, which)
    try:
        network.load_weights(path)
    except (OSError, ValueError) as error:
        raise InputError(f"{path} does not fit its config.json: {error}") from error
    return network


def digest(path):
    """Hexadecimal SHA-256 of a file."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _steps(run_dir):
    """Folders of whole checkpoints, oldest first."""
    return sorted((run_dir / "checkpoints").glob("step_*[0-9]"))


def _write(path, text):
    """Writes a text file whole or not at all."""
    part = path.with_name(path.name + ".part")
    part.write_text(text)
    os.replace(part, path)


class Run:
    """One run directory, opened to be trained in.

    config.json always says what the last start said: facts that are free may have changed.

    Args:
      run_dir: made if it is not there; a run with the same configuration goes on. One without a
        checkpoint holds nothing yet, and is taken over.
      config: the `config.Config`.
      facts: what identifies data and teacher, JSON values.
      labels: names of the classes.

    Raises:
      InputError: the directory holds a run with another configuration, or other facts, or it
        cannot be written.
    """

    def __init__(self, run_dir, config, facts, labels):
        self.path = pathlib.Path(run_dir)
        self.epoch, self.step, self.best, self.history = 0, 0, -1.0, []
        facts = json.loads(json.dumps(facts))
        if self.is_started:
            self._check_same(config, facts)
        record = {
            "config": configuration.to_json(config),
            "facts": facts,
            "labels": list(labels),
            "versions": _versions(),
        }
        try:
            (self.path / "checkpoints").mkdir(parents=True, exist_ok=True)
            _write(self.path / "config.json", json.dumps(record, indent=2) + "\n")
        except OSError as error:
            raise InputError(f"run directory {run_dir} cannot be written: {error}") from error

    @property
    def is_started(self):
        """Whether there is a checkpoint."""
        return bool(_steps(self.path))

    def _check_same(self, config, facts):
        """Raises InputError where the directory holds another run."""
        stored = read_config(self.path)
        found = configuration.differences(stored["config"], config)
        before = stored["facts"]
        found += [
            f"{key}: {before.get(key)} -> {facts.get(key)}"
            for key in sorted({*before, *facts})
            if before.get(key) != facts.get(key)
        ]
        if found:
            raise InputError(
                f"{self.path} holds another run ({'; '.join(found)}); give another --run_dir, or"
                " remove it"
            )

    def restore(self, network, optimizer, average=None):
        """Puts the newest checkpoint, if any, into network, optimizer and average.

        Args:
          network: the network, built.
          optimizer: its optimizer, built.
          average: the network of its moving average, or None.

        Raises:
          InputError: a file of the checkpoint is damaged.
        """
        steps = _steps(self.path)
        if not steps:
            return
        try:
            network.load_weights(steps[-1] / _WEIGHTS)
            if average:
                average.load_weights(steps[-1] / _AVERAGE)
            with open(steps[-1] / "optimizer.npz", "rb") as file, np.load(file) as stored:
                optimizer.load_own_variables(dict(stored))
            state = json.loads((steps[-1] / "state.json").read_text())
        except (OSError, ValueError, zipfile.BadZipFile) as error:
            raise InputError(f"{steps[-1]} is damaged: {error}; remove it to start anew") from error
        for name, value in state.items():
            setattr(self, name, value)
        self.write_history()  # a kill may have come between the checkpoint and its row

    def save(self, network, optimizer, average=None):
        """Writes the state as the newest checkpoint and drops those before it."""
        final = self.path / "checkpoints" / f"step_{self.step:08d}"
        part = final.with_name("writing")
        shutil.rmtree(part, ignore_errors=True)
        part.mkdir()
        network.save_weights(part / _WEIGHTS)
        if average:
            average.save_weights(part / _AVERAGE)
        store = {}
        optimizer.save_own_variables(store)
        np.savez(part / "optimizer.npz", **store)
        names = ("epoch", "step", "best", "history")
        _write(
            part / "state.json",
            json.dumps({name: getattr(self, name) for name in names}),
        )
        older = _steps(self.path)
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
        _write(self.path / "history.csv", text.getvalue())

    def draw_curves(self):
        """Draws curves.png anew from the history."""
        part = self.path / "curves.png.part"
        curves.draw(self.history).savefig(part, format="png", dpi=80)
        os.replace(part, self.path / "curves.png")


class SaveRun(keras.callbacks.Callback):
    """Keeps a run directory up to date, epoch by epoch.

    Args:
      run: a `Run`.
    """

    def __init__(self, run):
        super().__init__()
        self.run = run

    def on_epoch_end(self, epoch, logs=None):
        """Notes the epoch, saves and draws; the best is judged by val_fused_top1."""
        pair, run = self.model, self.run
        values = {name: float(value) for name, value in (logs or {}).items()}
        number = keras.ops.convert_to_numpy  # of one replica's copy, where there are several
        run.epoch, run.step = epoch + 1, int(number(pair.optimizer.iterations))
        rate = float(number(pair.optimizer.learning_rate))
        run.history.append({"epoch": epoch + 1, "step": run.step, "lr": rate, **values})
        if values["val_fused_top1"] > run.best:
            run.best = values["val_fused_top1"]
            run.save_best(pair.evaluated)
        run.save(pair.student, pair.optimizer, pair.average and pair.average.network)
        run.write_history()
        run.draw_curves()


def _versions():
    """Versions of what decides over numbers."""
    packages = ("tensorflow", "keras", "tensorflow-datasets", "numpy")
    found = {name: importlib.metadata.version(name) for name in packages}
    return {"python": platform.python_version(), **found}


def describe(network):
    """One line about a network: its kind and its number of trainable parameters."""
    count = sum(int(np.prod(v.shape)) for v in network.trainable_variables)
    kind = "distilled " if getattr(network.config, "distilled", False) else ""
    return f"{kind}{type(network).__name__}, {count:,} parameters"
