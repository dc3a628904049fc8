"""Names of classes: ImageNet's are packaged, any others come from a file."""

import collections
import pathlib

from deit_tf.config import InputError

# WordNet id and lemmas of the 1000 classes of ILSVRC 2012, in their order; from timm (Apache-2.0).
# Of two classes named "crane" the bird and the machine are told apart.
_IMAGENET = pathlib.Path(__file__).parent / "imagenet_labels.txt"


def imagenet():
    """ImageNet's WordNet ids in the order of their numbers -> their words."""
    return dict(line.split("\t") for line in _IMAGENET.read_text().splitlines())


def listed(count, path=""):
    """The classes of a network that brings no data set, and the names that people read.

    Args:
      count: number of classes.
      path: a text file with one name a line, or with lines "CLASS<tab>name", in the order of the
        classes; "" for 1000 classes is ImageNet's.

    Returns:
      Two tuples of texts.

    Raises:
      InputError: no file for other classes than ImageNet's, or one that does not fit.
    """
    if not path:
        words = imagenet()
        if count != len(words):
            raise InputError(
                f"the network has {count} classes; name them by --labels=FILE, one a line in their"
                " order"
            )
        return tuple(words), tuple(words.values())
    lines = _lines(path)
    if lines and all("\t" in line for line in lines):
        classes = tuple(line.split("\t", 1)[0] for line in lines)
    else:
        classes = tuple(line.strip() for line in lines)
    if len(classes) != count:
        raise InputError(
            f"labels: {path} holds {len(classes)} names, but the network has {count} classes"
        )
    return classes, names(classes, path)


def names(classes, path=""):
    """The names that people read, for the classes as a data set calls them.

    Args:
      classes: the data set's own names, in the order of their numbers.
      path: a text file with one name a line in that order, or with lines "CLASS<tab>name" in any
        order; "" leaves the classes' names alone, but for ImageNet's 1000 WordNet ids, which are
        replaced by their words.

    Returns:
      A tuple of texts.

    Raises:
      InputError: the file cannot be read, or does not name every class.
    """
    if path:
        return _from_file(classes, path)
    words = imagenet()
    if list(classes) == list(words):
        return tuple(words.values())
    return tuple(classes)


def _from_file(classes, path):
    """The names that a file gives to the classes."""
    named = _names(classes, path, _lines(path))
    twice = [name for name, count in collections.Counter(named).items() if count > 1]
    if twice or not all(named):
        raise InputError(
            f"labels: {path} gives {f'{twice[0]!r} to two classes' if twice else 'an empty name'};"
            " every class needs a name of its own"
        )
    return named


def _lines(path):
    """The lines of a file that are not empty."""
    try:
        lines = pathlib.Path(path).read_text("utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"labels: {path} cannot be read: {error}") from error
    return [line for line in lines if line.strip()]


def _names(classes, path, lines):
    """The names that the lines of a file give to the classes."""
    if lines and all("\t" in line for line in lines):
        named = dict(line.split("\t", 1) for line in lines)
        missing = [name for name in classes if name not in named]
        if missing:
            raise InputError(f"labels: {path} does not name the class {missing[0]!r}")
        return tuple(named[name].strip() for name in classes)
    if len(lines) != len(classes):
        raise InputError(
            f"labels: {path} holds {len(lines)} names, but there are {len(classes)} classes; give"
            " one line a class, in the order of the classes, or lines CLASS<tab>name"
        )
    return tuple(line.strip() for line in lines)
