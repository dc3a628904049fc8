"""From weights of others to a run, and on from there: convert, evaluate, fine-tune, distil."""

import dataclasses
import json

import keras
import numpy as np
import pytest
import safetensors.numpy
import tensorflow as tf

from deit_tf import (
    checkpoint,
    config,
    convert,
    dataset,
    distiller,
    evaluate,
    model,
    optimizer,
    rundir,
    source,
    torch_weights,
    train,
    weights,
)

TEACHER = config.network("regnety_tiny", num_classes=10, depth=2, initial_width=16, slope=16)


@pytest.fixture(scope="module")
def given(tmp_path_factory, digits_config):
    """A file of weights in official names, names of its classes, and its network's facts."""
    folder = tmp_path_factory.mktemp("given")
    facts = digits_config().network
    network = checkpoint.build_network(facts)
    tensors = {}
    for path, value in weights.of(network).items():
        value = value + 0.05 * np.random.RandomState(len(tensors)).standard_normal(value.shape)
        value = value.transpose(3, 2, 0, 1) if value.ndim == 4 else value
        value = value.T if value.ndim == 2 else value
        name = torch_weights.official_name(path)
        tensors[name] = np.ascontiguousarray(value.astype(np.float32))
    safetensors.numpy.save_file(tensors, folder / "digits.safetensors")
    (folder / "names.txt").write_text("\n".join(map(str, range(10))))
    return folder / "digits.safetensors", folder / "names.txt", dataclasses.asdict(facts)


@pytest.fixture(scope="module")
def converted(given, data_dir, tmp_path_factory):
    """The run directory that `convert` makes of it."""
    file, names, facts = given
    run = tmp_path_factory.mktemp("runs") / "converted"
    data = {"dataset": "digits", "data_dir": str(data_dir), "eval_split": "", "batch_size": 64}
    said = convert.convert(str(file), run, "deit", data, str(names), **facts)
    assert "distilled DeiT" in said
    return run


@pytest.fixture(scope="module")
def teacher(tmp_path_factory, digits_config):
    """The run directory of a teacher of a moment."""
    run = tmp_path_factory.mktemp("teacher")
    whole = dataclasses.replace(digits_config(), model="regnety_tiny", network=TEACHER)
    network = checkpoint.build_network(TEACHER)
    pair = distiller.Distiller(network)
    pair.compile(optimizer.build(whole.optimizer, 64, 21, network.trainable_variables))
    rundir.begin(run, whole, {}, list("0123456789"), list("0123456789"))
    checkpoint.Run(run).save(pair)
    return run


def test_convert_writes_a_run_directory_that_everything_takes(given, converted):
    assert {path.name for path in converted.iterdir()} == {"config.json", "network.weights.h5"}
    record = rundir.read_config(converted)
    assert record["facts"]["weights_sha256"] == rundir.digest(given[0])
    assert record["classes"] == record["labels"] == [str(i) for i in range(10)]
    image = np.random.RandomState(0).uniform(0, 255, (2, 32, 32, 3)).astype(np.float32)
    one, other = checkpoint.load(converted), checkpoint.load(given[0], model="deit", **given[2])
    np.testing.assert_array_equal(one(image)["dist"], other(image)["dist"])
    assert evaluate.evaluate(converted)["images"] == 397


def test_evaluate_takes_a_folder_after_convert(given, tmp_path):
    file, names, facts = given
    run = tmp_path / "run"
    (tmp_path / "run.part").mkdir()  # somebody's own
    convert.convert(str(file), run, "deit", {"batch_size": 5}, str(names), **facts)
    png = tf.io.encode_png(tf.zeros((32, 32, 3), tf.uint8)).numpy()
    for name in range(10):
        (tmp_path / f"images/val/{name}").mkdir(parents=True)
        (tmp_path / f"images/val/{name}/x.png").write_bytes(png)
    assert evaluate.evaluate(run, dataset=f"folder:{tmp_path / 'images'}")["images"] == 10
    assert sorted(path.name for path in tmp_path.iterdir()) == ["images", "run", "run.part"]


def test_convert_leaves_nothing_where_it_fails(given, tmp_path):
    file, names, facts = given
    with pytest.raises(config.InputError, match=r"of another shape .*: patch_embed"):
        convert.convert(
            str(file), tmp_path / "run", "deit", {}, str(names), **{**facts, "width": 64}
        )
    with pytest.raises(config.InputError, match="cannot be written"):
        convert.convert(str(file), "/proc/run", "deit", {}, str(names), **facts)
    assert not list(tmp_path.iterdir())


def _finetuning(digits_config, data_dir, init_from, network=None, **sections):
    """A configuration that starts from given weights."""
    run = config.RunConfig(init_from=str(init_from), jit=False, **sections.pop("run", {}))
    return digits_config(network=network, run=run, **sections)


