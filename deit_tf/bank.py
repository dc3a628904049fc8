"""The files of a label bank: a teacher's answers to every view of every epoch, written once.

A view is a pure function of (seed, epoch, position), so what the teacher says of it is one, too.

bank.json              what the answers depend on
epoch_00007.npy        an epoch's answers, a row a position; behind the array its SHA-256, 32 bytes
epoch_00008.*.part     what a process has written so far of an epoch that is not whole: the same
                       rows, with each class one larger, so that nothing written means not known
"""

import dataclasses
import errno
import functools
import hashlib
import importlib.metadata
import io
import json
import os
import pathlib
import socket

import numpy as np
from absl import logging

from deit_tf import draws, rundir, teacher_facts
from deit_tf.config import InputError

_FACTS = "bank.json"
_DIGEST_BYTES = hashlib.sha256().digest_size
_NEEDED = ("positions", "num_classes", "bank_topk")
# What draws numbers, and what decodes and changes pixels.
_PACKAGES = ("numpy", "scipy", "tensorflow", "keras-cv")
_DATA_FACTS = (
    "dataset",
    "classes_sha256",
    "train_images",
    "train_files_sha256",
    "records_sha256",
    "split_sha256",
)


def fingerprint(config, data, steps, precision, device):
    """Everything that a teacher's answers depend on, and nothing else: {name: JSON value}.

    Args:
      config: a `config.Config`.
      data: its `source.Source`.
      steps: of an epoch.
      precision: what `devices.set_precision` answered.
      device: what `devices.kind` answered.
    """
    distill, network = config.distill, config.network
    augment = dataclasses.asdict(config.augment)
    del augment["label_smoothing"]  # changes labels, and no pixel
    found = {
        **{name: data.facts[name] for name in _DATA_FACTS if name in data.facts},
        "train_split": config.data.train_split,
        "skip_bad_images": config.data.skip_bad_images,
        "positions": steps * config.data.batch_size,
        "seed": config.run.seed,
        "draws": draws.LAWS,
        **augment,
        "image_size": network.image_size,
        "mean": network.mean,  # what is left free or erased is filled with it
        "std": network.std,
        "num_classes": network.num_classes,
        "bank_topk": distill.bank_topk,
        **teacher_facts.facts(distill, data.classes),
        **teacher_facts.network(distill),
        "teacher_mean": distill.teacher_mean,
        "teacher_std": distill.teacher_std,
        "teacher_image_size": distill.teacher_image_size,
        "precision": precision,
        "device": device,
        "versions": {name: importlib.metadata.version(name) for name in _PACKAGES},
    }
    return json.loads(json.dumps(found))


def open_bank(config, data, steps, precision, device):
    """The label bank of a run, or None where none is asked for; arguments: see `fingerprint`.

    Raises:
      InputError: its folder holds the labels of something else.
    """
    if not config.distill.label_bank:
        return None
    return Bank(config.distill.label_bank, fingerprint(config, data, steps, precision, device))


def read_facts(folder):
    """What bank.json says, or None where there is no bank yet.

    Raises:
      InputError: the folder holds something else, or the file is damaged.
    """
    path = pathlib.Path(folder)
    try:
        found = json.loads((path / _FACTS).read_text("utf-8"))
        return {**found, **{name: int(found[name]) for name in _NEEDED}}
    except FileNotFoundError as error:
        others = path.iterdir() if path.is_dir() else ()
        if any(not each.name.startswith(_FACTS) for each in others):
            raise InputError(f"{folder} is no label bank: it has no {_FACTS}") from error
        return None
    except (ValueError, KeyError, TypeError, OSError) as error:
        raise InputError(f"{path / _FACTS} cannot be read: {error}") from error


def _check_same(folder, stored, facts):
    """Raises InputError where a bank's answers are not those that are wanted."""
    names = dict.fromkeys([*stored, *facts])
    found = [
        f"{name}: {stored.get(name)} -> {facts.get(name)}"
        for name in names
        if stored.get(name) != facts.get(name)
    ]
    if found:
        raise InputError(
            f"{folder} holds the labels of something else ({'; '.join(found)}); give another"
            " --label_bank, or the flags it was made with"
        )


