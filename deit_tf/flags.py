"""absl flags derived from the fields of the configuration; read only here, for main().

A field's name, type, default, choices and help are written once, in `deit_tf.config`. The flags
of the network have no default of their own: unset means "as the model's row in the table".
"""

import dataclasses
import os
import pathlib
import sys
import traceback

from absl import app, flags

from deit_tf import config

FLAGS = flags.FLAGS
_SHIPPED = pathlib.Path(__file__).parent / "configs"
_FAMILIES = (config.DeiTConfig, config.RegNetYConfig)
_EVALUATED_WITH = (
    "dataset",
    "data_dir",
    "eval_split",
    "eval_fraction",
    "labels",
    "skip_bad_images",
    "batch_size",
    "crop_fraction",
)


class _NumbersParser(flags.ArgumentParser):
    """Three numbers with commas between, for mean and std."""

    def parse(self, argument):
        values = argument.split(",") if isinstance(argument, str) else argument
        try:
            return tuple(float(value) for value in values)
        except (TypeError, ValueError) as error:
            raise ValueError("give numbers with commas between, as 0.5,0.5,0.5") from error

    def flag_type(self):
        return "numbers"


class _SpanParser(flags.ArgumentParser):
    """A range of whole numbers, as 0:100; or its end alone."""

    def parse(self, argument):
        if isinstance(argument, range):
            return argument
        first, _, last = str(argument).rpartition(":")
        try:
            found = range(int(first or 0), int(last))
        except ValueError as error:
            raise ValueError("give numbers as 0:100, or 100 for all before it") from error
        if found.start < 0 or not found:
            raise ValueError("give the first, counted from 0, and the end after it, as 0:100")
        return found

    def flag_type(self):
        return "span"


_PARSERS = {
    range: _SpanParser,
    int: flags.IntegerParser,
    float: flags.FloatParser,
    str: flags.ArgumentParser,
    tuple: _NumbersParser,
}


def _define_field(field, default, flag_values=FLAGS, kind=None):
    """Defines the flag of one field, as one of the running command's own."""
    own = {"module_name": sys.argv[0], "flag_values": flag_values}
    help_text = field.metadata["help"]
    if field.type is bool:
        flags.DEFINE_boolean(field.name, default, help_text, **own)
    elif field.metadata["choices"]:
        flags.DEFINE_enum(field.name, default, field.metadata["choices"], help_text, **own)
    else:
        parser = _PARSERS[kind or field.type]()
        flags.DEFINE(parser, field.name, default, help_text, **own)


def define_config(flag_values=FLAGS, spans=()):
    """Defines --model, the flags of every network, and those of every section.

    Args:
      flag_values: where to; the command line's own by default.
      spans: numbers that are given as a range, as 0:100; the configuration has its end.
    """
    define_network(flag_values)
    for section in config.SECTIONS.values():
        for field in dataclasses.fields(section):
            kind = range if field.name in spans else None
            default = range(field.default) if kind else field.default
            _define_field(field, default, flag_values, kind)


def define_network(flag_values=FLAGS):
    """Defines --model and the flags of every network.

    Args:
      flag_values: where to; the command line's own by default.
    """
    flags.DEFINE_string(
        "model",
        None,
        f"Which network: {', '.join(config.VARIANTS)}.",
        module_name=sys.argv[0],
        flag_values=flag_values,
    )
    for family in _FAMILIES:
        for field in dataclasses.fields(family):
            if field.name not in flag_values:
                _define_field(field, None, flag_values)


def given_network(flag_values=FLAGS):
    """The fields of a network that the command line names, by `define_network`."""
    names = sorted({field.name for family in _FAMILIES for field in dataclasses.fields(family)})
    given = {name: flag_values[name].value for name in names}
    return {name: value for name, value in given.items() if value is not None}


def config_from_flags(flag_values=FLAGS):
    """The configuration that the command line asks for.

    Args:
      flag_values: parsed flags that `define_config` defined.

    Returns:
      A `config.Config`.

    Raises:
      config.InputError: no model, or a value that is not allowed.
    """
    if flag_values.model is None:
        raise config.InputError(
            "no model: give --model=NAME or a --flagfile that does, as --flagfile=digits_teacher"
        )
    sections = {
        name: cls(**{f.name: _fact(flag_values[f.name].value) for f in dataclasses.fields(cls)})
        for name, cls in config.SECTIONS.items()
    }
    model = flag_values.model
    network = config.network(model, **given_network(flag_values))
    return config.Config(model, network, **sections)


def _fact(value):
    """What the configuration has of a flag's value."""
    return value.stop if isinstance(value, range) else value


def define_data(*names):
    """Defines flags of the data section that have no default of their own.

    Args:
      *names: which; none is all that a trained network can be evaluated with.
    """
    for field in dataclasses.fields(config.DataConfig):
        if field.name in (names or _EVALUATED_WITH):
            _define_field(field, None)


def given_data():
    """The fields of the data section that the command line names, by `define_data`."""
    fields = [field.name for field in dataclasses.fields(config.DataConfig)]
    given = {name: FLAGS[name].value for name in fields if name in FLAGS}
    return {name: value for name, value in given.items() if value is not None}


