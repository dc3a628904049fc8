"""Makes a TFDS set ready for training, once: `python -m deit_tf.prepare --dataset=tfds:NAME`.

Downloads what is not there, and converts what lies there without random access, as TFRecord.
"""

from deit_tf import flags
from deit_tf.config import DataConfig, InputError


def prepare(config):
    """Downloads or converts a data set, or finds it done.

    Args:
      config: a `config.DataConfig`.

    Returns:
      What was done, a text.

    Raises:
      InputError: unknown data set, no network, no permission, or files that a person has to fetch.
    """
    kind, _, name = config.dataset.partition(":")
    if config.dataset != "digits" and not (kind == "tfds" and name):
        raise InputError(
            f"dataset is {config.dataset!r}; give tfds:NAME, as tfds:cifar10 (a folder needs no"
            " preparation)"
        )
    # TFDS takes seconds to import; --help and a wrong flag should not wait for it.
    from deit_tf import prepared

    return f"{name or kind} {prepared.prepare(name or kind, config.data_dir)}: {config.data_dir}"


def main(argv):
    """Flags -> preparation -> what was done."""
    del argv
    print(prepare(DataConfig(**flags.given_data())))


def run():
    """The command: its flags, then `main`."""
    flags.define_data("dataset", "data_dir")
    flags.run(main)


if __name__ == "__main__":
    run()
