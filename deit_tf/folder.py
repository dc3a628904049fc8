"""A folder of photographs as a data set: one folder a class, found fast and kept small."""

import concurrent.futures
import hashlib
import os

import numpy as np

from deit_tf.config import InputError

# BMP is left out on purpose: TensorFlow decodes those with a palette wrongly, and silently.
SUFFIXES = (".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".webp", ".gif")
_SUFFIXES = tuple(suffix.encode() for suffix in SUFFIXES)
_EVAL_FOLDERS = ("val", "validation", "test")
_HINT = (
    "give --train_split and --eval_split, or hold a part of the images out by --eval_fraction=0.1"
)
_READERS = 8


class Photographs:
    """The images of some class folders, read by index.

    The paths are kept as arrays of bytes, so that a million of them take some 40 MB.

    Args:
      root: the folder that holds the class folders.
      files: {class: bytes [n], paths within its folder}, in the order of the classes' numbers.
    """

    def __init__(self, root, files):
        self._root, self._files = os.fspath(root), files
        self._classes = list(files)
        self._first = np.cumsum([0, *map(len, files.values())])  # index of each class' first image

    def __len__(self):
        return int(self._first[-1])

    def __getitem__(self, index):
        with open(self.name_of(index), "rb") as file:
            return {"image": file.read(), "label": self._label(index)}

    def __getitems__(self, indices):
        """Reads some images; in parallel, because files may lie on the other side of a network."""
        with concurrent.futures.ThreadPoolExecutor(_READERS) as pool:
            return list(pool.map(self.__getitem__, indices))

    def _label(self, index):
        return int(np.searchsorted(self._first, index, side="right")) - 1

    def name_of(self, index):
        """The path of an image."""
        label = self._label(index)
        name = self._classes[label]
        file = self._files[name][index - self._first[label]]
        return os.path.join(self._root, name, os.fsdecode(bytes(file)))

    def sha256(self):
        """Hexadecimal SHA-256 over classes and names: which images these are."""
        found = hashlib.sha256()
        for name, files in self._files.items():
            found.update(b"\0".join([b"", os.fsencode(name), *files.tolist()]))
        return found.hexdigest()


def open_folder(root, train_split, eval_split, eval_fraction, training=True):
    """Finds the images of a folder; none of them is opened.

    Args:
      root: holds train_split/CLASS/… and eval_split/CLASS/…, or CLASS/… alone.
      train_split: name of the training folder.
      eval_split: name of the evaluation folder; "" is the first there is of val, validation, test.
      eval_fraction: where above 0, this part of every class' training images is held out for
        evaluation: a fixed choice that depends on their names alone.
      training: False looks for the evaluation images alone.

    Returns:
      (training images or None, evaluation images, names of the classes in sorted order, how many
      files were left out because of their suffix).

    Raises:
      InputError: the folder does not hold what it should; the message says what.
    """
    root = os.path.expanduser(root)
    if not os.path.isdir(root):
        raise InputError(f"folder:{root} is no folder; give the path of a folder of images")
    train_root = os.path.join(root, train_split)
    if eval_fraction:
        if train_split == "train" and not os.path.isdir(train_root):
            train_root = root
        files, skipped = _find(train_root)
        held = {name: _held_out(name, found, eval_fraction) for name, found in files.items()}
        return (
            Photographs(train_root, {name: found[~held[name]] for name, found in files.items()}),
            Photographs(train_root, {name: found[held[name]] for name, found in files.items()}),
            tuple(files),
            skipped,
        )
    eval_root = _eval_root(root, eval_split)
    eval_files, skipped = _find(eval_root)
    test = Photographs(eval_root, eval_files)
    if not training:
        return None, test, tuple(eval_files), skipped
    if not os.path.isdir(train_root):
        raise InputError(f"there is no folder {train_root}; {_HINT}")
    train_files, also_skipped = _find(train_root)
    _check_same_classes(train_root, train_files, eval_root, eval_files)
    _check_same_classes(eval_root, eval_files, train_root, train_files)
    return Photographs(train_root, train_files), test, tuple(train_files), skipped + also_skipped


def images_at(place):
    """What a person means who names an image, or a folder.

    Args:
      place: a path.

    Returns:
      A list of paths: the file, whatever it is called, or the images below the folder, sorted.

    Raises:
      InputError: nothing is there, or no image is in the folder.
    """
    if not os.path.exists(place):
        raise InputError(f"there is no image {place}; give files, or folders with images in them")
    if not os.path.isdir(place):
        return [os.fspath(place)]
    found, _ = _images(place)
    if not len(found):
        raise InputError(f"{place} holds no images ({', '.join(SUFFIXES)})")
    return [os.path.join(place, os.fsdecode(bytes(name))) for name in found]


def _check_same_classes(one, files, other, other_files):
    """Raises InputError where the second folder lacks classes of the first."""
    missing = [name for name in files if name not in other_files]
    if missing:
        more = f" and {len(missing) - 3} more" if len(missing) > 3 else ""
        raise InputError(
            f"{other} lacks the class {', '.join(missing[:3])}{more}, which {one} has; both must"
            " hold the same classes"
        )


def _eval_root(root, eval_split):
    """The folder of the evaluation images."""
    names = [eval_split] if eval_split else _EVAL_FOLDERS
    for name in names:
        if os.path.isdir(path := os.path.join(root, name)):
            return path
    raise InputError(f"there is no folder {os.path.join(root, names[0])}; {_HINT}")


def _find(root):
    """{class: bytes [n], paths within its folder} and the number of files that are no images."""
    names = sorted(
        entry.name for entry in _scan(root) if _is_folder(entry) and not entry.name.startswith(".")
    )
    if not names:
        raise InputError(f"{root} holds no class folders; put the images of each class in a folder")
    files, skipped = {}, 0
    for name in names:
        files[name], others = _images(os.path.join(root, name))
        skipped += others
        if not len(files[name]):
            raise InputError(
                f"{os.path.join(root, name)} holds no images ({', '.join(SUFFIXES)}); fill or"
                " remove it"
            )
    return files, skipped


def _scan(folder):
    """The entries of a folder."""
    try:
        with os.scandir(folder) as entries:
            return list(entries)
    except OSError as error:
        raise InputError(f"{os.fsdecode(folder)} cannot be read: {error.strerror}") from error


def _is_folder(entry):
    """Whether an entry is a folder, or a link to one."""
    try:
        return entry.is_dir()
    except OSError as error:  # as of a link that leads to itself
        path = os.fsdecode(entry.path)
        raise InputError(f"{path} cannot be read: {error.strerror}") from error


def _images(folder):
    """Sorted paths of the images below a folder, bytes [n], and the number of other files."""
    found, others, left = [], 0, [b""]
    while left:
        below = left.pop()
        for entry in _scan(os.path.join(os.fsencode(folder), below)):
            name = entry.name
            if name.startswith(b"."):
                continue
            if _is_folder(entry):
                left.append(os.path.join(below, name))
            elif name.lower().endswith(_SUFFIXES):
                found.append(os.path.join(below, name) if below else name)
            else:
                others += 1
    return np.array(sorted(found), np.bytes_), others


def _held_out(name, files, fraction):
    """Which of a class' images go to evaluation, bool [n]; a function of their names alone."""
    count = max(1, round(fraction * len(files)))
    if count >= len(files):
        raise InputError(
            f"class {name} has {len(files)} image(s); with eval_fraction {fraction} none is left"
            " to train on"
        )
    digests = [hashlib.sha256(file).digest() for file in files.tolist()]
    held = np.zeros(len(files), bool)
    held[sorted(range(len(files)), key=digests.__getitem__)[:count]] = True
    return held
