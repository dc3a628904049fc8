"""What two tokens have taken of some images, and how alike they are, as one picture."""

import textwrap

import numpy as np

# What DeiT's authors found on ImageNet before and at the end of the network, by the names of
# `tokens.layers_of`: Touvron et al. 2021, section 4.
PUBLISHED = {"learned": 0.06, "norm": 0.93}
_NAMES = {"cls": "class token", "dist": "distillation token"}
_INCH = 2.2  # side of an image
_OPACITY = 0.65  # of the colours over the image


def draw(images, captions, maps, layers=(), cosines=None):
    """Draws a row for each image, and below them the cosine between the tokens over the layers.

    Args:
      images: uint8 [B, S, S, 3], what the network sees.
      captions: a text for each.
      maps: {"cls": float [B, h, w]} and perhaps "dist": the same; each is coloured from its least
        to its largest value.
      layers: names of the places where the cosine was taken.
      cosines: float [B, layers], or None where there is one token alone.

    Returns:
      A `matplotlib.figure.Figure`.
    """
    from matplotlib import figure  # no pyplot: no display, no state; a second to import

    columns, below = 1 + len(maps), 0.0 if cosines is None else 1.6 * _INCH
    above = 1.12 * _INCH * len(images)
    width = max(columns * _INCH, 0.3 * len(layers))
    whole = figure.Figure(figsize=(width, above + below), dpi=100, layout="constrained")
    parts = [whole] if cosines is None else whole.subfigures(2, 1, height_ratios=[above, below])
    grid = parts[0].subplots(len(images), columns, squeeze=False)
    for line, image, caption, *heats in zip(grid, images, captions, *maps.values(), strict=True):
        _row(line, image, caption, dict(zip(maps, heats, strict=True)))
    if cosines is not None:
        _cosines(parts[1].subplots(), list(layers), cosines)
    return whole


def _row(line, image, caption, maps):
    """An image as it is, and with each map over it."""
    for axes in line:
        axes.axis("off")
    line[0].imshow(image)
    line[0].set_title(textwrap.fill(caption, 34), fontsize="small", parse_math=False)
    side = len(image)
    for axes, (name, heat) in zip(line[1:], maps.items(), strict=True):
        axes.imshow(np.mean(image, axis=-1), cmap="gray", vmin=0, vmax=255)
        extent = (-0.5, side - 0.5, side - 0.5, -0.5)
        axes.imshow(heat, cmap="inferno", alpha=_OPACITY, extent=extent, interpolation="bicubic")
        axes.set_title(_NAMES[name], fontsize="small")


def _cosines(axes, layers, cosines):
    """The mean over the images, the range of them, and what was published."""
    places = np.arange(len(layers))
    axes.fill_between(places, cosines.min(axis=0), cosines.max(axis=0), alpha=0.2, linewidth=0)
    label = f"this run, mean and range of {len(cosines)} image(s)"
    axes.plot(places, cosines.mean(axis=0), marker=".", label=label)
    label = "DeiT on ImageNet, as published"
    for name, value in PUBLISHED.items():
        axes.axhline(value, color="black", linestyle=":", linewidth=1, label=label)
        axes.plot(layers.index(name), value, color="black", marker="x", linestyle="none")
        label = None
    axes.set_xticks(places, layers)
    axes.set_xlabel("learned vectors, after each block, after the last LayerNorm")
    axes.set_title("cosine between class token and distillation token", fontsize="medium")
    axes.grid(alpha=0.3)
    axes.legend(fontsize="small")
