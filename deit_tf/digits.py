"""The embedded data set: scikit-learn's handwritten digits as a TFDS builder, no download.

1,797 images of 8×8 pixels from the UCI test set "Optical recognition of handwritten digits"
(Alpaydin & Kaynak 1998). The split is fixed and checked by its sum.
"""

import hashlib

import numpy as np
import tensorflow_datasets as tfds
from sklearn import datasets, model_selection

TEST_IMAGES = 397
SPLIT_SHA256 = "e1764871cbbeebf4b6565ed457a13b25a71b56a1a1b90bf3c4fa231f32276540"


def split(labels):
    """The fixed split: indices of training and test images, stratified by class.

    Args:
      labels: int [1797].

    Returns:
      Two int64 arrays, [1400] and [397].
    """
    train, test = model_selection.train_test_split(
        np.arange(len(labels)), test_size=TEST_IMAGES, stratify=labels, random_state=0
    )
    return train.astype("<i8"), test.astype("<i8")


def split_sha256(train, test):
    """Hexadecimal SHA-256 of both index arrays, little-endian int64, training first."""
    return hashlib.sha256(train.tobytes() + test.tobytes()).hexdigest()


class Digits(tfds.core.GeneratorBasedBuilder):
    """Handwritten digits, uint8 [8, 8, 3], 0–255, ink bright on black."""

    VERSION = tfds.core.Version("1.0.0")

    def _info(self):
        return tfds.core.DatasetInfo(
            builder=self,
            description=__doc__,
            features=tfds.features.FeaturesDict(
                {
                    "image": tfds.features.Image(shape=(8, 8, 3), encoding_format="png"),
                    "label": tfds.features.ClassLabel(num_classes=10),
                }
            ),
            supervised_keys=("image", "label"),
            homepage="https://archive.ics.uci.edu/dataset/80",
            metadata=tfds.core.MetadataDict({"split_sha256": SPLIT_SHA256}),
        )

    def _split_generators(self, dl_manager):
        images, labels = datasets.load_digits(return_X_y=True)
        pixels = np.round(images.reshape(-1, 8, 8, 1) * (255 / 16)).astype(np.uint8)
        train, test = split(labels)
        found = split_sha256(train, test)
        if found != SPLIT_SHA256:
            raise ValueError(
                f"this scikit-learn splits the digits differently: {found}, not {SPLIT_SHA256}"
            )
        return {
            "train": self._generate_examples(pixels, labels, train),
            "test": self._generate_examples(pixels, labels, test),
        }

    def _generate_examples(self, pixels, labels, indices):
        for i in indices.tolist():
            yield (
                i,
                {"image": np.repeat(pixels[i], 3, axis=-1), "label": int(labels[i])},
            )
