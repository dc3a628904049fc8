"""A run at a glance: loss, accuracy and learning rate over the epochs, as one picture."""

_HEADS = {"cls": "class head", "dist": "distillation head", "fused": "fusion"}


def draw(history):
    """Draws three panels.

    Args:
      history: rows of history.csv, one dictionary an epoch.

    Returns:
      A `matplotlib.figure.Figure`.
    """
    from matplotlib import figure  # no pyplot: no display, no state; a second to import

    heads = _HEADS if all("val_dist_top1" in row for row in history) else {"cls": "evaluation"}

    picture = figure.Figure(figsize=(15, 4.5), layout="constrained")
    loss, accuracy, rate = picture.subplots(1, 3)
    losses = {
        "loss": "training",
        "class_loss": "training, labels",
        "distillation_loss": "training, teacher",
    }
    losses |= {f"val_{head}_loss": name for head, name in heads.items()}
    _panel(loss, history, losses, "loss, nats")
    top1 = {"top1": "training, mixed labels"}
    top1 |= {f"val_{head}_top1": name for head, name in heads.items()}
    _panel(accuracy, history, top1, "top-1 accuracy, %", factor=100)
    _panel(rate, history, {"lr": "at the end of the epoch"}, "learning rate")
    return picture


def _panel(axes, history, names, title, factor=1):
    """One line for each of `names` that the history has."""
    epochs = [row["epoch"] for row in history]
    for name, label in names.items():
        if all(name in row for row in history):
            dashed = "-" if name.startswith("val_") or name == "lr" else "--"
            values = [factor * row[name] for row in history]
            axes.plot(epochs, values, dashed, marker=".", markersize=3, label=label)
    axes.set_title(title)
    axes.set_xlabel("epoch")
    axes.xaxis.get_major_locator().set_params(integer=True)
    axes.grid(alpha=0.3)
    axes.legend(fontsize="small")