class Bank:
    """A label bank, read and written.

    Args:
      folder: where it is, or will be.
      facts: what `fingerprint` answered; None is what the bank says itself.

    Attributes:
      complete: whether it is relied on that nothing is missing, so that `read` fails where it is.

    Raises:
      InputError: the folder holds another bank, or something else, or there is none.
    """

    def __init__(self, folder, facts=None):
        self.path, stored = pathlib.Path(folder), read_facts(folder)
        if stored is None and facts is None:
            raise InputError(f"there is no label bank {folder}; fill one, or train with it")
        self.facts = facts or stored
        _check_same(folder, stored or self.facts, self.facts)
        k, classes = max(self.facts["bank_topk"], 1), self.facts["num_classes"]
        # In a part each class is one larger.
        whole = np.uint16 if classes <= np.iinfo(np.uint16).max else np.uint32
        # In this order a row that is written in part knows no last class.
        fields = [("probabilities", np.float16, (k,))] * bool(self.facts["bank_topk"])
        fields += [("classes", whole, (k,))]
        self.row, self.positions = np.dtype(fields), self.facts["positions"]
        self._answers = functools.lru_cache(maxsize=2)(self.answers)
        self._heard, self._parts, self.complete = [], {}, False

    def begin(self):
        """Makes the folder and its bank.json, unless they are there."""
        with rundir.writing(self.path):
            if read_facts(self.path) is None:
                self.path.mkdir(parents=True, exist_ok=True)
                part = self.path / f"{_FACTS}.{_writer()}.part"  # others may begin at the same time
                part.write_text(json.dumps(self.facts, indent=1) + "\n")
                os.replace(part, self.path / _FACTS)
        _check_same(self.path, read_facts(self.path), self.facts)

    def epochs(self):
        """Epochs that have a file, in order; it may be damaged."""
        files = self.path.glob("epoch_?????.npy")
        return sorted(int(path.stem.removeprefix("epoch_")) for path in files)

    def begun(self):
        """Epochs of which something is known and no file is there, in order."""
        names = {path.name.split(".")[0] for path in self.path.glob("epoch_*.part")}
        return sorted({int(name.removeprefix("epoch_")) for name in names} - set(self.epochs()))

    def check(self, epoch):
        """Raises InputError where an epoch that is relied on is not whole."""
        if self.complete and self.answers(epoch) is None:
            raise InputError(
                f"epoch {epoch} of {self.path} was there, and is gone or damaged; start again to"
                " have the teacher asked"
            )

    def missing(self, epochs):
        """Those of some epochs that have no whole file; reads all of every file."""
        return [epoch for epoch in epochs if self.answers(epoch) is None]

    def answers(self, epoch):
        """An epoch's answers, mapped into memory: a structured array [positions], or None.

        A file that is damaged is none, and a warning says so.
        """
        path = self.path / f"epoch_{epoch:05d}.npy"
        if not path.exists():
            return None
        try:
            _check_digest(path)
            found = np.load(path, mmap_mode="r")
            if found.dtype != self.row or found.shape != (self.positions,):
                raise ValueError("it holds other rows")
        except (ValueError, OSError) as error:
            logging.warning("%s is damaged, and as if it were not there: %s", path, error)
            return None
        return found

    def read(self, epoch, positions):
        """The teacher's answers at some positions of an epoch.

        Args:
          epoch: counted from 0.
          positions: a `range` of step 1.

        Returns:
          {"teacher_classes": int32 [B, k]} and, of distributions, "teacher_probabilities": float16
          [B, k]; classes are -1 where the epoch is not whole.

        Raises:
          InputError: it is not, and is relied on.
        """
        answers = self._answers(epoch)
        if answers is None:
            self.check(epoch)
            rows, known = np.zeros(len(positions), self.row), False
        else:
            rows, known = np.array(answers[positions.start : positions.stop]), True
        classes = rows["classes"].astype(np.int32)
        found = {"teacher_classes": classes if known else classes - 1}
        if "probabilities" in self.row.names:
            found["teacher_probabilities"] = np.ascontiguousarray(rows["probabilities"])
        return found

    def hear(self, first, classes, probabilities=None):
        """Takes some answers; `write` writes them.

        Args:
          first: views of the run before the first of these; the others follow.
          classes: int [B, k].
          probabilities: float16 [B, k], of distributions.
        """
        rows = np.zeros(len(classes), self.row)
        rows["classes"] = classes + 1
        if probabilities is not None:
            rows["probabilities"] = probabilities
        self._heard.append((*divmod(int(first), self.positions), rows))

    def write(self):
        """Writes what was heard to this process' own part of each epoch.

        Raises:
          InputError: the bank can no longer be written.
        """
        heard, self._heard = self._heard, []
        with rundir.writing(self.path):
            for epoch, first, rows in heard:
                written = os.pwrite(self._part(epoch), rows.tobytes(), first * rows.itemsize)
                if written < rows.nbytes:
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def flush(self):
        """Waits until all that was written is on the disk."""
        self.write()
        with rundir.writing(self.path):
            for handle in self._parts.values():
                os.fsync(handle)

    def _part(self, epoch):
        """Handle of this process' own part of an epoch."""
        if epoch not in self._parts:
            name = f"epoch_{epoch:05d}.{_writer()}.part"
            self._parts[epoch] = os.open(self.path / name, os.O_RDWR | os.O_CREAT, 0o666)
        return self._parts[epoch]

    def _parts_of(self, epoch):
        """Files of all processes that wrote of an epoch."""
        return sorted(self.path.glob(f"epoch_{epoch:05d}.*.part"))

    def known(self, epoch):
        """What all parts of an epoch know together: rows as in a part, [positions]."""
        rows = np.zeros(self.positions, self.row)
        for path in self._parts_of(epoch):
            found = path.read_bytes()[: rows.nbytes]
            found = np.frombuffer(found[: len(found) // rows.itemsize * rows.itemsize], self.row)
            told = (found["classes"] > 0).all(axis=-1)
            rows[: len(found)][told] = found[told]
        return rows

    def unknown(self, epoch):
        """Boolean [positions]: of which positions of an epoch no part knows the answer."""
        return self.known(epoch)["classes"][:, 0] == 0

    def join(self, epoch):
        """Makes an epoch's file of its parts, where they know all of it, and removes them.

        Args:
          epoch: counted from 0; all processes have flushed what they know of it.

        Returns:
          How many positions no part knows; 0 where the file is there now.

        Raises:
          InputError: the bank can no longer be written.
        """
        with rundir.writing(self.path):
            if self.answers(epoch) is None:
                rows = self.known(epoch)
                unknown = int(np.sum(rows["classes"][:, 0] == 0))
                if unknown:
                    return unknown
                rows["classes"] -= 1
                self._publish(epoch, rows)
            for path in self._parts_of(epoch):
                path.unlink(missing_ok=True)
        return 0

    def leave(self, epoch):
        """Lets go of this process' part of an epoch."""
        if epoch in self._parts:
            os.close(self._parts.pop(epoch))

    def _publish(self, epoch, rows):
        """Writes an epoch's file whole or not at all."""
        array = io.BytesIO()
        np.save(array, rows)
        content = array.getvalue()
        final = self.path / f"epoch_{epoch:05d}.npy"
        part = final.with_name(f"{final.name}.{_writer()}")
        with open(part, "wb") as file:
            file.write(content + hashlib.sha256(content).digest())
            file.flush()
            os.fsync(file.fileno())
        os.replace(part, final)


def _check_digest(path):
    """Raises ValueError where a file does not end in the SHA-256 of what is before."""
    content = memoryview(path.read_bytes())
    if hashlib.sha256(content[:-_DIGEST_BYTES]).digest() != content[-_DIGEST_BYTES:]:
        raise ValueError("it does not fit its checksum")


def _writer():
    """Whose a file is: no two processes have the same."""
    return f"{socket.gethostname()}_{os.getpid()}"
