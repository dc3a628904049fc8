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


RULED = [
    (cls, field)
    for cls in (*SECTIONS, *FAMILIES)
    for field in dataclasses.fields(cls)
    if any(field.metadata[name] is not None for name in ("choices", "at_least", "above", "at_most"))
]


def _outside(field):
    """Values of a field's type that its own rule forbids."""
    rule = field.metadata
    if rule["choices"]:
        return st.text(st.characters(codec="utf-8")).filter(lambda v: v not in rule["choices"])
    kinds = {int: st.integers, float: lambda low=None, high=None: st.floats(low, high, width=32)}
    some, found = kinds[field.type], []
    if rule["at_least"] is not None:
        found.append(some(None, rule["at_least"]).filter(lambda v: v < rule["at_least"]))
    if rule["above"] is not None:
        found.append(some(None, rule["above"]))
    if rule["at_most"] is not None:
        found.append(some(math.ceil(rule["at_most"])).filter(lambda v: v > rule["at_most"]))
    return st.one_of(found)


@pytest.mark.parametrize(("cls", "field"), RULED, ids=lambda each: getattr(each, "name", None))
@settings(QUICK, max_examples=15)
@given(data=st.data())
def test_a_value_out_of_range_is_refused_by_its_name(cls, field, data):
    value = data.draw(_outside(field))
    with pytest.raises(config.InputError) as caught:
        cls(**{field.name: value})
    said = str(caught.value)
    assert said.startswith((f"{field.name} is {value}; ", f"{field.name} is {value!r}; "))
    assert "\n" not in said


def _whole(model, network, sections):
    """The configuration of some facts, or None where they do not fit each other."""
    facts = {name: config.SECTIONS[name](**given) for name, given in sections.items()}
    return config.Config(model, config.network(model, **network), **facts)


def _tame_facts(cls, fields):
    tame = {f.name: _tame(f) for f in dataclasses.fields(cls) if f.name in fields}
    return st.fixed_dictionaries({}, optional=tame)


# Facts of which any values fit each other: free ones, and others.
LOOSE = {
    "data": ("data_dir", "train_split", "skip_bad_images", "batch_size", "crop_fraction"),
    "augment": ("flip_rate", "repeats", "mix_mode", "label_smoothing"),
    "distill": ("alpha", "tau", "soft_reduction", "teacher", "teacher_image_size"),
    "optimizer": ("epochs", "lr_schedule", "lr", "decay_dist_token", "min_lr"),
    "run": ("seed", "jit", "accumulate", "fusion", "keep_checkpoints"),
}
LOOSE_NETWORK = ("depth", "num_classes", "distilled", "drop_path_rate", "mean", "std")
WHOLE = st.builds(
    _whole,
    st.sampled_from(["deit", "deit_small_patch16_224"]),
    _tame_facts(config.DeiTConfig, LOOSE_NETWORK),
    st.fixed_dictionaries({n: _tame_facts(config.SECTIONS[n], f) for n, f in LOOSE.items()}),
)


@st.composite
def _neighbours(draw):
    """Two runs that differ in a few facts or in none, and the fields of these."""
    one = draw(WHOLE)
    section = draw(st.sampled_from(["network", *LOOSE]))
    facts = getattr(one, section)
    changes = draw(_tame_facts(type(facts), LOOSE.get(section, LOOSE_NETWORK)))
    other = dataclasses.replace(one, **{section: dataclasses.replace(facts, **changes)})
    after = getattr(other, section)
    changed = [
        field
        for field in dataclasses.fields(facts)
        if getattr(facts, field.name) != getattr(after, field.name)
    ]
    return one, other, changed


@QUICK
@given(_neighbours())
def test_differences_are_what_differs_and_is_not_free(pair):
    one, other, changed = pair
    found = {line.partition(":")[0] for line in config.differences(one, other)}
    bound = {field.name for field in changed if not field.metadata["free"]}
    assert found - {"epochs"} == bound
    assert ("epochs" in found) <= ("epochs" in {field.name for field in changed})
    assert config.differences(one, one) == []


@QUICK
@given(_neighbours())
def test_machines_are_of_one_run_where_they_differ_in_free_facts_alone(pair):
    one, other, changed = pair
    same = all(field.metadata["free"] is True for field in changed)
    assert (config.identity(one) == config.identity(other)) == same
    found = config.identity(one)
    assert json.loads(json.dumps(found)) == found


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


def _as_flag(name, value):
    """How a command line says a fact."""
    if isinstance(value, bool):
        return f"--{name}" if value else f"--no{name}"
    if isinstance(value, tuple):
        return f"--{name}={','.join(map(repr, value))}"
    return f"--{name}={value}"


@pytest.fixture(scope="module")
def parse():
    """Function: a command line -> the configuration it asks for."""

    def ask(arguments):
        values = absl_flags.FlagValues()
        flags.define_config(values)
        values(flags._unfolded(["command", *arguments]))
        return flags.config_from_flags(values)

    return ask


@QUICK
@given(facts=st.sampled_from([config.DeiTConfig, *SECTIONS]).flatmap(_facts))
def test_flags_accept_what_their_fields_accept_and_nothing_else(parse, facts):
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
            lambda: parse(["--model=deit", *itertools.starmap(_as_flag, facts.items())])
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


def _said(whole):
    """All facts of a run as flags, but for a teacher's constants that are not given."""
    sections = [getattr(whole, name) for name in ("network", *config.SECTIONS)]
    facts = {f.name: getattr(s, f.name) for s in sections for f in dataclasses.fields(s)}
    given = [(name, value) for name, value in facts.items() if value != ()]
    return [f"--model={whole.model}", *itertools.starmap(_as_flag, given)]


@QUICK
@given(whole=WHOLE, random=st.randoms())
def test_what_is_said_in_flags_is_the_run_in_any_order(parse, whole, random):
    said = _said(whole)
    random.shuffle(said)
    assert parse(said) == whole


@settings(QUICK, max_examples=50)
@given(whole=WHOLE, random=st.randoms())
def test_a_flagfile_says_the_same_between_comments(parse, tmp_path_factory, whole, random):
    lines = [*_said(whole), "# --depth=99", "// --seed=99", "", "   "]
    random.shuffle(lines)
    path = tmp_path_factory.mktemp("flags") / "some.flags"
    path.write_text("\n".join(lines), "utf-8")
    assert parse([f"--flagfile={path}"]) == whole


@settings(QUICK, max_examples=50)
@given(one=WHOLE, other=WHOLE)
def test_of_flags_that_are_said_again_the_last_ones_win(parse, tmp_path_factory, one, other):
    path = tmp_path_factory.mktemp("flags") / "one.flags"
    path.write_text("\n".join(_said(one)), "utf-8")
    assert parse([f"--flagfile={path}", *_said(other)]) == other
    assert parse([*_said(other), f"--flagfile={path}"]) == one
    assert parse([*_said(other), *_said(one)]) == one