def define_text(name, default, help_text):
    """Defines a flag of the running command that is no part of the configuration."""
    flags.DEFINE_string(name, default, help_text, module_name=sys.argv[0])


def define_number(name, default, help_text, least=1):
    """Defines a flag of the running command that is a whole number, at least `least`."""
    flags.DEFINE_integer(name, default, help_text, lower_bound=least, module_name=sys.argv[0])


def define_switch(name, help_text):
    """Defines a flag of the running command that is on or off."""
    flags.DEFINE_boolean(name, False, help_text, module_name=sys.argv[0])


def run(main, words=(), files=False):
    """Runs `main(argv)` under absl; what a person can mend is one line on stderr and exit code 1.

    Args:
      main: a function of the arguments that are left after the flags.
      words: what the command can do, where it has to be told.
      files: whether names of files are taken beside the flags.
    """
    define_switch("debug", "Print the traceback of an error, too.")
    _introduce(main)
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")  # fewer of TensorFlow's greetings
    backend = os.environ.setdefault("KERAS_BACKEND", "tensorflow")

    def guarded(argv):
        try:
            if backend != "tensorflow":
                raise config.InputError(f"KERAS_BACKEND is {backend}; commands need tensorflow")
            if words and (len(argv) != 2 or argv[1] not in words):
                raise config.InputError(
                    f"{' '.join(argv[1:]) or 'nothing'!r} is not what this command does; say one of"
                    f" {', '.join(words)}"
                )
            if argv[1:] and not words and not files:
                raise config.InputError(
                    f"{argv[1]!r} is not a flag; flags start with --, as --run_dir=DIR"
                )
            return main(argv)
        except config.InputError as error:
            _leave(1, traceback.format_exc() if FLAGS.debug else f"error: {error}\n")
        except SystemExit as error:  # a run that was asked to stop, and has saved
            _leave(error.code if isinstance(error.code, int) else 1, "")
        except KeyboardInterrupt:
            text = "stopped\n"
            _leave(130, traceback.format_exc() if FLAGS.debug else text)
        except Exception:  # ours: the traceback is for whoever mends it
            _leave(1, traceback.format_exc())

    app.run(guarded, flags_parser=_parse)


def _introduce(main):
    """Has --help begin with what the command says of itself, by the name that it was started by.

    absl shows the docstring of `__main__`, which of an installed script is empty.
    """
    module, script = main.__module__, pathlib.Path(sys.argv[0])
    if module == "__main__":
        return
    text = sys.modules[module].__doc__ or ""
    sys.modules["__main__"].__doc__ = text.replace(f"python -m {module}", script.name)


def _leave(code, text):
    """Ends a command that failed.

    Not by taking Python down: a thread of tf.data that is about to call into Python then waits for
    ever, and the process with it.
    """
    sys.stdout.flush()
    sys.stderr.write(text)
    sys.stderr.flush()
    os._exit(code)


def _parse(argv):
    """Parses as absl does; what it refuses is one line, as every other error."""
    try:
        return FLAGS(_unfolded(argv))
    except SystemExit:  # help was asked for, and given: absl would say that it failed
        sys.exit(0)
    except flags.Error as error:
        message = " ".join(str(error).removeprefix("ERROR:: ").split())
        sys.exit(f"error: {message.removesuffix('.')}; --help lists the flags")


def _unfolded(argv, within=()):
    """Arguments with what a flagfile says in place of its name, as absl would have it.

    absl itself opens a flagfile, and one that is named in it, from the current folder alone.

    Args:
      argv: arguments, or lines of a flagfile.
      within: the flagfiles that these are from, paths.
    """
    found, rest = [], iter(argv)
    for argument in rest:
        name, _, value = argument.partition("=")
        if name not in ("--flagfile", "-flagfile"):
            found.append(argument)
            continue
        path = _flagfile(value if "=" in argument else next(rest, ""), within)
        if path in within:
            raise flags.Error(f"flagfile {path} names itself")
        found += _unfolded(_lines(path), (*within, path))
    return found


def _lines(path):
    """The flags of a flagfile; what begins with # or // is a comment."""
    try:
        lines = [line.strip() for line in path.read_text("utf-8").splitlines()]
    except (OSError, UnicodeError) as error:
        raise flags.Error(f"flagfile {path} cannot be read: {error}") from error
    return [line for line in lines if line and not line.startswith(("#", "//"))]


def _flagfile(name, within):
    """The path of a flagfile: one that is there, or one of ours, as digits_teacher.

    What one of ours names is ours, whatever lies in the current folder.
    """
    path = pathlib.Path(os.path.expanduser(name))
    ours = _SHIPPED / f"{path.name.removesuffix('.flags')}.flags"
    short = path.parent in (pathlib.Path(), pathlib.Path("deit_tf/configs"))
    known = short and os.path.isfile(ours)
    if known and within and within[-1].parent == _SHIPPED:
        return ours
    if os.path.exists(path) and not os.path.isdir(path):  # a pipe, too
        return path
    if known:
        return ours
    raise flags.Error(
        f"there is no flagfile {name!r}; give a file, or the name of one in {_SHIPPED}, as"
        " digits_teacher"
    )
