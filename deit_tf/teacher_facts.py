"""Which teacher is named, and what identifies it; looked up on the disk, nothing is loaded."""

import dataclasses
import json
import pathlib
import zipfile

from deit_tf import labels, rundir
from deit_tf.config import InputError

_PARTS_OF_A_CLASSIFIER = {"InputLayer", "DeiT", "RegNetY", "Fuse", "Softmax"}
KERAS_CV, APPLICATION = "keras_cv:", "keras.applications:"
_KINDS = (
    "a run directory, keras_cv:DIR, keras.applications:NAME, a .keras file or a SavedModel's folder"
)


def kind_of(config):
    """What sort of teacher is named.

    Args:
      config: a `config.DistillConfig`.

    Returns:
      "run", "keras_cv", "application", "keras" or "saved_model".

    Raises:
      InputError: nothing of the sort is there, or its normalisation is missing or its own.
    """
    name = config.teacher
    path = pathlib.Path(name.removeprefix(KERAS_CV))
    if name.startswith(APPLICATION):
        kind = "application"
    elif name.startswith(KERAS_CV):
        kind = "keras_cv"
        if not (path / "config.json").is_file():
            raise InputError(f"teacher {name}: {path} is no folder with a preset's config.json")
    elif path.suffix == ".keras" and path.is_file():
        kind = "keras"
    elif (path / "saved_model.pb").is_file():
        kind = "saved_model"
    elif (path / "config.json").is_file():
        kind = "run"
    else:
        raise InputError(f"teacher {name} is nothing that can teach; give {_KINDS}")
    _check_normalisation(kind, path, config)
    return kind


def _check_normalisation(kind, path, config):
    """Raises InputError unless it is known, once, how the teacher's pixels are normalised."""
    own = kind in ("run", "application")
    own = own or (kind == "keras" and _is_ours(path)) or (kind == "keras_cv" and _rescales(path))
    if own and config.teacher_mean:
        raise InputError(
            f"teacher {config.teacher} has its own normalisation; leave teacher_mean and"
            " teacher_std away"
        )
    if not own and not config.teacher_mean:
        raise InputError(
            f"teacher {config.teacher} does not say how its pixels are normalised; give"
            " --teacher_mean and --teacher_std in units of 0–1, as 0.485,0.456,0.406 and"
            " 0.229,0.224,0.225 (0,0,0 and 0.00392156863,0.00392156863,0.00392156863 where it"
            " takes 0–255 itself)"
        )


def _is_ours(path):
    """Whether a .keras file is a network of ours, or our `classifier`: they take raw pixels."""
    try:
        with zipfile.ZipFile(path) as file:
            root = json.loads(file.read("config.json"))
        parts = [layer["class_name"] for layer in root["config"].get("layers", [])]
    except (zipfile.BadZipFile, ValueError, KeyError, TypeError, OSError) as error:
        raise InputError(f"teacher {path} is no whole .keras file: {error}") from error
    ours = str(root.get("registered_name")).startswith("deit_tf>")
    return ours or ("Fuse" in parts and set(parts) <= _PARTS_OF_A_CLASSIFIER)


def _rescales(folder):
    """Whether a keras_cv preset's network takes raw pixels."""
    try:
        backbone = json.loads((folder / "config.json").read_text())["config"]["backbone"]
        return bool(backbone["config"]["include_rescaling"])
    except (ValueError, KeyError, TypeError, OSError) as error:
        raise InputError(
            f"teacher keras_cv:{folder} is no preset of a classifier that says include_rescaling"
        ) from error


def facts(config, classes):
    """What identifies the teacher, for config.json.

    Args:
      config: a `config.DistillConfig`.
      classes: the student's data set's own names of its classes.

    Returns:
      {} where nothing is distilled, else {"teacher_sha256": digest of its weights}, or
      {"teacher": its name} of one of keras.applications.

    Raises:
      InputError: no teacher; or it is known to have other classes, or the same in another order.
    """
    if config.distillation == "none":
        return {}
    kind = kind_of(config)
    if kind == "run":
        _check_classes(rundir.read_config(config.teacher)["classes"], classes)
        return {"teacher_sha256": rundir.digest(rundir.weights_path(config.teacher))}
    if kind == "application":
        _check_classes(list(labels.imagenet()), classes)
        return {"teacher": config.teacher}
    return {"teacher_sha256": rundir.digest(config.teacher.removeprefix(KERAS_CV))}


def network(config):
    """What a teacher that is a run computes with its weights, JSON values; {} of others.

    Args:
      config: a `config.DistillConfig`.

    Raises:
      InputError: no teacher.
    """
    if kind_of(config) != "run":
        return {}
    theirs = rundir.read_config(config.teacher)["config"]
    return {
        "teacher_network": dataclasses.asdict(theirs.network),
        "teacher_fusion": theirs.run.fusion,
    }


def _check_classes(theirs, ours):
    """Raises InputError where a teacher's classes are not the student's."""
    if len(theirs) != len(ours):
        raise InputError(
            f"the teacher has {len(theirs)} classes, the student {len(ours)}; give a teacher"
            " that was trained on the same classes"
        )
    if list(theirs) != list(ours):
        raise InputError(
            f"the teacher's classes ({', '.join(theirs[:3])}, …) are not the student's"
            f" ({', '.join(ours[:3])}, …), or not in their order"
        )
