"""TFDS data sets: found, prepared or converted to ArrayRecord, and read at any index."""

import contextlib
import functools
import hashlib
import json
import pathlib
import socket
import sys
import urllib.parse
import urllib.request

import numpy as np
import tensorflow_datasets as tfds
import tqdm
from absl import logging
from tensorflow_datasets.core import file_adapters
from tensorflow_datasets.core.utils import py_utils

from deit_tf import digits
from deit_tf.config import InputError

_ARRAY_RECORD = tfds.core.FileFormat.ARRAY_RECORD
_EVAL_SPLITS = ("validation", "val", "test")


@contextlib.contextmanager
def _quietly():
    """Leaves out what TFDS says of itself at level info; what it prints is no answer of ours."""
    before = logging.get_verbosity()
    logging.set_verbosity(min(before, logging.WARNING))
    try:
        with contextlib.redirect_stdout(sys.stderr):
            yield
    finally:
        logging.set_verbosity(before)


class Records:
    """One split of a prepared data set, read by index; images stay encoded.

    Args:
      builder: a TFDS builder whose set is there as ArrayRecord.
      split: its name, or a slice as "train[:90%]".
    """

    def __init__(self, builder, split):
        self._image, self._label = _keys(builder)
        self._name = f"{builder.info.full_name} {split}"
        self._source = builder.as_data_source(
            split,
            decoders={self._image: tfds.decode.SkipDecoding()},
            file_format=_ARRAY_RECORD,
        )

    def __len__(self):
        return len(self._source)

    def __getitem__(self, index):
        return self.__getitems__([index])[0]

    def __getitems__(self, indices):
        rows = self._source.__getitems__(indices)
        return [{"image": row[self._image], "label": int(row[self._label])} for row in rows]

    def name_of(self, index):
        """What a person calls an image."""
        return f"record {index} of {self._name}"


def open_splits(builder, train_split, eval_split, training=True):
    """The two splits of a prepared data set.

    Args:
      builder: what `find` answered.
      train_split: a TFDS split.
      eval_split: another; "" is the first there is of validation, val, test.
      training: False looks for the evaluation split alone.

    Returns:
      (training `Records` or None, evaluation `Records`, names of the classes).

    Raises:
      InputError: no such split, no class as label, or images without a label.
    """
    if not eval_split:
        names = builder.info.splits
        found = [split for split in _EVAL_SPLITS if split in names]
        if not found:
            raise InputError(
                f"{builder.info.full_name} has no split {' or '.join(_EVAL_SPLITS)}; it has"
                f" {', '.join(names)}; give --eval_split, or parts of one as"
                " --train_split=train[:90%] --eval_split=train[90%:]"
            )
        eval_split = found[0]
    train = _open_split(builder, train_split) if training else None
    classes = builder.info.features[_keys(builder)[1]].names
    return train, _open_split(builder, eval_split), tuple(classes)


def _open_split(builder, split):
    """The records of one split; an InputError where there are none, or none with a label."""
    splits, name = builder.info.splits, builder.info.full_name
    try:
        images = splits[split].num_examples
    except (KeyError, ValueError, AssertionError) as error:
        raise InputError(
            f"{name} has no split {split!r}; it has {', '.join(splits)}, and parts of them as"
            " train[:90%] and train[90%:]"
        ) from error
    if images <= 0:
        raise InputError(f"{name} {split} holds no images; give another split")
    records = Records(builder, split)
    if records[0]["label"] < 0:
        raise InputError(f"the images of {name} {split} have no labels; give another split")
    return records


def _keys(builder):
    """Names of the image and of the class among the features of a set."""
    features, supervised = builder.info.features, builder.info.supervised_keys
    keys = supervised if supervised and len(supervised) == 2 else ("image", "label")
    image, label = (features[key] if key in features else None for key in keys)  # noqa: SIM401
    if (
        not isinstance(image, tfds.features.Image)
        or image.np_dtype != np.uint8
        or not isinstance(label, tfds.features.ClassLabel)
    ):
        raise InputError(
            f"{builder.info.full_name} has no 8-bit image with a class as label; it has"
            f" {', '.join(features)}"
        )
    return keys


def find(name, data_dir):
    """The builder of a data set that lies in `data_dir` as ArrayRecord.

    Args:
      name: "digits", which is prepared on the spot, or as TFDS knows it: "cifar10",
        "imagenet_v2/matched-frequency", "cifar10:3.0.2".
      data_dir: folder of the prepared data sets.

    Returns:
      A `tfds.core.DatasetBuilder`.

    Raises:
      InputError: TFDS does not know it, or it does not lie there as ArrayRecord.
    """
    if name == "digits":
        prepare(name, data_dir)
    builder = _builder(name, data_dir)
    if _is_there(builder):
        return builder
    if builder.is_prepared():
        form = builder.info.file_format.value
        found = f"lies in {data_dir} as {form}, which has no random access; convert it"
    else:
        found = f"is not in {data_dir}, and needs a download{_size(builder)}; fetch it"
    raise InputError(
        f"{name} {found} once by: python -m deit_tf.prepare --dataset=tfds:{name}"
        f" --data_dir={data_dir}"
    )


