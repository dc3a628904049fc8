"""From a data set's name to images that can be read at any index."""

import dataclasses
import hashlib
from collections.abc import Sequence

from absl import logging

from deit_tf import folder, labels, policies, readable
from deit_tf.config import InputError


@dataclasses.dataclass(frozen=True)
class Source:
    """A classification set that can be read at any index.

    Attributes:
      name: as in `--dataset`.
      train: sequence of {"image": bytes, "label": int}, with `__getitems__(indices)` and
        `name_of(index)`, which a person understands.
      eval: the same, for evaluation.
      classes: the data set's own names of its classes; they say what the numbers mean.
      labels: the names that people read.
      facts: what identifies the images, for config.json: JSON values.
    """

    name: str
    train: Sequence
    eval: Sequence
    classes: tuple
    labels: tuple
    facts: dict


def open_source(config, training=True):
    """Opens the data set; the embedded one is prepared on first use.

    Args:
      config: a `config.DataConfig`.
      training: False opens the evaluation images alone; `Source.train` is None then.

    Returns:
      A `Source`.

    Raises:
      InputError: unknown data set, split or folder, one that is not prepared, or class names that
        do not fit.
    """
    kind, _, name = config.dataset.partition(":")
    if kind == "folder" and name:
        source = _folder(config, name, training)
    elif config.dataset == "digits" or (kind == "tfds" and name):
        source = _tfds(config, name or kind, training)
    else:
        raise InputError(
            f"dataset is {config.dataset!r}; give digits, tfds:NAME as tfds:cifar10, or"
            " folder:PATH as folder:/data/flowers"
        )
    named = labels.names(source.classes, config.labels)
    source = dataclasses.replace(source, labels=named)
    if config.skip_bad_images:
        train = source.train and readable.Readable(source.train)
        source = dataclasses.replace(source, train=train, eval=readable.Readable(source.eval))
    return source


def open_training(config, machines):
    """The data set of a training, which fits its network and recipe.

    On several machines the chief opens it first, which may prepare it.

    Args:
      config: a `config.Config`.
      machines: a `cluster.Cluster`.

    Returns:
      A `Source`.

    Raises:
      InputError: see `open_source`; or the recipe is wrong, or made for other classes.
    """
    config.check_groups(machines.workers)
    policies.parse(config.augment.auto_augment)
    if config.run.replicas > 1 or config.run.strategy == "multi_worker":
        from deit_tf import devices

        # Before a data set is prepared, which computes.
        strategy = devices.strategy(config.run.strategy, config.run.replicas)
        if not machines.is_chief:
            devices.meet(strategy)
        source = open_source(config.data)
        if machines.is_chief:
            devices.meet(strategy)
    else:
        source = open_source(config.data)
    classes, ours = len(source.labels), config.network.num_classes
    if classes != ours:
        raise InputError(
            f"{source.name} has {classes} classes, num_classes is {ours}; give"
            f" --num_classes={classes}"
        )
    return source


def _folder(config, path, training):
    """The source of a folder of images."""
    train, test, classes, others = folder.open_folder(
        path, config.train_split, config.eval_split, config.eval_fraction, training
    )
    if others:
        logging.warning(
            "%d files in %s are left out: their names do not end in %s",
            others,
            path,
            ", ".join(folder.SUFFIXES),
        )
    facts = {"eval_files_sha256": test.sha256()}
    if train:
        facts["train_files_sha256"] = train.sha256()
    return _source(config, train, test, classes, "folder", facts)


def _tfds(config, name, training):
    """The source of a TFDS set."""
    from deit_tf import prepared  # seconds to import, and only this function's need

    if config.eval_fraction:
        raise InputError(
            f"eval_fraction is {config.eval_fraction}, but {config.dataset} is no folder; give"
            " --train_split=train[:90%] --eval_split=train[90%:]"
        )
    builder = prepared.find(name, config.data_dir)
    train, test, classes = prepared.open_splits(
        builder, config.train_split, config.eval_split, training
    )
    facts = dict(builder.info.metadata) if name == "digits" else {}  # the checksum of its split
    facts["records_sha256"] = prepared.sha256(builder)
    return _source(config, train, test, classes, builder.info.full_name, facts)


def _source(config, train, test, classes, name, facts):
    """A source with the facts that all have."""
    sha256 = hashlib.sha256("\n".join(classes).encode(errors="surrogateescape")).hexdigest()
    facts = {"dataset": name, "classes_sha256": sha256, "eval_images": len(test), **facts}
    if train:
        facts["train_images"] = len(train)
    return Source(config.dataset, train, test, classes, classes, facts)
