"""Whatever is asked for either builds, or is refused in one line."""

import contextlib
import dataclasses
import itertools
import json
import math

import pytest
from absl import flags as absl_flags
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from deit_tf import checkpoint, config, flags

FAMILIES = (config.DeiTConfig, config.RegNetYConfig)
SECTIONS = tuple(config.SECTIONS.values())
QUICK = settings(max_examples=150, deadline=None, derandomize=True)
SLOW = settings(
    max_examples=12,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.filter_too_much],
)


def _wild(field):
    """Values of a field's type, near its bounds, far from them, and not numbers at all."""
    rule = field.metadata
    if rule["choices"]:
        return st.sampled_from([*rule["choices"], "", "Hard", "none "])
    bounds = [rule[name] for name in ("at_least", "above", "at_most") if rule[name] is not None]
    near = [field.type(b + d) for b in bounds for d in (-1, 0, 1)] if bounds else []
    kinds = {
        bool: st.booleans(),
        int: st.sampled_from([*near, 0, 10**400]) | st.integers(-(2**70), 2**70),
        float: st.sampled_from([*near, math.inf, -math.inf, math.nan]) | st.floats(),
        str: st.text(max_size=8) | st.sampled_from(["digits", "tfds:x", "folder:/x"]),
        tuple: st.tuples(*[st.floats()] * 3) | st.lists(st.floats(-1, 2), max_size=4).map(tuple),
    }
    return kinds[field.type]


def _tame(field):
    """Values that the rule of a field allows."""
    rule = field.metadata
    low = rule["at_least"] if rule["at_least"] is not None else rule["above"]
    low = -100 if low is None else low
    high = rule["at_most"] if rule["at_most"] is not None else low + 100
    kinds = {
        bool: st.booleans(),
        int: st.integers(int(low), int(high)),
        float: st.floats(low, high, exclude_min=rule["above"] is not None),
        str: st.sampled_from(rule["choices"] or ["a", "tfds:x", "folder:/ä ö"]),
        tuple: st.tuples(*[st.floats(0.01, 1)] * 3),
    }
    return kinds[field.type]


@st.composite
def _facts(draw, cls):
    """Some fields of a class: as their rules allow, but for at most one."""
    fields = dataclasses.fields(cls)
    # Fields that must fit each other are left alone, or nearly nothing would be accepted.
    tied = ("image_size", "patch_size", "width", "heads", "eval_split", "eval_fraction")
    tame = {field.name: _tame(field) for field in fields if field.name not in tied}
    facts = draw(st.fixed_dictionaries({}, optional=tame))
    if draw(st.booleans()):
        field = draw(st.sampled_from(fields))
        facts[field.name] = draw(_wild(field))
    return facts


def _accepted(make):
    """What `make()` answers, or None where it is refused, in one line and by nothing else."""
    try:
        return make()
    except config.InputError as error:
        message = str(error).strip()
    assert message
    assert "\n" not in message
    return None


@pytest.mark.parametrize("cls", [*SECTIONS, *FAMILIES], ids=lambda cls: cls.__name__)
@QUICK
@given(data=st.data())
def test_a_section_keeps_its_rules_or_is_refused_in_one_line(cls, data):
    section = _accepted(lambda: cls(**data.draw(_facts(cls))))
    for field in dataclasses.fields(cls) if section else ():
        value, rule = getattr(section, field.name), field.metadata
        assert type(value) is field.type or (field.type is float and type(value) is int)
        assert not rule["choices"] or value in rule["choices"]
        assert rule["at_least"] is None or value >= rule["at_least"]
        assert rule["above"] is None or value > rule["above"]
        assert rule["at_most"] is None or value <= rule["at_most"]


@QUICK
@given(
    model=st.sampled_from([*config.VARIANTS, "", "deit_tiny"]),
    network=st.one_of(*map(_facts, FAMILIES)),
    sections=st.fixed_dictionaries({name: _facts(cls) for name, cls in config.SECTIONS.items()}),
)
def test_what_is_accepted_survives_json_and_is_the_same_run(model, network, sections):
    whole = _accepted(
        lambda: config.Config(
            model,
            config.network(model, **network),
            **{name: config.SECTIONS[name](**facts) for name, facts in sections.items()},
        )
    )
    if whole:
        again = config.from_json(json.loads(json.dumps(config.to_json(whole))))
        assert again == whole
        assert config.differences(whole, again) == []


