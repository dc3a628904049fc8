"""A page on which one drops an image and sees what it is taken for, and where the tokens look.

`python -m serving.demo --model=deit.onnx`, or `--target=127.0.0.1:8500` of a TF Serving. It needs
Gradio: `pip install -r requirements-demo.txt`.
"""

import argparse
import importlib.util
import os
import pathlib
import sys

from deit_tf import manifest as manifests
from deit_tf.manifest import InputError
from serving import image, page, prediction

_TOP_K = 5
_FORGOTTEN = (600, 3600)  # seconds: how often uploads are looked through, and how old they get
_NO_MAPS = "To see where the tokens look, export it --with_attention."
_NO_MANIFEST = (
    "To see where the tokens look, give --manifest=models/deit/1/assets.extra/manifest.json."
)


class Local:
    """A model of this machine.

    Args:
      path: an ONNX file.
      device: see `onnx_session.OnnxClassifier`.

    Attributes:
      about: one line about it.
    """

    def __init__(self, path, device="auto"):
        from serving import onnx_session

        self._classifier = onnx_session.OnnxClassifier(path, device)
        self._manifest = self._classifier.manifest
        self.about = f"{_about(self._manifest)}; ONNX Runtime, {self._classifier.device}"

    def answer(self, path):
        """What is known of an image.

        Args:
          path: the image's file.

        Returns:
          A `page.Answer`.

        Raises:
          InputError: it is no image.
        """
        seen = image.view(path, self._manifest)
        answers = self._classifier.run(seen[None])
        named = prediction.likeliest(answers["probabilities"], self._manifest.labels, _TOP_K)
        maps = {
            token: answers[f"attention_{token}"][0]
            for token in page.CAPTIONS
            if f"attention_{token}" in answers
        }
        return page.Answer(named[0], seen, maps, _NO_MAPS)


class Remote:
    """A model in TF Serving.

    Args:
      target: host:port for gRPC; with http:// or https:// before it for REST.
      label: of the version, or None.
      manifest: the file that lies with the SavedModel, or None: a server does not tell which part
        of an image its network sees.

    Attributes:
      about: one line about it.
      client: a `server.Server`.

    Raises:
      InputError: the server does not answer, or there is no such manifest.
    """

    def __init__(self, target, label=None, manifest=None):
        from serving import client

        kind = client.RestClient if "//" in target else client.GrpcClient
        self.client = kind(target, label=label)
        self._signatures = self.client.signatures()
        self._manifest = manifest and _read(manifest)
        self.about = f"TF Serving, {target}"
        if self._manifest:
            self.about = f"{_about(self._manifest)}; {self.about}"

    def answer(self, path):
        """See `Local.answer`."""
        content = image.content(path)
        (named,) = self.client.predict([content], _TOP_K)
        if named.error or not self._manifest:
            return page.Answer(named, note=_NO_MANIFEST)
        seen, maps = image.view(content, self._manifest), {}
        if "attention" in self._signatures:
            answers = self.client.call("attention", [content])
            maps = {token: answers[token][0] for token in page.CAPTIONS if token in answers}
        return page.Answer(named, seen, maps, _NO_MAPS)


def _about(manifest):
    """A model in a few words."""
    return f"{manifest.model}, {manifest.image_size} pixels, {len(manifest.labels)} classes"


def _read(path):
    """The manifest in a file."""
    try:
        return manifests.from_json(pathlib.Path(path).read_text("utf-8"), path)
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror}") from error


def examples(folder):
    """Images to begin with.

    Args:
      folder: where they lie; None for the photographs of scikit-learn, where it is installed.

    Returns:
      A list of paths.

    Raises:
      InputError: there are none in the folder.
    """
    if folder is None:
        found = importlib.util.find_spec("sklearn")  # not imported: that takes seconds
        root = pathlib.Path(found.origin).parent if found else pathlib.Path("nowhere")
        return sorted(root.glob("datasets/images/*.jpg"))
    paths = pathlib.Path(folder).glob("*")
    listed = sorted(path for path in paths if path.suffix.lower() in image.SUFFIXES)
    if not listed:
        raise InputError(f"{folder} has no images; give a folder of {', '.join(image.SUFFIXES)}")
    return listed


