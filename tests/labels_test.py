import pytest

from deit_tf import labels
from deit_tf.config import InputError


@pytest.fixture(scope="module")
def imagenet():
    lines = labels._IMAGENET.read_text().splitlines()
    return [line.split("\t") for line in lines]


def test_imagenets_names_are_packaged(imagenet):
    ids = [row[0] for row in imagenet]
    assert len(ids) == 1000
    assert ids == sorted(ids)  # folders sorted by name are in the published order
    names = labels.names(ids)
    assert (names[0], names[207], names[999]) == (
        "tench, Tinca tinca",
        "golden retriever",
        "toilet tissue, toilet paper, bathroom tissue",
    )
    assert len(set(names)) == 1000


def test_they_are_in_the_order_of_tfds(imagenet):
    tfds = pytest.importorskip("tensorflow_datasets")
    builder = tfds.builder("imagenet2012", data_dir="nowhere")
    assert builder.info.features["label"].names == [row[0] for row in imagenet]


def test_other_classes_keep_their_names(imagenet):
    assert labels.names(["cat", "dog"]) == ("cat", "dog")
    some = [row[0] for row in imagenet[:10]]
    assert labels.names(some) == tuple(some)


def test_a_file_names_them_in_order_or_by_class(tmp_path):
    path = tmp_path / "labels.txt"
    path.write_text("Katze\n Hund \n\n")
    assert labels.names(["cat", "dog"], str(path)) == ("Katze", "Hund")
    path.write_text("\ufeffKatze\r\nHund\r\n", newline="")  # as Windows' editor writes it
    assert labels.names(["cat", "dog"], str(path)) == ("Katze", "Hund")
    path.write_text("dog\tHund, Haushund\ncat\tKatze\nmouse\tMaus\n")
    assert labels.names(["cat", "dog"], str(path)) == ("Katze", "Hund, Haushund")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("Katze\n", "holds 1 names, but there are 2 classes"),
        ("cat\tKatze\n", "does not name the class 'dog'"),
        ("", "holds 0 names"),
        ("Katze\nKatze\n", "gives 'Katze' to two classes"),
        ("cat\t \ndog\tHund\n", "gives an empty name"),
        (None, "cannot be read"),
    ],
)
def test_says_what_a_file_lacks(text, words, tmp_path):
    path = tmp_path / "labels.txt"
    if text is not None:
        path.write_text(text)
    with pytest.raises(InputError, match=words):
        labels.names(["cat", "dog"], str(path))
