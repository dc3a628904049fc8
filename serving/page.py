"""An answer as a piece of a page: the likeliest classes as bars, and where the tokens look."""

import base64
import dataclasses
import html
import io

import numpy as np
from PIL import Image

from serving.prediction import Prediction

SIDE = 336  # of a picture on the page, pixels
CAPTIONS = {
    "cls": ("Class token", "learned from the labels"),
    "dist": ("Distillation token", "learned from the teacher"),
}
_SEEN = ("What the network sees", "resized and cropped")
# From black over red to light yellow; the steps are of even lightness.
_COLORS = np.array(
    [
        (0, 0, 4),
        (50, 10, 94),
        (120, 28, 109),
        (187, 55, 84),
        (237, 105, 37),
        (251, 180, 26),
        (252, 255, 164),
    ]
)
_OPACITY = 0.65  # of the colours over the picture


@dataclasses.dataclass(frozen=True)
class Answer:
    """All that a page shows of one image.

    Attributes:
      prediction: the `prediction.Prediction`.
      seen: uint8 [S, S, 3], what the network sees; None where that is not known.
      maps: {"cls": float32 [S/P, S/P], "dist": …}, how much each patch has gone into a token; empty
        where the model does not tell.
      note: why there are no maps, one line.
    """

    prediction: Prediction
    seen: np.ndarray | None = None
    maps: dict = dataclasses.field(default_factory=dict)
    note: str = ""


def render(answer):
    """An answer as HTML; how it looks is `STYLE`'s.

    Args:
      answer: an `Answer`.
    """
    if answer.prediction.error:
        return f'<p class="deit-error" role="alert">{html.escape(answer.prediction.error)}</p>'
    return bars(answer.prediction) + pictures(answer)


def bars(prediction):
    """Classes as bars, the likeliest first.

    Args:
      prediction: a good `prediction.Prediction`.

    Returns:
      HTML.
    """
    rows = [
        f'<li><span class="deit-name">{html.escape(name)}</span>'
        f'<span class="deit-track"><span class="deit-bar" style="width:{100 * score:.2f}%">'
        f'</span></span><span class="deit-score">{score:.1%}</span></li>'
        for name, score in zip(prediction.class_names, prediction.scores, strict=True)
    ]
    return f'<ol class="deit-bars" aria-label="Likeliest classes">{"".join(rows)}</ol>'


def pictures(answer):
    """What the network sees, and the heat maps over it, as HTML.

    Args:
      answer: an `Answer`.
    """
    shown = [] if answer.seen is None else [_figure(enlarged(answer.seen), *_SEEN)]
    for name, map_ in answer.maps.items():
        shown.append(_figure(overlay(answer.seen, map_), *CAPTIONS[name]))
    below = _LEGEND if answer.maps else html.escape(answer.note)
    return f'<div class="deit-pictures">{"".join(shown)}</div><p class="deit-note">{below}</p>'


def enlarged(seen):
    """A picture of `SIDE` pixels.

    Args:
      seen: uint8 [S, S, 3].

    Returns:
      uint8 [SIDE, SIDE, 3].
    """
    return np.asarray(Image.fromarray(seen).resize((SIDE, SIDE), Image.Resampling.BICUBIC))


def heat(attention):
    """A map from its least to its largest value as 0–1, of the picture's size.

    Args:
      attention: float32 [h, w].

    Returns:
      float32 [SIDE, SIDE]; zeros for a map that is the same everywhere.
    """
    least, span = attention.min(), np.ptp(attention)
    scaled = (attention - least) / span if span > 0 else np.zeros_like(attention)
    image = Image.fromarray(scaled.astype(np.float32))
    return np.clip(np.asarray(image.resize((SIDE, SIDE), Image.Resampling.BICUBIC)), 0, 1)


def overlay(seen, attention):
    """A heat map over a grey picture.

    Args:
      seen: uint8 [S, S, 3].
      attention: float32 [h, w], which covers all of it.

    Returns:
      uint8 [SIDE, SIDE, 3].
    """
    at, levels = heat(attention), np.linspace(0, 1, len(_COLORS))
    colors = np.stack([np.interp(at, levels, channel) for channel in _COLORS.T], -1)
    grey = np.asarray(Image.fromarray(enlarged(seen)).convert("L"))[..., None]
    return np.round(_OPACITY * colors + (1 - _OPACITY) * grey).astype(np.uint8)


def _figure(pixels, title, text):
    """A picture with its caption."""
    stored = io.BytesIO()
    Image.fromarray(pixels).save(stored, "PNG")
    source = f"data:image/png;base64,{base64.b64encode(stored.getvalue()).decode()}"
    return (
        f'<figure><img src="{source}" alt="{title}"/>'
        f"<figcaption><b>{title}</b><br/><span>{text}</span></figcaption></figure>"
    )


_GRADIENT = ", ".join(f"rgb{tuple(color.tolist())}" for color in _COLORS)
_LEGEND = (
    "Attention rollout, each map from its least to its largest value: least"
    f' <span class="deit-scale" style="background:linear-gradient(90deg, {_GRADIENT})"></span> most'
)
# Gradio's variables, so that it is light or dark as the page around it.
STYLE = """
.deit-given img { width: 100%; height: 100%; object-fit: contain; }
ol.deit-bars { list-style: none; margin: 0 0 2rem; padding: 0; display: grid; gap: .4rem .75rem;
  grid-template-columns: fit-content(16rem) 1fr max-content; align-items: center; }
.deit-bars li { display: contents; }
.deit-name { overflow: hidden; text-overflow: ellipsis; white-space: nowrap; min-width: 2rem; }
.deit-bars li:first-child { font-weight: 600; }
.deit-track { height: .8rem; border-radius: .4rem; overflow: hidden;
  background: var(--background-fill-secondary); border: 1px solid var(--border-color-primary); }
.deit-bar { display: block; height: 100%; background: var(--color-accent); }
.deit-score { text-align: right; font-variant-numeric: tabular-nums; }
.deit-pictures { display: grid; gap: 1rem;
  grid-template-columns: repeat(auto-fit, minmax(min(12rem, 100%), 1fr)); }
.deit-pictures figure { margin: 0; max-width: 336px; }
.deit-pictures img { width: 100%; border-radius: .4rem; }
.deit-pictures figcaption, .deit-note { font-size: .875rem; line-height: 1.4; margin-top: .4rem; }
.deit-pictures figcaption span, .deit-note {
  color: color-mix(in srgb, var(--body-text-color) 70%, transparent); }
.deit-note { margin-top: 1rem; }
.deit-scale { display: inline-block; width: 8rem; height: .6rem; border-radius: .3rem;
  vertical-align: middle; }
.deit-error { color: var(--error-text-color); font-weight: 600; }
"""