def shown(model, path):
    """An image's answer, or what is wrong, as HTML.

    Args:
      model: a `Local` or `Remote`.
      path: the image's file; None for none.
    """
    if path is None:
        return ""
    try:
        return page.render(model.answer(path))
    except InputError as error:
        return page.render(page.Answer(prediction.Prediction(error=str(error))))


def _gradio():
    """The package, told to keep to itself."""
    for name in ("GRADIO_ANALYTICS_ENABLED", "GRADIO_RUN_HISTORY"):
        os.environ[name] = "False"  # read when it is imported, and when it starts
    try:
        import gradio
    except ModuleNotFoundError as error:
        raise InputError("Gradio is missing; pip install -r requirements-demo.txt") from error
    return gradio


def build(gradio, model, paths):
    """The page.

    Args:
      gradio: the package.
      model: a `Local` or `Remote`.
      paths: of the examples.

    Returns:
      A `gradio.Blocks`.
    """
    with gradio.Blocks(title="DeiT", analytics_enabled=False, delete_cache=_FORGOTTEN) as blocks:
        gradio.Markdown(f"# What is it?\n{model.about}")
        with gradio.Row():
            with gradio.Column(scale=2):
                given = gradio.Image(
                    label="Image",
                    type="filepath",
                    image_mode=None,  # the file itself, not what Gradio makes of it
                    sources=["upload", "clipboard"],
                    height=280,
                    elem_classes="deit-given",
                )
                if paths:
                    gradio.Examples([str(path) for path in paths], given, label="Examples")
            with gradio.Column(scale=5):
                answer = gradio.HTML()
        given.change(lambda path: shown(model, path), given, answer)
    return blocks


def launch(gradio, blocks, host, port):
    """Serves the page to this machine, or whom `host` lets in; nothing goes out.

    Args:
      gradio: the package.
      blocks: what `build` has made.
      host: the address it listens at.
      port: its port.

    Raises:
      InputError: the port is taken.
    """
    try:
        blocks.launch(
            server_name=host,
            server_port=port,
            share=False,
            quiet=True,
            ssr_mode=False,
            prevent_thread_lock=True,
            footer_links=[],
            css=page.STYLE,
            # Gradio's own bold letters are another font's.
            theme=gradio.themes.Default(font="system-ui", font_mono="ui-monospace"),
        )
    except OSError as error:
        raise InputError(f"nothing can listen at {host}:{port}; give another --port") from error


def _parsed(argv, prog):
    parser = argparse.ArgumentParser(prog=prog, description=__doc__.splitlines()[0])
    model = parser.add_mutually_exclusive_group(required=True)
    model.add_argument("--model", help="an ONNX file")
    model.add_argument("--target", help="a TF Serving: host:port (gRPC) or http://host:port (REST)")
    parser.add_argument("--device", default="auto", help="of --model (default: CUDA, or the CPU)")
    parser.add_argument("--label", help="of --target's version: stable, canary")
    parser.add_argument("--manifest", help="of --target's SavedModel, for the pictures")
    parser.add_argument("--examples", metavar="FOLDER", help="images to begin with")
    parser.add_argument("--host", default="127.0.0.1", help="address to listen at (%(default)s)")
    parser.add_argument("--port", type=int, default=7860, help="(%(default)s)")
    return parser.parse_args(argv)


def main(argv=None, prog="python -m serving.demo"):
    """Arguments -> a page, until it is stopped; the exit code."""
    given = _parsed(argv, prog)
    try:
        if given.model:
            model = Local(given.model, given.device)
        else:
            model = Remote(given.target, given.label, given.manifest)
        paths = examples(given.examples)
        gradio = _gradio()
        blocks = build(gradio, model, paths)
        launch(gradio, blocks, given.host, given.port)
    except InputError as error:
        sys.stderr.write(f"error: {error}\n")
        return 1
    sys.stdout.write(f"http://{given.host}:{given.port}\n")
    sys.stdout.flush()
    blocks.block_thread()
    return 0


def run():
    """The installed command, `deit-demo`; its exit code."""
    return main(prog="deit-demo")


if __name__ == "__main__":
    sys.exit(main())
