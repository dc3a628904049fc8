import os
import pathlib
import subprocess
import sys

import pytest

from deit_tf import config

CONFIGS = pathlib.Path(config.__file__).parent / "configs"
ASK = """
import json, sys
from deit_tf import config, flags
flags.define_config()
flags.run(lambda argv: print(json.dumps(config.to_json(flags.config_from_flags()))))
"""


ROOT = CONFIGS.parent.parent


def _ask(*arguments, cwd=ROOT):
    """What a command makes of its flags: (exit code, stdout, last line of stderr)."""
    answer = subprocess.run(
        [sys.executable, "-c", ASK, *arguments],
        cwd=cwd,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    return answer.returncode, answer.stdout, answer.stderr.strip().splitlines()


def _config(*arguments, cwd=ROOT):
    import json

    code, stdout, stderr = _ask(*arguments, cwd=cwd)
    assert code == 0, stderr
    return config.from_json(json.loads(stdout))


def test_defaults_are_the_rows_and_the_recipe():
    assert _config("--model=deit_small_patch16_224") == config.Config(
        "deit_small_patch16_224", config.network("deit_small_patch16_224")
    )


def test_flags_are_the_fields():
    whole = _config(
        "--model=deit_base_distilled_patch16_224",
        "--nodistilled",
        "--image_size=32",
        "--mean=0.5,0.5,0.5",
        "--lr=0.001",
        "--distillation=soft",
        "--teacher=runs/t",
        "--seed=7",
    )
    assert whole == config.Config(
        "deit_base_distilled_patch16_224",
        config.network(
            "deit_base_distilled_patch16_224",
            distilled=False,
            image_size=32,
            mean=(0.5, 0.5, 0.5),
        ),
        distill=config.DistillConfig(distillation="soft", teacher="runs/t"),
        optimizer=config.OptimizerConfig(lr=0.001),
        run=config.RunConfig(seed=7),
    )


@pytest.mark.parametrize("path", sorted(CONFIGS.glob("*.flags")), ids=lambda path: path.stem)
def test_flagfile_builds_and_says_what_to_expect(path):
    first = path.read_text().splitlines()[0]
    assert first.startswith("# ")
    assert "top-1" in first
    whole = _config(f"--flagfile={path}", "--teacher=runs/any")
    distilled = "distilled" in path.stem
    assert whole.network.distilled == distilled
    assert (whole.distill.distillation != "none") == distilled


def test_flagfiles_of_imagenet_are_the_papers():
    names = [
        f"deit_{size}{kind}" for size in ("tiny", "small", "base") for kind in ("", "_distilled")
    ]
    for name in [*names, "deit_base_distilled_1000ep"]:
        whole = _config(f"--flagfile={CONFIGS / name}.flags", "--teacher=runs/any")
        assert whole.data.dataset == "tfds:imagenet2012"
        assert whole.model == name.removesuffix("_1000ep") + "_patch16_224"
        assert whole.network == config.VARIANTS[whole.model]
        assert whole.data.batch_size == 1024
        assert whole.augment == config.AugmentConfig()  # whose defaults are the paper's recipe
        facts = whole.optimizer
        assert (facts.lr, facts.weight_decay, facts.warmup_epochs) == (5e-4, 0.05, 5.0)
        assert facts.epochs == (1000 if name.endswith("1000ep") else 300)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], "no model: give --model=NAME"),
        (["--model=deit_tny_patch16_224"], "did you mean deit_tiny_patch16_224"),
        (["--model=deit", "--alpha=2"], "alpha is 2.0; it must be at most 1"),
        (["--model=deit", "--image_size=30"], "image_size 30 is not a multiple of patch_size 16"),
        (["--model=regnety_tiny", "--heads=2"], "regnety_tiny has no heads"),
        (["--model=deit", "--distillation=hard"], "teacher is empty"),
        (["--model=deit", "alpha=1"], "'alpha=1' is not a flag"),
    ],
)
def test_refuses_in_one_line(arguments, words):
    code, stdout, stderr = _ask(*arguments)
    assert code == 1
    assert not stdout
    assert len(stderr) == 1
    assert stderr[0].startswith("error: ")
    assert words in stderr[0]


