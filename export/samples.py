"""Real images on which an artefact proves itself."""

import math
import pathlib

import numpy as np
import sklearn.datasets
import tensorflow as tf

from deit_tf import preprocess, rundir, source
from deit_tf.config import InputError
from export import image_bytes


def encoded(run_dir, count, max_pixels=math.inf):
    """Encoded images: two photographs, and those that the run is evaluated on, where they are here.

    Args:
      run_dir: the run directory.
      count: how many, if there are as many.
      max_pixels: that one of them may have.

    Returns:
      A list of texts of bytes; without the run's data they are parts of the photographs. What is
      not served (damaged, too large, a strip, of another format) is left out.
    """
    photographs = _photographs()[:count]
    config = rundir.read_config(run_dir)["config"].data
    try:
        records = source.open_source(config, training=False).eval
        wanted = min(count - len(photographs), len(records))
        places = np.linspace(0, len(records) - 1, wanted).astype(int)
        others = [row["image"] for row in records.__getitems__(places.tolist())]
    except InputError:  # a published network's ImageNet is rarely where it is exported
        others = _parts(photographs, count - len(photographs))
    return [image for image in photographs + others if _is_served(image, max_pixels)]


def _is_served(image, max_pixels):
    """Whether an image is of those that are answered."""
    try:
        preprocess.decode(image)
    except tf.errors.InvalidArgumentError:
        return False
    sides = image_bytes.sides(tf.constant(image)).numpy()
    strip = sides.max() > image_bytes.LARGEST_ASPECT * sides.min()
    return 0 < sides.prod() <= max_pixels and not strip


def pixels(images, manifest):
    """What the network sees of encoded images: uint8 [B, S, S, 3]."""
    seen = [
        preprocess.center_crop(
            preprocess.decode(image), manifest.image_size, manifest.crop_fraction
        )
        for image in images
    ]
    return np.stack(seen).astype(np.uint8)


def _photographs():
    """The two photographs that come with scikit-learn, JPEG."""
    folder = pathlib.Path(sklearn.datasets.__file__).parent / "images"
    return [path.read_bytes() for path in sorted(folder.glob("*.jpg"))]


def _parts(photographs, count):
    """Parts of photographs, of many sizes, JPEG."""
    rng, found = np.random.RandomState(0), []
    whole = [preprocess.decode(image).numpy() for image in photographs]
    for i in range(count):
        image = whole[i % len(whole)]
        height, width = (int(side * rng.uniform(0.3, 1.0)) for side in image.shape[:2])
        top, left = (
            rng.randint(0, side - part + 1)
            for side, part in zip(image.shape[:2], (height, width), strict=True)
        )
        part = image[top : top + height, left : left + width]
        found.append(tf.io.encode_jpeg(part, quality=95).numpy())
    return found
