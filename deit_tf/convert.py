"""Weights of PyTorch -> a run directory.

`python -m deit_tf.convert --weights=FILE --model=NAME --run_dir=DIR`.
"""

import os
import pathlib
import shutil
import tempfile

from absl import logging

from deit_tf import flags
from deit_tf.config import Config, DataConfig, InputError

_IMAGENET = {"dataset": "tfds:imagenet2012"}


def convert(source, run_dir, model=None, data=None, labels="", **changes):
    """Writes a run directory with the weights of a PyTorch checkpoint.

    Args:
      source: a .safetensors or PyTorch file, or the name of published weights, a key of
        `published.FILES`.
      run_dir: the directory to make.
      model: a name from `config.VARIANTS`; None is that of the published weights, or what the
        file's tensors show.
      data: fields of `config.DataConfig` that say what `evaluate` measures on; default: ImageNet.
      labels: a text file that names the classes in their order, a name a line or
        "CLASS<tab>name"; "" for 1000 classes is ImageNet's.
      **changes: fields of the network's configuration that differ from the model's.

    Returns:
      One line about the network.

    Raises:
      InputError: something that was given does not fit; nothing has been written.
    """
    # What can be wrong is looked for before TensorFlow is imported, which takes seconds.
    from deit_tf import labels as named
    from deit_tf import published, rundir, torch_weights

    folder = pathlib.Path(run_dir).absolute()
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise InputError(f"{folder} holds something already; give another --run_dir, or remove it")
    if source in published.FILES and not os.path.isfile(source):
        torch_weights.check_torch(published.FILES[source])
        model = model or source
        source = published.fetch(source)
    values = torch_weights.read(source)
    name, facts = torch_weights.network_of(values, source, model, **changes)
    classes, readable = named.listed(facts.num_classes, labels)
    config = Config(name, facts, data=DataConfig(**{**_IMAGENET, **(data or {})}))

    from deit_tf import checkpoint

    network = checkpoint.from_torch(values, facts, source)
    part = None
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        part = pathlib.Path(tempfile.mkdtemp(dir=folder.parent, prefix=f"{folder.name}."))
        part.chmod(0o755)
        origin = {"weights": pathlib.Path(source).name, "weights_sha256": rundir.digest(source)}
        rundir.begin(part, config, origin, classes, readable)
        network.save_weights(part / rundir.WEIGHTS)
        (part / "checkpoints").rmdir()
        os.replace(part, folder)
    except OSError as error:
        raise InputError(f"{folder} cannot be written: {error}") from error
    finally:
        if part:
            shutil.rmtree(part, ignore_errors=True)
    return f"{name}: {checkpoint.describe(network)}, {facts.num_classes} classes"


def main(argv):
    """Flags -> conversion -> one line."""
    del argv
    given = flags.FLAGS
    if not given.weights:
        raise InputError("no weights; give --weights=FILE, or the name of published ones")
    if not given.run_dir:
        raise InputError("no run directory; give --run_dir=DIR")
    data = flags.given_data()
    labels = data.pop("labels", "")
    network = flags.given_network()
    line = convert(given.weights, given.run_dir, given.model, data, labels, **network)
    logging.info("%s", line)
    print(given.run_dir)


def run():
    """The command: its flags, then `main`."""
    flags.define_text("weights", None, "A .safetensors or PyTorch file, or published weights.")
    flags.define_text("run_dir", None, "The run directory to make.")
    flags.define_network()
    flags.define_data()
    flags.run(main)


if __name__ == "__main__":
    run()
