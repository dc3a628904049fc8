"""Where both tokens of a trained run look: `python -m deit_tf.attention --run_dir=DIR IMAGE|DIR`.

Draws attention rollout over images, and tells the cosine between class token and distillation token
layer by layer.
"""

import json
import os
import sys

from deit_tf import flags
from deit_tf.config import DeiTConfig, InputError

_MOST = 32  # images in a picture
_ENDS = {"learned": "learned vectors", "norm": "after the last norm"}


def look(run_dir, images, output, which="last"):
    """Draws where the tokens look.

    Args:
      run_dir: a run directory with a DeiT.
      images: paths of images, and of folders of them, to any depth.
      output: the picture, a name that ends in .png.
      which: "last" or "best" checkpoint.

    Returns:
      {"picture": output, "images": [{"image": path, "class": name, "probability": 0–1}], "cosine":
      {layer: mean over the images} as `tokens.layers_of` names them, or None where there is one
      token alone}.

    Raises:
      InputError: no such run, image or folder, no image, or a network without tokens.
    """
    # What can be wrong is looked for before TensorFlow is imported, which takes seconds.
    from deit_tf import picture, rundir

    config = rundir.read_config(run_dir)["config"]
    if not isinstance(config.network, DeiTConfig):
        raise InputError(
            f"{run_dir} holds a {config.model}, which has no tokens; give the run of a DeiT"
        )
    rundir.weights_path(run_dir, which)
    picture.check(output, "output")
    paths = _found(images)

    from keras import ops

    from deit_tf import heat, inference, tokens

    opened = inference.open_run(run_dir, which)
    seen = _seen(paths, opened.manifest)
    told = _told(opened, seen, paths)
    maps = {name: ops.convert_to_numpy(value) for name, value in opened.attention(seen).items()}
    layers, cosines = [], None
    if config.network.distilled:
        layers = tokens.layers_of(opened.network)
        cosines = ops.convert_to_numpy(tokens.similarity(opened.network, seen))
    captions = [_caption(each) for each in told]
    picture.save(heat.draw(seen, captions, maps, layers, cosines), output)
    means = [] if cosines is None else cosines.mean(axis=0).tolist()
    cosine = dict(zip(layers, means, strict=True)) or None
    return {"picture": output, "images": told, "cosine": cosine}


def _found(images):
    """The paths that are meant, sorted within a folder."""
    from deit_tf import folder

    paths = [path for place in images for path in folder.images_at(place)]
    if not paths:
        raise InputError("no image; give files, or folders with images in them")
    if len(paths) > _MOST:
        raise InputError(f"{len(paths)} images; at most {_MOST} go into a picture")
    return paths


def _seen(paths, manifest):
    """What the network sees of some files, uint8 [B, S, S, 3]."""
    import numpy as np
    import tensorflow as tf

    from deit_tf import preprocess

    size, found = (manifest.image_size, manifest.crop_fraction), []
    for path in paths:
        try:
            with open(path, "rb") as file:
                image = preprocess.decode(tf.constant(file.read()))
        except (OSError, tf.errors.OpError) as error:
            raise InputError(
                f"{path} cannot be read as an image; give a JPEG, PNG, WebP or GIF"
            ) from error
        found.append(preprocess.center_crop(image, *size).numpy().astype(np.uint8))
    return np.stack(found)


def _told(opened, seen, paths):
    """The likeliest class of each image."""
    found = opened.answer(seen)["probabilities"].numpy()
    return [
        {
            "image": path,
            "class": opened.manifest.labels[row.argmax()],
            "probability": float(row.max()),
        }
        for path, row in zip(paths, found, strict=True)
    ]


def _caption(told):
    """The likeliest class of an image, with its probability."""
    return f"{told['class']}, {told['probability']:.1%}"


def table(found):
    """What `look` found as a person reads it, a text of several lines."""
    from deit_tf import heat

    width = max(len(each["image"]) for each in found["images"])
    lines = [f"{each['image']:<{width}}  {_caption(each)}" for each in found["images"]]
    if found["cosine"] is None:
        return "\n".join([*lines, "", "no distillation token, so no cosine", found["picture"]])
    lines += ["", f"{'cosine of the tokens':<22}{'this run':>9}{'DeiT, ImageNet':>16}"]
    for name, value in found["cosine"].items():
        row = f"block {name}" if name.isdecimal() else _ENDS[name]
        published = f"{heat.PUBLISHED[name]:>16.2f}" if name in heat.PUBLISHED else ""
        lines.append(f"{row:<22}{value:>9.2f}{published}")
    return "\n".join([*lines, "", found["picture"]])


def main(argv):
    """Flags and images -> picture -> stdout."""
    given = flags.FLAGS
    if not given.run_dir:
        raise InputError("no run directory; give --run_dir=DIR")
    output = given.output or os.path.join(given.run_dir, "attention.png")
    sys.stdout.reconfigure(errors="backslashreplace")  # files may be called anything
    found = look(given.run_dir, argv[1:], output, given.checkpoint)
    print(json.dumps(found, ensure_ascii=False) if given.json else table(found))


def run():
    """The command: its flags, then `main`."""
    flags.define_text("run_dir", None, "The run directory.")
    flags.define_text("checkpoint", "last", "Which weights: last or best.")
    flags.define_text("output", None, "The picture; default: attention.png in the run directory.")
    flags.define_switch("json", "Answer one line of JSON.")
    flags.run(main, files=True)


if __name__ == "__main__":
    run()
