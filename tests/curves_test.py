from PIL import Image

from deit_tf import curves

ROW = {"lr": 1e-3, "loss": 2.0, "top1": 0.25, "val_cls_loss": 1.5, "val_cls_top1": 0.5}
DISTILLED = {
    "class_loss": 2.5,
    "distillation_loss": 1.5,
    "val_dist_loss": 1.25,
    "val_dist_top1": 0.625,
}
FUSED = {"val_fused_loss": 1.125, "val_fused_top1": 0.75}


def _lines(history):
    """{panel's title: {line's label: its values}}."""
    return {
        axes.get_title(): {line.get_label(): list(line.get_ydata()) for line in axes.get_lines()}
        for axes in curves.draw(history).axes
    }


def test_shows_loss_every_head_and_the_rate():
    history = [{"epoch": e, **ROW, **DISTILLED, **FUSED} for e in (1, 2)]
    history[1]["lr"] = 5e-4
    assert _lines(history) == {
        "loss, nats": {
            "training": [2.0, 2.0],
            "training, labels": [2.5, 2.5],
            "training, teacher": [1.5, 1.5],
            "class head": [1.5, 1.5],
            "distillation head": [1.25, 1.25],
            "fusion": [1.125, 1.125],
        },
        "top-1 accuracy, %": {
            "training, mixed labels": [25, 25],
            "class head": [50, 50],
            "distillation head": [62.5, 62.5],
            "fusion": [75, 75],
        },
        "learning rate": {"at the end of the epoch": [1e-3, 5e-4]},
    }


def test_of_one_head_there_is_one_line():
    lines = _lines([{"epoch": 1, **ROW, **FUSED}])
    assert list(lines["top-1 accuracy, %"]) == ["training, mixed labels", "evaluation"]


def test_is_a_picture(tmp_path):
    picture = curves.draw([{"epoch": 1, **ROW, **FUSED}])
    picture.savefig(tmp_path / "curves.png", dpi=80)
    with Image.open(tmp_path / "curves.png") as image:
        assert image.size == (1200, 360)
        assert len(image.convert("RGB").getcolors(2**20)) > 50  # something is drawn
