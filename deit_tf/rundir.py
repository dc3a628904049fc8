"""A run directory: what a run is and where it stands. Standard library only.

A run holds these; one that `convert` made holds config.json and network.weights.h5 alone.

config.json            the configuration, the data's facts, class names, versions
history.csv            one row an epoch
curves.png             the same as a picture
logs/                  TensorBoard events
attention.png          where the tokens look, once `attention` has been asked
best.weights.h5        the network at its best evaluation accuracy
checkpoints/step_N/    a newest state, whole or not there at all; step_N_1 is newer than step_N:
    network.weights.h5   the network
    average.weights.h5   the moving average of its weights, where there is one
    optimizer.npz        the optimizer's variables
    state.json           epochs that are over, step, best accuracy, history, means of this epoch
"""

import contextlib
import hashlib
import importlib.metadata
import json
import os
import pathlib
import platform

from deit_tf import config as configuration
from deit_tf.config import InputError

WEIGHTS, AVERAGE = "network.weights.h5", "average.weights.h5"
_CHOICES = ("last", "best")


def read_config(run_dir):
    """What config.json says: {"config", "facts", "classes", "labels", "versions"}.

    Raises:
      InputError: no such run, or a file that is not whole.
    """
    path = pathlib.Path(run_dir) / "config.json"
    try:
        record = json.loads(path.read_text("utf-8"))
        known = {name: record[name] for name in ("facts", "classes", "labels", "versions")}
        return {"config": configuration.from_json(record["config"]), **known}
    except FileNotFoundError as error:
        raise InputError(f"{run_dir} is no run directory: it has no config.json") from error
    except (ValueError, KeyError, TypeError, OSError) as error:
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
    averaged = read_config(run_dir)["config"].optimizer.ema_decay
    if which == "best":
        path = pathlib.Path(run_dir) / "best.weights.h5"
    else:
        folder = [pathlib.Path(run_dir), *steps(run_dir)][-1]
        path = folder / (AVERAGE if averaged else WEIGHTS)
    if path.is_file():
        return path
    if steps(run_dir):
        raise InputError(f"{path} is missing: the run is damaged; train it anew")
    raise InputError(f"{run_dir} has no {which} checkpoint yet; train it first")


def check_deit(run_dir, which="last"):
    """Raises InputError where a run has no weights yet, or is no DeiT's.

    Args:
      run_dir: the run directory.
      which: "last" or "best".
    """
    weights_path(run_dir, which)
    model = read_config(run_dir)["config"]
    if not isinstance(model.network, configuration.DeiTConfig):
        raise InputError(
            f"{run_dir} holds a {model.model}, a teacher; it is the student that is exported"
        )


def digest(path):
    """Hexadecimal SHA-256 of a file; of a folder, of its files' names and digests."""
    path = pathlib.Path(path)
    if path.is_dir():
        files = sorted(file for file in path.rglob("*") if file.is_file())
        lines = [f"{file.relative_to(path)} {digest(file)}" for file in files]
        return hashlib.sha256("\n".join(lines).encode(errors="surrogateescape")).hexdigest()
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def steps(run_dir):
    """Folders of whole checkpoints, oldest first."""
    return sorted((pathlib.Path(run_dir) / "checkpoints").glob("step_*[0-9]"), key=_age)


def _age(path):
    """(step, which of those of this step) of a checkpoint's folder."""
    step, _, again = path.name.removeprefix("step_").partition("_")
    return int(step), int(again or 0)


def write(path, text):
    """Writes a text file whole or not at all."""
    part = path.with_name(path.name + ".part")
    part.write_text(text)
    os.replace(part, path)


@contextlib.contextmanager
def writing(folder):
    """Says in one line what is wrong where a folder can no longer be written.

    Raises:
      InputError: the block raised OSError.
    """
    try:
        yield
    except OSError as error:
        raise InputError(f"{folder} can no longer be written: {error}") from error


