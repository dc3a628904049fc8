"""A manifest survives its JSON; what is none is refused in one line."""

import json

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from deit_tf import manifest
from deit_tf.config import InputError

QUICK = settings(max_examples=150, deadline=None, derandomize=True)

NUMBERS = st.floats(allow_nan=False, allow_infinity=False)
WORDS = st.text(max_size=8)
SIDES = st.integers(1, 2**31)
THREE = st.tuples(NUMBERS, NUMBERS, NUMBERS)
TENSORS = st.builds(
    manifest.Tensor,
    st.sampled_from(["uint8", "string", "float32", "int32"]),
    st.lists(SIDES | st.just("batch"), max_size=4),
)
PORTS = st.dictionaries(WORDS, TENSORS, max_size=3)
MANIFESTS = st.builds(
    manifest.Manifest,
    model=WORDS,
    image_size=SIDES,
    crop_fraction=NUMBERS,
    mean=THREE,
    std=THREE,
    fusion=st.sampled_from(["logits", "softmax", ""]),
    classes=st.lists(WORDS, max_size=4).map(tuple),
    labels=st.lists(WORDS, max_size=4).map(tuple),
    source=st.dictionaries(WORDS, WORDS | st.booleans() | st.none(), max_size=3),
    versions=st.dictionaries(WORDS, WORDS, max_size=3),
    precision=st.sampled_from(manifest.PRECISIONS),
    target=WORDS,
    max_pixels=st.integers(0, 2**40),
    signatures=st.dictionaries(WORDS, st.builds(manifest.Signature, PORTS, PORTS), max_size=3),
    digest=WORDS,
)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | NUMBERS | WORDS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(WORDS, inner, max_size=3),
    max_leaves=6,
)
SOME = manifest.Manifest(
    "deit",
    32,
    0.875,
    (0.5,) * 3,
    (0.5,) * 3,
    "logits",
    ("a",),
    ("A",),
    {"run_dir": "runs/a"},
    {"tensorflow": "2"},
    signatures={"pixels": manifest.Signature({"image": manifest.Tensor("uint8", (1, 2))}, {})},
)


@QUICK
@given(MANIFESTS)
def test_a_manifest_survives_its_json(found):
    text = found.to_json()
    again = manifest.from_json(text, "here")
    assert again == found
    assert again.to_json() == text
    assert manifest.from_json(text.encode(), "here") == found


def _read(text):
    """The manifest of a text, or None where it is refused as it is to be."""
    try:
        return manifest.from_json(text, "model.onnx")
    except InputError as error:
        said = str(error)
    assert said.startswith("model.onnx has a manifest ")
    assert said.isprintable()  # and so of one line
    return None


@QUICK
@given(st.sampled_from([*json.loads(SOME.to_json())]), JSON)
@example("format", "one\nline")
@example("format", 0)
@example("source", "a path")
@example("precision", "float64")
def test_a_value_of_another_kind_is_read_or_refused(name, value):
    found = _read(json.dumps({**json.loads(SOME.to_json()), name: value}))
    if name in ("format", "precision"):
        assert bool(found) == (value == getattr(SOME, name))


@pytest.mark.parametrize("name", ["model", "image_size", "classes", "source", "signatures"])
def test_what_every_manifest_has_is_not_left_away(name):
    values = json.loads(SOME.to_json())
    del values[name]
    assert _read(json.dumps(values)) is None


def test_what_no_manifest_has_is_refused():
    assert _read(json.dumps({**json.loads(SOME.to_json()), "colour": "blue"})) is None


@QUICK
@given(st.text() | st.binary() | JSON.map(json.dumps))
@example(b"\xff")
def test_what_is_no_manifest_is_refused(text):
    assert _read(text) is None


@QUICK
@given(st.data())
def test_a_manifest_that_was_cut_short_is_refused(data):
    text = SOME.to_json().rstrip()
    assert _read(text[: data.draw(st.integers(0, len(text) - 1))]) is None


def test_a_text_that_is_nested_too_deep_is_refused():
    assert _read("[" * 100_000) is None