@pytest.mark.parametrize("kind", ["run", "file"])
def test_eval_only_measures_the_start_and_writes_nothing(
    kind, given, converted, digits_config, data_dir, tmp_path
):
    init_from = converted if kind == "run" else given[0]
    facts = _finetuning(digits_config, data_dir, init_from)
    found = train.train(facts, tmp_path / "run", eval_only=True)["student"]
    assert found == evaluate.evaluate(converted)
    assert not (tmp_path / "run").exists()


def test_fine_tunes_at_another_resolution_with_distillation(
    converted, teacher, digits_config, data_dir, tmp_path
):
    distill = config.DistillConfig("hard", str(teacher), teacher_image_size=32)
    facts = _finetuning(
        digits_config,
        data_dir,
        converted,
        {"image_size": 48},
        distill=distill,
        run={"train_mode": False, "pos_embed_resize": "antialias"},
    )
    optimizing = dataclasses.replace(facts.optimizer, ema_decay=0.5)
    facts = dataclasses.replace(facts, optimizer=optimizing)
    start = train.train(facts, tmp_path / "run", eval_only=True)
    whole = train.train(facts, tmp_path / "run")
    assert start["student"] == _resized(converted, facts)  # the average, too, starts from there
    assert whole["teacher"] == start["teacher"]
    assert whole["student"] != start["student"]
    record = json.loads((tmp_path / "run" / "config.json").read_text())
    assert record["facts"]["init_from_sha256"] == rundir.digest(rundir.weights_path(converted))
    assert record["config"]["run"]["train_mode"] is False
    # Started again it is done; it does not begin anew from the weights of the start.
    assert train.train(facts, tmp_path / "run")["student"] == whole["student"]
    bare = dataclasses.replace(facts, run=dataclasses.replace(facts.run, init_from=""))
    assert train.train(bare, tmp_path / "run")["student"] == whole["student"]
    after = json.loads((tmp_path / "run" / "config.json").read_text())["facts"]
    assert after["init_from_sha256"] == record["facts"]["init_from_sha256"]
    elsewhere = dataclasses.replace(
        facts, run=dataclasses.replace(facts.run, init_from=str(teacher))
    )
    with pytest.raises(config.InputError, match=r"holds another run .init_from_sha256: "):
        train.train(elsewhere, tmp_path / "run")


def _resized(run, facts):
    """What a run's network measures at 48 pixels with its position embedding resized."""
    network, given = model.build_deit(facts.network), weights.of(checkpoint.load(run))
    weights.start(network, given, "run", same_classes=True, method="antialias")
    data = source.open_source(facts.data, training=False)
    return distiller.measure(network, dataset.eval_batches(data.eval, facts))


def test_other_classes_re_make_the_heads_even_if_as_many(
    converted, digits_config, data_dir, tmp_path, caplog
):
    path = tmp_path / "renamed"
    path.mkdir()
    record = json.loads((converted / "config.json").read_text())
    record["classes"] = record["classes"][::-1]
    (path / "config.json").write_text(json.dumps(record))
    (path / rundir.WEIGHTS).write_bytes((converted / rundir.WEIGHTS).read_bytes())
    facts = _finetuning(digits_config, data_dir, path)
    network = checkpoint.build_network(facts.network)
    fresh = weights.of(network)
    changes = checkpoint.start(network, facts.run, tuple(map(str, range(10))))
    assert changes == [f"{h} is new (10 classes before, 10 now)" for h in ("head", "head_dist")]
    np.testing.assert_array_equal(network.head.kernel, fresh["head/kernel"])
    given = weights.of(checkpoint.load(converted))
    np.testing.assert_array_equal(network.norm.gamma, given["norm/gamma"])


def test_another_normalisation_is_refused(converted, digits_config, data_dir):
    facts = _finetuning(digits_config, data_dir, converted, {"layer_norm_epsilon": 1e-12})
    with pytest.raises(config.InputError, match="with layer_norm_epsilon 1e-06, not 1e-12; give"):
        checkpoint.start(checkpoint.build_network(facts.network), facts.run, ())
    facts = _finetuning(digits_config, data_dir, converted, {"heads": 4})
    with pytest.raises(config.InputError, match="with heads 2, not 4; give --heads=2"):
        checkpoint.start(checkpoint.build_network(facts.network), facts.run, ())


def test_the_pages_example_runs(converted, monkeypatch, tmp_path):
    """What docs/python.md shows, with real arrays."""
    text = (rundir.pathlib.Path(__file__).parent.parent / "docs/python.md").read_text()
    code = text.split("```python\n")[1].split("```")[0]
    rng = np.random.RandomState(0)
    images = rng.uniform(0, 255, (4, 224, 224, 3)).astype(np.float32)
    monkeypatch.chdir(tmp_path)
    names = {"images": images, "labels": np.arange(4)}
    code = code.replace("runs/mine", str(converted)).replace("=10)", "=10, depth=1)")
    exec(compile(code, "docs/python.md", "exec"), names)
    assert names["probabilities"].shape == (4, 10)
    np.testing.assert_allclose(names["probabilities"].sum(axis=1), 1.0, atol=1e-5)
    assert isinstance(names["again"], keras.Model)