@pytest.mark.parametrize(
    ("argument", "words"),
    [
        ("--modle=deit", "Did you mean: model"),
        ("--distillation=firm", "<hard|soft|none>"),
        ("--mean=0.5;0.5", "give numbers with commas between"),
        ("--depth=many", "many"),
        ("--flagfile=none.flags", "there is no flagfile 'none.flags'; give a file, or the name"),
        ("--flagfile", "there is no flagfile ''"),
        (f"--flagfile={'x' * 300}", "there is no flagfile 'xxx"),
        ("--flagfile=~nobody-at-all/x", "there is no flagfile '~nobody-at-all/x'"),
        ("--flagfile=deit_tf", "there is no flagfile 'deit_tf'"),
    ],
)
def test_absl_refuses_what_is_no_flag(argument, words):
    code, _, stderr = _ask(argument)
    assert code == 1
    assert len(stderr) == 1
    assert stderr[0].startswith("error: ")
    assert words in stderr[0]


def test_debug_brings_the_traceback_back():
    _, _, stderr = _ask("--model=x", "--debug")
    assert stderr[0].startswith("Traceback")


@pytest.mark.parametrize(
    ("name", "classes", "batch_size", "peak", "epochs"),
    [
        ("finetune_384", 1000, 512, 5e-6, 30),
        ("finetune_384_distilled", 1000, 512, 5e-6, 30),
        ("transfer_cifar10", 10, 768, 0.01, 1000),
        ("transfer_cars", 196, 768, 0.01, 1000),
        ("transfer_flowers102", 102, 768, 0.01, 1000),
        ("transfer_cifar100", 100, 768, 5e-6, 1000),
        ("transfer_inat18", 8142, 768, 7.5e-5, 360),
        ("transfer_inat19", 1010, 768, 7.5e-5, 360),
    ],
)
def test_fine_tuning_is_as_published(name, classes, batch_size, peak, epochs):
    whole = _config(f"--flagfile={CONFIGS / name}.flags")
    assert whole.network.num_classes == classes
    assert whole.data.batch_size == batch_size
    assert whole.optimizer.epochs == epochs
    # The rate after scaling by the batch.
    assert whole.optimizer.lr * batch_size / 512 == pytest.approx(peak, rel=1e-6)
    assert whole.run.init_from
    assert (whole.optimizer.optimizer == "sgd") == (peak == 0.01)
    assert (whole.network.drop_path_rate == 0) == (peak == 0.01)
    assert whole.run.train_mode != name.startswith("finetune")
    assert whole.augment.mix_group == (32 if name.startswith("finetune") else 64)
    erased = 0.1 if "inat" in name else 0.0 if peak == 0.01 else 0.25
    assert whole.augment == config.AugmentConfig(
        erasing_rate=erased, mix_group=whole.augment.mix_group
    )


def test_every_flagfile_says_its_group_and_fits_it():
    for path in CONFIGS.glob("*.flags"):
        text = path.read_text()
        assert ("--mix_group=" in text) != ("--flagfile=" in text), path
        _config(f"--flagfile={path}", "--teacher=runs/any").check_groups()


@pytest.mark.parametrize("name", ["digits_teacher", "deit_tf/configs/digits_teacher.flags"])
def test_our_flagfiles_are_found_from_anywhere(name, tmp_path):
    here = _config(f"--flagfile={CONFIGS / 'digits_teacher.flags'}")
    assert _config("--flagfile", name, cwd=tmp_path) == here
    (tmp_path / "mine.flags").write_text(f"# Mine.\n--flagfile={name}\n\n--epochs=3\n")
    mine = _config("--flagfile=mine.flags", "--seed=5", cwd=tmp_path)
    assert mine.model == here.model
    assert (mine.optimizer.epochs, mine.run.seed) == (3, 5)
    lr = _config("--lr=1", f"--flagfile={name}", cwd=tmp_path).optimizer.lr
    assert lr == here.optimizer.lr  # what stands last counts


def test_a_file_of_that_name_comes_before_ours(tmp_path):
    (tmp_path / "digits_teacher").write_text("--model=deit")
    assert _config("--flagfile=digits_teacher", cwd=tmp_path).model == "deit"


def test_what_ours_names_is_ours_whatever_lies_here(tmp_path):
    (tmp_path / "digits_distilled").write_text("--model=deit\n--lr=0.5\n")
    name = "digits_distilled_finetune_48"
    here = _config(f"--flagfile={CONFIGS / name}.flags")
    assert _config(f"--flagfile={name}", cwd=tmp_path) == here


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"--flagfile=bad.flags", "bad.flags names itself"),
        (b"--model=\xff", "bad.flags cannot be read: 'utf-8' codec"),
        (b"--flagfile=other/digits_teacher", "there is no flagfile 'other/digits_teacher'"),
    ],
)
def test_a_bad_flagfile_is_refused_in_one_line(content, words, tmp_path):
    (tmp_path / "bad.flags").write_bytes(content)
    code, _, stderr = _ask("--flagfile=bad.flags", cwd=tmp_path)
    assert code == 1
    assert len(stderr) == 1
    assert words in stderr[0]
