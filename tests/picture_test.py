import pytest
from matplotlib import figure
from PIL import Image

from deit_tf import picture
from deit_tf.config import InputError


def test_saves_a_picture_whole(tmp_path):
    path = tmp_path / "one.png"
    picture.save(figure.Figure(figsize=(2, 1), dpi=50), str(path))
    with Image.open(path) as found:
        assert found.size == (100, 50)
    assert [file.name for file in tmp_path.iterdir()] == ["one.png"]


def test_refuses_a_folder_that_is_not_there(tmp_path):
    with pytest.raises(InputError, match="cannot be written: No such file or directory"):
        picture.save(figure.Figure(), str(tmp_path / "none" / "one.png"))


def test_a_folder_in_its_place_is_left_alone(tmp_path):
    (tmp_path / "one.png").mkdir()
    with pytest.raises(InputError, match="cannot be written: Is a directory"):
        picture.save(figure.Figure(), str(tmp_path / "one.png"))
    assert [file.name for file in tmp_path.iterdir()] == ["one.png"]
