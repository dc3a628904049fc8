import dataclasses
import json

import pytest

from deit_tf import config


def test_variants_are_the_papers():
    assert config.network("deit_tiny_patch16_224").width == 192
    assert config.network("deit_small_distilled_patch16_224").heads == 6
    large = config.network("deit_base_distilled_patch16_384")
    assert (large.image_size, large.patches, large.prefix_tokens) == (384, 576, 2)


def test_drop_path_grows_linearly_from_zero():
    rates = config.network("deit_tiny_patch16_224").drop_path_rates
    assert rates[0] == 0
    assert rates[11] == pytest.approx(0.1)
    assert rates[4] == pytest.approx(0.4 / 11)
    assert config.network("deit", depth=1).drop_path_rates == (0.0,)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: config.network("deit_tny_patch16_224"), "did you mean deit_tiny_patch16_224"),
        (lambda: config.network("deit", image_size=225), "225 is not a multiple of patch_size 16"),
        (lambda: config.network("deit", width=100), "width 100 is not a multiple of heads 3"),
        (lambda: config.network("deit", depth=0), "depth is 0; it must be at least 1"),
        (lambda: config.network("deit", mlp_ratio=0.001), "leaves no hidden layer at width 192"),
        (lambda: config.network("regnety_tiny", initial_width=3.0), "must be at least 8"),
        (lambda: config.RunConfig(seed=2**32), "it must be at most 4294967295"),
        (lambda: config.network("deit", depth=2.5), "depth is 2.5; it must be a whole number"),
        (lambda: config.network("deit", mlp_ratio=float("nan")), "must be a finite number"),
        (lambda: config.network("deit", distilled="yes"), "must be a bool"),
        (lambda: config.network("deit", std=(0.0, 1.0, 1.0)), "each above 0"),
        (lambda: config.network("deit", mean=(0.5, 0.5)), "must be three numbers"),
        (lambda: config.network("regnety_tiny", heads=3), "regnety_tiny has no heads"),
        (lambda: config.DistillConfig(distillation="hard"), "teacher is empty"),
        (lambda: config.DistillConfig(alpha=1.5), "alpha is 1.5; it must be at most 1"),
        (lambda: config.DistillConfig(tau=0.0), "tau is 0.0; it must be above 0"),
        (lambda: config.DistillConfig(distillation="firm"), "choose one of hard, soft, none"),
        (lambda: config.DataConfig(batch_size=0), "batch_size is 0; it must be at least 1"),
        (lambda: config.DataConfig(dataset=3), "dataset is 3; it must be a text"),
    ],
)
def test_refuses_in_one_line(make, words):
    with pytest.raises(config.InputError, match=words) as caught:
        make()
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("model", config.VARIANTS)
def test_survives_json(model):
    whole = config.Config(
        model,
        config.network(model, num_classes=7, mean=(0.1, 0.2, 0.3)),
        distill=config.DistillConfig(distillation="soft", teacher="runs/t", tau=3.0),
    )
    assert config.from_json(json.loads(json.dumps(config.to_json(whole)))) == whole


def test_refuses_json_it_does_not_know():
    stored = config.to_json(config.Config("deit", config.network("deit")))
    stored["data"]["colour"] = "blue"
    with pytest.raises(config.InputError, match="data has no colour"):
        config.from_json(stored)
    with pytest.raises(config.InputError, match="lacks model or network"):
        config.from_json({"model": "deit"})


def test_differences_name_the_facts_and_leave_the_free_ones_out():
    one = config.Config("deit", config.network("deit"))
    other = config.Config(
        "deit",
        config.network("deit", depth=3),
        data=config.DataConfig(data_dir="elsewhere", dataset="folder:moved", batch_size=64),
    )
    assert config.differences(one, other) == ["depth: 12 -> 3", "batch_size: 1024 -> 64"]
    regnet = config.Config("regnety_160", config.network("regnety_160"))
    assert config.differences(one, regnet) == ["model: deit -> regnety_160"]


def test_a_run_may_grow_longer_where_the_rate_does_not_depend_on_its_length():
    for kind, expected in (("constant", []), ("cosine", ["epochs: 300 -> 400"])):
        one, longer = (
            config.Config(
                "deit",
                config.network("deit"),
                optimizer=config.OptimizerConfig(epochs=epochs, lr_schedule=kind),
            )
            for epochs in (300, 400)
        )
        assert config.differences(one, longer) == expected
        assert config.differences(longer, one) == ["epochs: 400 -> 300"]


def test_what_is_free_is_known():
    # Everything else is what a run is. Whoever adds a field decides, and says so here.
    free = {
        field.name
        for section in config.SECTIONS.values()
        for field in dataclasses.fields(section)
        if field.metadata["free"]
    }
    assert free == {
        "accumulate",
        "checkpoint_every_steps",
        "data_dir",
        "dataset",
        "epochs",
        "init_from",
        "jit",
        "keep_checkpoints",
        "label_bank",
        "labels",
        "max_bad_steps",
        "replicas",
        "skip_bad_images",
        "strategy",
        "teacher",
    }


def test_every_fact_has_help_and_sections_share_no_name():
    names = []
    for section in config.SECTIONS.values():
        for field in dataclasses.fields(section):
            assert field.metadata["help"].endswith((".", ")"))
            names.append(field.name)
    families = (config.DeiTConfig, config.RegNetYConfig)
    names += {field.name for family in families for field in dataclasses.fields(family)}
    assert len(names) == len(set(names))


def test_the_recipe_of_the_paper_is_the_default():
    facts = config.AugmentConfig()
    assert (facts.crop_min_area, facts.crop_max_aspect, facts.flip_rate) == (0.08, 4 / 3, 0.5)
    assert (facts.auto_augment, facts.color_jitter) == ("rand-m9-mstd0.5-inc1", 0.0)
    assert (facts.erasing_rate, facts.repeats, facts.label_smoothing) == (0.25, 3, 0.1)
    assert (facts.mixup_alpha, facts.cutmix_alpha) == (0.8, 1.0)
    assert (facts.mix_rate, facts.cutmix_rate) == (1.0, 0.5)
    assert (facts.mix_mode, facts.mix_group) == ("batch", 64)


@pytest.mark.parametrize(
    ("facts", "workers", "words"),
    [
        ({}, 1, "batch_size 96 is not a multiple of mix_group 64; give --batch_size=128"),
        ({"mix_group": 32}, 2, "2 workers × mix_group 32; give --batch_size=128, or another"),
        (
            {"mix_rate": 0.0},
            5,
            "batch_size 96 is not a multiple of 5 workers; give --batch_size=100",
        ),
    ],
)
def test_batches_of_no_whole_groups_are_refused(facts, workers, words):
    whole = config.Config(
        "deit",
        config.network("deit"),
        data=config.DataConfig(batch_size=96),
        augment=config.AugmentConfig(**facts),
    )
    with pytest.raises(config.InputError) as caught:
        whole.check_groups(workers)
    assert words in str(caught.value)


def test_groups_that_fit_are_not():
    network, data = config.network("deit"), config.DataConfig(batch_size=96)
    for facts, workers in (({"mix_group": 32}, 3), ({"mixup_alpha": 0.0, "cutmix_alpha": 0.0}, 2)):
        config.Config(
            "deit", network, data=data, augment=config.AugmentConfig(**facts)
        ).check_groups(workers)
