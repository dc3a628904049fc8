"""What a network is going to see: augmented images with their soft labels, as one picture."""

import textwrap

import numpy as np

ROWS, COLUMNS = 6, 8
_SHOWN = 0.005  # of a label, beyond its smoothing
_INCH = 1.6


def rows(images, labels, groups):
    """The outer pairs of each group: the first images and, mirrored, their partners.

    Args:
      images: float32 [B, S, S, 3], 0–255.
      labels: float32 [B, K].
      groups: how many there are, of equal size.

    Returns:
      What `draw` takes: a row a group.
    """
    size = len(images) // groups
    half = min(size, COLUMNS) // 2
    shown = [*range(half), *range(size - half, size)]
    places = [[group * size + i for i in shown] for group in range(groups)]
    return [(images[row], labels[row]) for row in places]


def draw(rows, names, smoothing):
    """Draws a grid of images; above each, the largest parts of its label.

    Args:
      rows: a list of (images, float32 [n, S, S, 3] in 0–255, labels, float32 [n, K]).
      names: of the K classes.
      smoothing: mass that all classes share evenly, which is not shown.

    Returns:
      A `matplotlib.figure.Figure`.
    """
    from matplotlib import figure  # no pyplot: no display, no state; a second to import

    columns = max(len(images) for images, _ in rows)
    size = (_INCH * columns, 1.35 * _INCH * len(rows))
    picture = figure.Figure(figsize=size, dpi=150, layout="constrained")
    grid = picture.subplots(len(rows), columns, squeeze=False)
    for axes in grid.flat:
        axes.axis("off")
    for line, (images, labels) in zip(grid, rows, strict=True):
        for axes, image, label in zip(line, images, labels, strict=False):
            axes.imshow(np.clip(np.round(image), 0, 255).astype(np.uint8))
            axes.set_title(caption(label, names, smoothing), fontsize=6)
    return picture


def caption(label, names, smoothing):
    """The two largest parts of a label, a line each.

    Args:
      label: float32 [K].
      names: of the K classes.
      smoothing: mass that all classes share evenly.
    """
    largest = np.argsort(-label, kind="stable")[:2]
    least = smoothing / len(names) + _SHOWN
    parts = [f"{label[i]:.2f} {names[i]}" for i in largest if label[i] > least]
    return "\n".join(textwrap.shorten(part, 28, placeholder="…") for part in parts)