def reserve(folder, size):
    """Finds out whether there is room, before a library that fails unseen finds out.

    Args:
      folder: where something is about to be written, a path.
      size: of it, bytes.

    Raises:
      OSError: the disk is full, or a limit is reached.
    """
    path = folder / "room.part"
    try:
        with open(path, "wb") as file:
            os.posix_fallocate(file.fileno(), 0, size)
    finally:
        path.unlink(missing_ok=True)


def publish(part, final):
    """Gives a folder that is written whole its name; what was written is on the disk then.

    Where a checkpoint of this step is there it gets "_1" behind its name, or "_2": to replace one
    is to have none for a moment, in which the process may be killed.

    Args:
      part: the folder, a path.
      final: checkpoints/step_N, a path.
    """
    for path in (*part.iterdir(), part):
        _flush(path)
    again = [
        _age(path)[1] for path in steps(final.parent.parent) if _age(path)[0] == _age(final)[0]
    ]
    os.rename(part, final.with_name(f"{final.name}_{max(again) + 1}") if again else final)
    _flush(final.parent)


def _flush(path):
    """Waits until a file or folder is on the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def begin(run_dir, config, facts, classes, labels):
    """Makes a run directory, or finds it made; config.json says what this start says.

    Args:
      run_dir: the run directory.
      config: the `config.Config`; what is free in it may differ from the last start's.
      facts: what identifies data and teacher, JSON values.
      classes: the data set's own names of its classes.
      labels: the names that people read.

    Raises:
      InputError: it holds another run, or cannot be written.
    """
    check_same(run_dir, config, facts)
    path = pathlib.Path(run_dir)
    if steps(path):  # what this start does not look at is as it was
        facts = {**read_config(path)["facts"], **facts}
    record = {
        "config": configuration.to_json(config),
        "facts": facts,
        "classes": list(classes),
        "labels": list(labels),
        "versions": _versions(),
    }
    try:
        (path / "checkpoints").mkdir(parents=True, exist_ok=True)
        write(path / "config.json", json.dumps(record, indent=2) + "\n")
    except OSError as error:
        raise InputError(f"run directory {run_dir} cannot be written: {error}") from error


def initial_facts(init_from):
    """What identifies the weights that a run starts from, for config.json.

    Args:
      init_from: a run directory, a file, or "".

    Returns:
      {} or {"init_from_sha256": digest}.

    Raises:
      InputError: there is no such run or file.
    """
    if not init_from:
        return {}
    path = pathlib.Path(init_from)
    return {"init_from_sha256": digest(path if path.is_file() else weights_path(path))}


def check_same(run_dir, config, facts):
    """Raises InputError where the directory holds another run.

    One without a checkpoint holds nothing yet, unless its config.json is not a run's.

    Args:
      run_dir: the run directory, which need not be there.
      config: the `config.Config` to go on with.
      facts: what identifies data and teacher, as far as it is known.
    """
    begun = (pathlib.Path(run_dir) / "config.json").exists()
    if not begun and not steps(run_dir):
        return
    stored = read_config(run_dir)
    if not steps(run_dir) and not (pathlib.Path(run_dir) / WEIGHTS).exists():
        return
    found = configuration.differences(stored["config"], config)
    before, facts = stored["facts"], json.loads(json.dumps(facts))
    found += [
        f"{name}: {before.get(name)} -> {value}"
        for name, value in facts.items()
        if before.get(name) != value
    ]
    if found:
        raise InputError(
            f"{run_dir} holds another run ({'; '.join(found)}); give another --run_dir, or remove"
            " it"
        )


def _versions():
    """Versions of what decides over numbers."""
    packages = ("tensorflow", "keras", "keras-cv", "tensorflow-datasets", "numpy", "scipy")
    found = {name: importlib.metadata.version(name) for name in packages}
    return {"python": platform.python_version(), **found}
