"""The command that looks inside, on a run of golden weights and on a trained one."""

import json

import numpy as np
import pytest
from PIL import Image

from deit_tf import attention, checkpoint, config, heat, preprocess, rundir, tokens
from deit_tf.config import InputError


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    """A folder with two images, one of them in a folder within, and what is none."""
    folder = tmp_path_factory.mktemp("pictures")
    rng = np.random.RandomState(0)
    (folder / "within").mkdir()
    for name, size in {"wide.png": (64, 96), "within/tall.jpg": (90, 70)}.items():
        pixels = rng.randint(0, 256, (*size, 3)).astype(np.uint8)
        Image.fromarray(pixels).resize((size[1] * 2, size[0] * 2)).save(folder / name)
    (folder / "notes.txt").write_text("no image")
    return folder


@pytest.fixture(scope="module")
def one_token(tmp_path_factory):
    """The run of a DeiT that is not distilled, with new weights."""
    run = tmp_path_factory.mktemp("one")
    facts = {"image_size": 32, "width": 8, "depth": 2, "heads": 2, "num_classes": 2}
    network = config.network("deit", **facts)
    rundir.begin(run, config.Config("deit", network), {}, "ab", "ab")
    checkpoint.build_network(network).save_weights(run / rundir.WEIGHTS)
    return run


def _seen(run, path):
    """What a run's network sees of an image, float32 [1, S, S, 3]."""
    network = checkpoint.load(run)
    image = preprocess.decode(path.read_bytes())
    return network, preprocess.center_crop(image, network.config.image_size, 0.875)[None]


def test_draws_a_row_for_each_image_and_tells_the_cosines(micro_run, pictures, command, tmp_path):
    picture = tmp_path / "looks.png"
    arguments = (f"--run_dir={micro_run}", f"--output={picture}", pictures)
    answer = command("deit_tf.attention", *arguments)
    assert answer.returncode == 0, answer.stderr
    lines = answer.stdout.splitlines()
    assert lines[0].startswith(str(pictures / "wide.png"))
    assert lines[1].startswith(str(pictures / "within" / "tall.jpg"))
    assert lines[3].split() == ["cosine", "of", "the", "tokens", "this", "run", "DeiT,", "ImageNet"]
    assert [line.split("  ")[0] for line in lines[4:9]] == [
        *("learned vectors", "block 1", "block 2", "block 3", "after the last norm"),
    ]
    assert lines[4].endswith("0.06")
    assert lines[8].endswith("0.93")
    assert lines[-1] == str(picture)
    with Image.open(picture) as found:
        assert found.size == (660, 844)
        pixels = np.asarray(found.convert("RGB")).astype(int)
    assert [path.name for path in tmp_path.iterdir()] == ["looks.png"]
    above = pixels[:492]
    image, cls, dist = (above[:, i * 220 : (i + 1) * 220] for i in range(3))
    assert np.abs(cls - image).mean() > 10
    assert np.abs(cls - dist).mean() > 1  # the two tokens look at different things


def test_answers_json_that_agrees_with_the_network(micro_run, pictures, command):
    arguments = (f"--run_dir={micro_run}", "--json", pictures / "wide.png")
    answer = command("deit_tf.attention", *arguments)
    assert answer.returncode == 0, answer.stderr
    found = json.loads(answer.stdout)
    picture = micro_run / "attention.png"  # where nothing else is said
    assert found["picture"] == str(picture)
    with Image.open(picture) as drawn:
        assert drawn.format == "PNG"
    picture.unlink()
    network, seen = _seen(micro_run, pictures / "wide.png")
    expected = np.mean(tokens.similarity(network, seen), axis=0)
    assert list(found["cosine"]) == ["learned", "1", "2", "3", "norm"]
    np.testing.assert_allclose(list(found["cosine"].values()), expected, atol=1e-5)
    logits = network(seen)
    fused = (logits["cls"] + logits["dist"]).numpy()[0] / 2
    likely = np.exp(fused) / np.exp(fused).sum()
    labels = ["bee", "cat", "dog", "elk", "Käfer", "fox", "gnu"]
    assert found["images"][0]["class"] == labels[likely.argmax()]
    assert found["images"][0]["probability"] == pytest.approx(likely.max(), rel=1e-4)


def test_of_one_token_there_is_one_map_and_no_cosine(one_token, pictures, tmp_path):
    picture = tmp_path / "looks.png"
    found = attention.look(one_token, [pictures / "wide.png"], str(picture))
    assert found["cosine"] is None
    with Image.open(picture) as drawn:
        assert drawn.size == (440, 246)
    assert "no distillation token, so no cosine" in attention.table(found)


def test_a_map_is_drawn_where_its_patch_is():
    maps = np.zeros((1, 4, 4))
    maps[0, 0, 3] = 1.0  # at the top, on the right
    drawn = heat.draw(np.zeros((1, 32, 32, 3), np.uint8), ["a"], {"cls": maps})
    over = drawn.axes[1].get_images()[1]
    assert list(over.get_extent()) == [
        -0.5,
        31.5,
        31.5,
        -0.5,
    ]  # over all of the image, not upside down
    np.testing.assert_array_equal(over.get_array(), maps[0])


def test_a_class_may_be_called_anything(tmp_path):
    pixels, maps = np.zeros((1, 8, 8, 3), np.uint8), {"cls": np.ones((1, 2, 2))}
    drawn = heat.draw(pixels, ["5 $ or 6 $, $x^{$ and a name that goes on and on, 97.0%"], maps)
    drawn.savefig(tmp_path / "drawn.png")  # as mathematics it could not be drawn
    assert drawn.axes[0].get_title().endswith("97.0%")


def test_the_plot_has_the_mean_the_range_and_what_was_published():
    cosines = np.array([[0.1, 0.2, 0.9], [0.1, 0.6, 0.7]])
    images, layers = np.zeros((2, 8, 8, 3), np.uint8), ["learned", "1", "norm"]
    maps = {"cls": np.ones((2, 2, 2))}
    plot = heat.draw(images, ["a", "b"], maps, layers, cosines).axes[-1]
    np.testing.assert_allclose(plot.get_lines()[0].get_ydata(), [0.1, 0.4, 0.8])
    legend = [text.get_text() for text in plot.get_legend().get_texts()]
    assert legend == ["this run, mean and range of 2 image(s)", "DeiT on ImageNet, as published"]
    marks = [line for line in plot.get_lines() if line.get_marker() == "x"]
    assert [(*line.get_xdata(), *line.get_ydata()) for line in marks] == [(0, 0.06), (2, 0.93)]


def test_refuses_what_has_no_tokens(pictures, tmp_path):
    facts = config.Config("regnety_tiny", config.network("regnety_tiny"))
    rundir.begin(tmp_path / "run", facts, {}, "ab", "ab")
    with pytest.raises(InputError, match="holds a regnety_tiny, which has no tokens; give the run"):
        attention.look(tmp_path / "run", [pictures], str(tmp_path / "looks.png"))


def test_refuses_more_images_than_fit_into_a_picture(micro_run, pictures, tmp_path):
    with pytest.raises(InputError, match="40 images; at most 32 go into a picture"):
        attention.look(micro_run, [pictures] * 20, str(tmp_path / "looks.png"))