@_quietly()
def prepare(name, data_dir):
    """Makes a data set readable at random: downloads, converts, or finds it done.

    Args:
      name: see `find`.
      data_dir: folder of the prepared data sets.

    Returns:
      What was done: "was there already", "converted" or "prepared".

    Raises:
      InputError: TFDS does not know it, no network, no permission, or files that a person has to
        fetch.
    """
    builder = _builder(name, data_dir)
    if _is_there(builder):
        return "was there already"
    try:
        if builder.is_prepared():
            _convert(builder)
            return "converted"
        _check_reachable(builder, name, data_dir)
        _builder(name, data_dir, file_format=_ARRAY_RECORD).download_and_prepare()
    except InputError:
        raise
    except Exception as error:  # the code of any data set runs here, and may fail in any way
        if _is_there(_builder(name, data_dir)):  # another process was faster
            return "was there already"
        raise InputError(f"{name} cannot be prepared in {data_dir}: {_line(error)}") from error
    return "prepared"


def _size(builder):
    """How much a set downloads, as " of 162.17 MiB", where that is known."""
    total = sum(url.size for url in (builder.url_infos or {}).values())
    return f" of {tfds.core.utils.Size(total)}" if total else ""


def _check_reachable(builder, name, data_dir):
    """Raises InputError where a download is bound to fail; TFDS would try for minutes.

    Raises:
      InputError: files that a person has to fetch are missing, or a host cannot be reached.
    """
    manual = pathlib.Path(data_dir) / "downloads" / "manual"
    if builder.MANUAL_DOWNLOAD_INSTRUCTIONS:
        if not manual.is_dir() or not any(manual.iterdir()):
            raise InputError(
                f"{name} has to be fetched by hand, into {manual}:"
                f" {_line(builder.MANUAL_DOWNLOAD_INSTRUCTIONS)}"
            )
        return
    fetched = pathlib.Path(data_dir) / "downloads" / builder.name
    if any(path.is_file() for path in fetched.glob("*")):
        return  # some of it is there already; TFDS says what is missing
    for url in _one_of_each_host(builder.url_infos or ()):
        try:
            socket.create_connection(_address(url), timeout=10).close()
        except OSError as error:
            raise InputError(
                f"{name} needs a download{_size(builder)} from {urllib.parse.urlparse(url).netloc},"
                f" which cannot be reached from here ({error.strerror or error}); say it again with"
                f" a network, or copy a prepared {name} into {data_dir}"
            ) from error


def _one_of_each_host(urls):
    """One of the addresses at each host."""
    return {urllib.parse.urlparse(url).netloc: url for url in urls}.values()


def _address(url):
    """Host and port that a request for `url` goes to: the proxy's, where there is one."""
    parts = urllib.parse.urlparse(url)
    proxy = urllib.request.getproxies().get(parts.scheme)
    if proxy and not urllib.request.proxy_bypass(parts.hostname):
        parts = urllib.parse.urlparse(proxy)
    return parts.hostname, parts.port or {"https": 443, "ftp": 21}.get(parts.scheme, 80)


def _line(error):
    """An error's message in one line."""
    return " ".join(str(error).split())[:400] or type(error).__name__


def sha256(builder):
    """Hexadecimal SHA-256 over what a prepared set knows of its records: which set this is."""
    splits = {
        name: [split.num_bytes, *split.shard_lengths] for name, split in builder.info.splits.items()
    }
    text = json.dumps([builder.info.full_name, splits], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


@_quietly()
def _builder(name, data_dir, **kwargs):
    """TFDS' builder of a name; of a prepared set one that reads what its folder says."""
    try:
        make = digits.Digits if name == "digits" else functools.partial(tfds.builder, name)
        builder = make(data_dir=data_dir, **kwargs)
    except Exception as error:  # TFDS answers in many ways that it does not know a name
        raise InputError(f"TFDS knows no data set {name!r}: {_line(error)}") from error
    if builder.is_prepared():
        # A builder made from code overlooks the formats that were added later (TFDS 4.9.10).
        return tfds.builder_from_directory(builder.data_dir)
    return builder


def _is_there(builder):
    """Whether the set lies in its folder as ArrayRecord."""
    return builder.is_prepared() and _ARRAY_RECORD in builder.info.available_file_formats()


def _convert(builder):
    """Writes the records of a set beside themselves as ArrayRecord, file by file.

    A conversion that was stopped goes on where it stood; the set is unchanged until all is there.
    TFDS' own converter needs Apache Beam for this.
    """
    info = builder.info
    source = file_adapters.ADAPTER_FOR_FORMAT[info.file_format]
    target = file_adapters.ADAPTER_FOR_FORMAT[_ARRAY_RECORD]
    suffix = _ARRAY_RECORD.file_suffix
    pairs = []
    for split in info.splits.values():
        renamed = split.filename_template.replace(filetype_suffix=suffix)
        pairs += zip(
            split.filepaths, sorted(renamed.sharded_filepaths(split.num_shards)), strict=True
        )
    total = sum(split.num_examples for split in info.splits.values())
    with tqdm.tqdm(total=total, unit=" images") as bar:
        for old, new in pairs:
            bar.set_description(old.name)
            if pathlib.Path(new).exists():
                continue

            def examples(old=old):
                for i, example in enumerate(source.make_tf_data(old)):
                    bar.update()
                    yield i, example.numpy()

            with py_utils.incomplete_file(new) as part:
                target.write_examples(part, examples())
    info.add_alternative_file_format(_ARRAY_RECORD)
    info.write_to_directory(builder.data_dir, all_metadata=False)
