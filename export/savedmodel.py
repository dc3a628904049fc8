"""A run -> a SavedModel that TF Serving can serve.

`python -m export.savedmodel --run_dir=DIR --output=models/NAME` writes models/NAME/1, then 2, …
"""

import dataclasses
import os
import pathlib
import shutil
import tempfile

from absl import logging

from deit_tf import flags
from deit_tf.config import InputError


def export(run_dir, output, which="last", fusion=None, **options):
    """Writes the next version of a served model, once it has proved itself.

    Args:
      run_dir: a run directory.
      output: the model's folder, whose versions are 1, 2, …
      which: "last" or "best" checkpoint.
      fusion: "logits" or "softmax"; None is the run's own.
      **options: fields of `served.Options`.

    Returns:
      The folder of the version, a path, and one line about how near its answers are.

    Raises:
      config.InputError: no such run, or a folder that cannot be written.
      verify.VerificationError: what was written does not answer as the run; nothing is left of it.
    """
    # What can be wrong is looked for before TensorFlow is imported, which takes seconds.
    from deit_tf import rundir

    rundir.check_deit(run_dir, which)
    folder = pathlib.Path(output).absolute()

    with rundir.writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
        # A server looks at folders whose names are numbers alone.
        part = pathlib.Path(tempfile.mkdtemp(dir=folder, prefix="writing."))
        part.chmod(0o755)
    try:
        from deit_tf import inference
        from export import artefact, served, verify

        wanted = served.Options(**options)
        found = inference.open_run(run_dir, which, fusion)
        with rundir.writing(folder):
            # TensorFlow's own words for a full disk would be a page.
            rundir.reserve(part, 2 * rundir.weights_path(run_dir, which).stat().st_size)
            manifest = served.write(found, part, wanted)
            manifest = dataclasses.replace(manifest, digest=artefact.digest_of(part))
            (part / served.MANIFEST).write_text(manifest.to_json(), "utf-8")
        line = verify.verify(part, found, run_dir)
        with rundir.writing(folder):
            return _publish(part, folder), line
    finally:
        shutil.rmtree(part, ignore_errors=True)


def _publish(part, folder):
    """Gives a version its number, the next one; a server that polls sees it whole."""
    while True:
        taken = [int(each.name) for each in folder.iterdir() if each.name.isdecimal()]
        final = folder / str(max(taken, default=0) + 1)
        try:
            os.rename(part, final)
        except OSError:
            if not final.exists():  # else another export was faster: the number after that
                raise
        else:
            return final


def main(argv):
    """Flags -> export -> where it lies."""
    del argv
    given = flags.FLAGS
    for name in ("run_dir", "output"):
        if not getattr(given, name):
            raise InputError(f"no {name}; give --run_dir=DIR and --output=models/NAME")
    options = ("top_k", "max_pixels", "max_batch_size", "batch_timeout_micros", "with_attention")
    path, line = export(
        given.run_dir,
        given.output,
        given.checkpoint,
        given.fusion,
        **{name: getattr(given, name) for name in options},
    )
    logging.info("%s: %s", path, line)
    print(path)


def run():
    """The command: its flags, then `main`."""
    flags.define_text("run_dir", None, "The run directory.")
    flags.define_text("output", None, "The model's folder; its versions are 1, 2, … in it.")
    flags.define_text("checkpoint", "last", "Which weights: last or best.")
    flags.define_text("fusion", None, "Heads together: logits or softmax; default: the run's.")
    flags.define_number("top_k", 5, "Classes that are named in an answer.")
    flags.define_number("max_pixels", 50_000_000, "A larger image is refused, undecoded.")
    flags.define_number("max_batch_size", 32, "Images that the network sees at once.")
    flags.define_number("batch_timeout_micros", 1000, "How long a request waits for others.", 0)
    flags.define_switch("with_attention", "Whether there is a signature with attention maps.")
    flags.run(main)


if __name__ == "__main__":
    run()
