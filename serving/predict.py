"""Names what is in images: `python -m serving.predict --backend=onnx --model=deit.onnx IMAGE|DIR`.

Answers a line an image on stdout, or with --json an object a line. Exit code 1 where an image or
the model is bad, 2 where the command line is.
"""

import argparse
import json
import pathlib
import sys
import traceback

import tqdm

from deit_tf.manifest import InputError
from serving import image

_BACKENDS = ("onnx", "grpc", "rest")


class _Parser(argparse.ArgumentParser):
    """Says what is wrong in one line."""

    def error(self, message):
        self.exit(2, f"error: {message}; --help lists what there is\n")


def _parser(prog):
    text = __doc__.splitlines()[0].replace("python -m serving.predict", prog)
    parser = _Parser(prog=prog, description=text)
    add = parser.add_argument
    add("images", nargs="+", metavar="IMAGE|DIR", help="files, or folders to any depth")
    add("--backend", choices=_BACKENDS, default="onnx", help="default: %(default)s")
    add("--model", help="onnx: the file that export.onnxmodel wrote")
    add("--device", default="auto", help="onnx: auto, cuda, tensorrt, cpu or openvino")
    add("--target", help="grpc, rest: host:port of a TF Serving")
    add("--name", default="deit", help="grpc, rest: the model's name; default: %(default)s")
    add("--version", type=int, help="grpc, rest: the model's version; default: the newest")
    add("--label", help="grpc, rest: a version's label instead, as stable")
    add("--tls", nargs="?", const=True, default=False, metavar="CA.pem", help="grpc: encrypted")
    add("--timeout", type=float, default=30.0, help="grpc, rest: seconds for a request")
    add("--top_k", type=int, default=5, help="classes that are named; default: %(default)s")
    add("--batch_size", type=int, default=32, help="images at once; default: %(default)s")
    add("--max_pixels", type=int, default=image.MAX_PIXELS, help="onnx: a larger one is refused")
    add("--json", action="store_true", help="an object a line")
    add("--debug", action="store_true", help="print the traceback of an error, too")
    return parser


def _checked(parser, given):
    """Raises SystemExit where the command line is wrong."""
    wants = "model" if given.backend == "onnx" else "target"
    other = "target" if wants == "model" else "model"
    if not getattr(given, wants):
        parser.error(f"--backend={given.backend} needs --{wants}")
    if getattr(given, other):
        parser.error(f"--{other} is not for --backend={given.backend}, which needs --{wants}")
    if given.tls and given.backend != "grpc":
        parser.error("--tls is for --backend=grpc; for rest write --target=https://…")
    for name in ("top_k", "batch_size", "max_pixels"):
        if getattr(given, name) < 1:
            parser.error(f"--{name} is {getattr(given, name)}; give at least 1")
    if given.timeout <= 0:
        parser.error(f"--timeout is {given.timeout}; give more than 0 seconds")


def _open(given):
    """Something that predicts."""
    if given.backend == "onnx":
        from serving.onnx_session import OnnxClassifier

        sizes = {"batch_size": given.batch_size, "max_pixels": given.max_pixels}
        return OnnxClassifier(given.model, given.device, **sizes)
    from serving import client

    names = ("name", "version", "label", "timeout", "batch_size")
    facts = {name: getattr(given, name) for name in names}
    if given.backend == "rest":
        return client.RestClient(given.target, **facts)
    return client.GrpcClient(given.target, given.tls, **facts)


def found(places):
    """The images that are meant, paths.

    Args:
      places: files, which are taken whatever they are called, and folders to any depth.

    Raises:
      InputError: a folder without images.
    """
    files = []
    for place in map(pathlib.Path, places):
        if not place.is_dir():
            files.append(place)
            continue
        inside = [
            one
            for one in place.rglob("*")
            if one.suffix.lower() in image.SUFFIXES and one.is_file()
        ]
        if not inside:
            raise InputError(f"{place} has no images in it; they end in {_listed(image.SUFFIXES)}")
        files += sorted(inside)
    return files


def _listed(words):
    return ", ".join(words)


def _answers(model, files, given):
    """Pairs of a path and its `prediction.Prediction`, batch by batch."""
    for start in range(0, len(files), given.batch_size):
        batch = files[start : start + given.batch_size]
        yield from zip(batch, model.predict(batch, given.top_k), strict=True)


def as_json(path, answer):
    """A line of JSON."""
    told = {"image": str(path)}
    if answer.error:
        return json.dumps({**told, "error": answer.error}, ensure_ascii=False)
    columns = (answer.class_ids, answer.class_names, answer.scores)
    rows = zip(*columns, strict=True)
    told["classes"] = [{"id": i, "name": name, "score": score} for i, name, score in rows]
    return json.dumps(told, ensure_ascii=False)


def as_row(path, answer, width):
    """A row of the table: the path, `width` wide, and the classes with their probabilities."""
    pairs = zip(answer.class_names, answer.scores, strict=True)
    cells = [answer.error and f"error: {answer.error}", *(f"{n} {s:.1%}" for n, s in pairs)]
    return "  ".join([str(path).ljust(width), *filter(None, cells)])


def predict(given):
    """Prints what is in images.

    Args:
      given: what the command line says.

    Returns:
      How many images are bad.

    Raises:
      InputError: there are no images, or no model.
    """
    files = found(given.images)
    width = max(len(str(path)) for path in files)
    model, bad = _open(given), 0
    with tqdm.tqdm(total=len(files), unit=" images", disable=None, file=sys.stderr) as bar:
        for path, answer in _answers(model, files, given):
            line = as_json(path, answer) if given.json else as_row(path, answer, width)
            bar.write(line, file=sys.stdout)
            bar.update()
            bad += bool(answer.error)
    return bad


def main(argv=None, prog="python -m serving.predict"):
    """Command line -> predictions -> exit code."""
    parser = _parser(prog)
    given = parser.parse_args(argv)
    _checked(parser, given)
    sys.stdout.reconfigure(errors="backslashreplace")  # files may be called anything
    try:
        return 1 if predict(given) else 0
    except InputError as error:
        sys.stderr.write(traceback.format_exc() if given.debug else f"error: {error}\n")
        return 1
    except BrokenPipeError:  # whoever reads has seen enough
        sys.stderr.close()
        return 1
    except KeyboardInterrupt:
        return 130


def run():
    """The installed command, `deit-predict`; its exit code."""
    return main(prog="deit-predict")


if __name__ == "__main__":
    sys.exit(main())