SMALL_DEIT = st.fixed_dictionaries(
    {
        "image_size": st.integers(0, 24),
        "patch_size": st.integers(0, 12),
        "width": st.integers(0, 24),
        "depth": st.integers(0, 2),
        "heads": st.integers(0, 4),
        "mlp_ratio": st.floats(0, 3),
        "num_classes": st.integers(0, 5),
        "distilled": st.booleans(),
        "drop_path_rate": st.floats(-0.5, 1.5),
    }
)
SMALL_REGNET = st.fixed_dictionaries(
    {
        "image_size": st.integers(1, 24),
        "num_classes": st.integers(0, 5),
        "depth": st.integers(0, 3),
        "initial_width": st.floats(7, 40),
        "slope": st.floats(-1, 40),
        "multiplier": st.floats(1, 4),
        "group_width": st.integers(1, 24),
        "stem_width": st.integers(1, 16),
        "stem_stride": st.integers(1, 3),
        "se_ratio": st.floats(0, 1),
    }
)


@SLOW
@example(pair=("deit", {"image_size": 7, "patch_size": 7, "width": 1, "heads": 1, "depth": 1}))
@given(
    pair=st.tuples(st.just("deit"), SMALL_DEIT) | st.tuples(st.just("regnety_tiny"), SMALL_REGNET)
)
def test_what_is_accepted_builds(pair):
    model, facts = pair
    network = _accepted(lambda: config.network(model, **facts))
    if network:
        built = checkpoint.build_network(network)
        heads = ("cls", "dist") if network.distilled else ("cls",)
        assert tuple(built.compute_output_spec(_image(network)).keys()) == heads


def _image(network):
    import keras

    return keras.KerasTensor((1, network.image_size, network.image_size, 3))


@pytest.fixture(scope="module")
def parse():
    """Function: a command line -> the configuration it asks for."""

    def ask(arguments):
        values = absl_flags.FlagValues()
        flags.define_config(values)
        values(["command", *arguments])
        return flags.config_from_flags(values)

    return ask


@QUICK
@given(facts=st.sampled_from([config.DeiTConfig, *SECTIONS]).flatmap(_facts))
def test_flags_accept_what_their_fields_accept_and_nothing_else(parse, facts):
    def as_flag(name, value):
        if isinstance(value, bool):
            return f"--{name}" if value else f"--no{name}"
        if isinstance(value, tuple):
            return f"--{name}={','.join(map(repr, value))}"
        return f"--{name}={value}"

    def by_hand():
        names = [field.name for field in dataclasses.fields(config.DeiTConfig)]
        network = {name: value for name, value in facts.items() if name in names}
        sections = {
            section: cls(
                **{f.name: facts[f.name] for f in dataclasses.fields(cls) if f.name in facts}
            )
            for section, cls in config.SECTIONS.items()
        }
        return config.Config("deit", config.network("deit", **network), **sections)

    by_flags = None
    with contextlib.suppress(absl_flags.Error):  # what absl itself refuses, it says
        by_flags = _accepted(
            lambda: parse(["--model=deit", *itertools.starmap(as_flag, facts.items())])
        )
    assert by_flags == _accepted(by_hand)


@QUICK
@given(words=st.lists(st.text(st.characters(codec="utf-8"), max_size=12), max_size=3))
@example(words=["--model=deit", "--", "--alpha"])
@example(words=["--model=deit", "--alpha="])
@example(words=["--model=deit", "--mean=1,2"])
def test_any_words_are_parsed_or_refused(parse, words):
    # Words that read files or end the process are other tests' business.
    words = [w for w in words if not w.lstrip("-").startswith(("flagfile", "undefok"))]
    with contextlib.suppress(absl_flags.Error):
        _accepted(lambda: parse(words))
