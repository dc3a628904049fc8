import numpy as np
import pytest
from PIL import Image

from deit_tf import preview


def _rows(rows=2, columns=3):
    rng = np.random.RandomState(0)
    images = rng.uniform(-300, 500, (rows, columns, 16, 16, 3)).astype(np.float32)  # erased noise
    labels = np.full((rows, columns, 4), 0.025, np.float32)
    labels[..., 1], labels[..., 2] = 0.7, 0.25
    return list(zip(images, labels, strict=True))


def test_caption_names_the_largest_parts():
    label = np.array([0.001, 0.9, 0.099, 0.0], np.float32)
    assert preview.caption(label, list("abcd"), 0.0) == "0.90 b\n0.10 c"


def test_caption_leaves_smoothing_out_and_shortens_long_names():
    label = np.array([0.9333, 0.0333, 0.0333], np.float32)
    names = ["a name that goes on and on and on", "b", "c"]
    assert preview.caption(label, names, 0.1) == "0.93 a name that goes on…"
    mixed = np.array([0.7, 0.2667, 0.0333], np.float32)
    assert preview.caption(mixed, list("abc"), 0.1) == "0.70 a\n0.27 b"


@pytest.mark.parametrize(
    ("groups", "expected"),
    [(2, [[*range(4), *range(6, 10)], [*range(10, 14), *range(16, 20)]]), (10, None)],
)
def test_a_row_shows_the_outer_pairs_of_a_group(groups, expected):
    images = np.arange(20)
    found = [row.tolist() for row, _ in preview.rows(images, images, groups)]
    assert found == (expected or [[2 * i, 2 * i + 1] for i in range(10)])


def test_is_a_picture_of_the_rows(tmp_path):
    path = tmp_path / "preview.png"
    preview.draw(_rows(), list("abcd"), 0.1).savefig(path)
    with Image.open(path) as picture:
        assert picture.size == (720, 648)
