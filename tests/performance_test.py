"""docs/performance.md is what the results files give, and its calculation keeps its laws."""

import datetime
import itertools
import json
import pathlib
import shutil
import time

import numpy as np
import pytest

from benchmarks import blocks, cost, machine, pages, report, results
from deit_tf import bank
from deit_tf.config import InputError

ROOT = pathlib.Path(report.__file__).parent.parent
SECTIONS = [section.name for section in pages.SECTIONS]
# Round numbers, near those of DeiT-S and RegNetY-16GF, for arithmetic by hand.
ROUND = {
    "small": {"flops": 9e9, "parameters": 22e6},
    "teacher": {"flops": 32e9, "parameters": 84e6},
}


@pytest.fixture
def house(tmp_path):
    """A house of its own: results, and docs without pages."""
    shutil.copytree(results.FOLDER, tmp_path / "results")
    (tmp_path / "docs").mkdir()
    return tmp_path


@pytest.fixture
def run(house):
    """Runs the command there."""
    places = [f"--results_dir={house / 'results'}", f"--output_dir={house / 'docs'}"]
    return lambda *flags: report.main([*places, *flags])


@pytest.fixture
def made(house):
    """The pages as they ought to be there, without plots, which take seconds: {name: text}."""

    def made():
        found = report.render(report.load(house / "results"), house / "docs")
        return {path.name: text for path, text in found.items()}

    return made


def _change(path, change):
    """Rewrites a results file."""
    found = json.loads(path.read_text())
    change(found)
    path.write_text(json.dumps(found))


@pytest.fixture
def counted():
    return results.read(results.FOLDER / "operations.json")["networks"]


@pytest.fixture
def scripts(monkeypatch):
    """The benchmarks as commands see each other."""
    monkeypatch.syspath_prepend(ROOT / "benchmarks")


def test_the_pages_are_what_the_results_give():
    report.main(["--check"])


def test_the_page_shows_every_results_file_with_its_plot():
    page = (ROOT / "docs" / report.PAGE).read_text("utf-8")
    for name in SECTIONS:
        assert f"](performance/{name}.png)" in page
        assert (ROOT / "docs" / "performance" / f"{name}.png").stat().st_size < 150_000


def test_made_elsewhere_it_is_the_same_and_its_check_passes(house, run):
    readme = house / "README.md"
    readme.write_text("A <!-- performance:pipeline_ratio --><!-- end --> B")
    (house / "docs" / "ablation.md").write_text("# Ways to distil\n")  # the page links to it
    run()
    page = house / "docs" / report.PAGE
    assert page.read_text("utf-8") == (ROOT / "docs" / report.PAGE).read_text("utf-8")
    run("--check")
    readme.write_text("A <!-- performance:pipeline_ratio -->9.99<!-- end --> B")
    (house / "docs" / "performance" / "inference.png").unlink()
    with pytest.raises(SystemExit, match=r"^error: .*README\.md, .*inference\.png; run"):
        run("--check")
    assert "9.99" in readme.read_text()  # a check writes nothing


SAMPLES = {
    "train_step": lambda found: found["rows"][0]["engines"]["timm"]["images_per_second"],
    "train_step_growth": lambda found: found["rows"][0]["engines"]["deit_tf"]["images_per_second"],
    "input_pipeline": lambda found: found["images_per_second"]["timm"]["flip"],
    "label_bank": lambda found: found["engines"]["label bank"]["seconds"],
    "inference": lambda found: found["rows"][0]["engines"]["savedmodel"]["seconds"],
}


@pytest.mark.parametrize("name", SAMPLES)
def test_a_sample_that_changes_changes_the_page(name, house, made):
    before = made()

    def change(found):
        samples = SAMPLES[name](found)
        samples.sort()
        samples[len(samples) // 2] *= 1.01

    _change(house / "results" / f"{name}.json", change)
    assert made()["performance.md"] != before["performance.md"]


def test_a_figure_of_the_page_is_that_of_its_samples(house, made):
    def change(found):
        engines = found["rows"][0]["engines"]
        engines["deit_tf"]["images_per_second"] = [30.0, 10.0, 20.0, 40.0, 50.0]
        engines["timm"]["images_per_second"] = [10.0, 10.0, 10.0, 10.0, 10.0]

    _change(house / "results" / "train_step.json", change)
    page = made()["performance.md"]
    assert "| DeiT-Ti, no teacher, batch 32 | deit-tf | 30.0 (20.0–40.0) |" in page
    assert "| timm | 10.0 (10.0–10.0) | 3.00 (2.00–4.00) |" in page
    assert "faster than timm (DeiT-Ti, no teacher, batch 32: 3.00)" in page


@pytest.mark.parametrize(
    ("ratios", "said"),
    [
        ([1.1, 1.2, 1.3, 0.5], "not told apart"),
        ([1.1, 1.2, 1.3, 1.4, 0.5], "faster"),
        ([0.8, 0.9, 0.7, 0.6, 1.4], "slower"),
        ([1.0], "not told apart"),
    ],
)
def test_the_middle_half_of_the_turns_decides(ratios, said):
    assert results.verdict(ratios) == said


@pytest.mark.parametrize(
    ("value", "text"),
    [(0.0456, "0.0456"), (1.234, "1.23"), (99.96, "100"), (999.6, "1,000"), (12345.6, "12,346")],
)
def test_numbers_have_three_digits(value, text):
    assert results.number(value) == text


def test_raw_milliseconds_give_quartiles_and_old_files_do_without(house, made):
    assert "were not recorded, so there are no quartiles" in made()["performance.md"]

    def change(found):
        for one in found["measured"].values():
            one["milliseconds"] = [40.0, 50.0, 60.0]

    _change(house / "results" / "serving_load.json", change)
    page = made()["performance.md"]
    assert "| 50.0 (45.0–55.0) |" in page
    assert "no quartiles" not in page


def test_what_a_file_does_not_record_is_said(house, made):
    _change(house / "results" / "train_step.json", lambda found: found["versions"].pop("timm"))
    assert "timm not recorded" in made()["performance.md"]


def test_a_missing_file_says_how_it_is_made(house, made):
    for path in (house / "results").iterdir():
        path.unlink()
    page = made()["performance.md"]
    for script in ("train_step", "input_pipeline", "label_bank", "inference", "serving_load"):
        assert f"`python benchmarks/{script}.py --out=benchmarks/results/{script}.json`" in page
    assert "--growth --out=benchmarks/results/train_step_growth.json" in page
    assert "`python -m benchmarks.cost --out=benchmarks/results/operations.json`" in page
    assert "![" not in page


def test_without_measured_images_the_cost_says_so(house, made):
    (house / "results" / "input_pipeline.json").unlink()
    assert "How many cores that feeds is not known" in made()["performance.md"]


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("stray", "{}", "no benchmark writes it"),
        ("inference", "{", "cannot be read"),
        ("inference", "[]", "holds no JSON object"),
        ("operations", "5", "holds no JSON object"),
        ("inference", '{"rows": []}', "lacks cores, cpu, date, python, versions"),
    ],
)
def test_a_broken_file_is_one_line(name, content, says, house, run):
    (house / "results" / f"{name}.json").write_text(content)
    with pytest.raises(SystemExit) as error:
        run()
    assert str(error.value).startswith("error: ")
    assert name in str(error.value)
    assert says in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("name", SECTIONS)
@pytest.mark.parametrize("value", [{}, [], None, [{"model": "tiny"}], {"a": {"b": [0.0]}}])
def test_a_file_of_another_shape_is_one_line(name, value, house, run):
    def change(found):
        facts = {"date", "cpu", "cores", "python", "versions", "jpeg_bytes", "batch", "provider"}
        for key in set(found) - facts:
            found[key] = value

    _change(house / "results" / f"{name}.json", change)
    with pytest.raises(SystemExit, match=rf"^error: {name}\.json is not what .*$"):
        run()


@pytest.mark.parametrize("sample", [0.0, -1.0, float("nan"), float("inf"), "fast", None])
def test_samples_are_numbers_above_0(sample, house, run):
    def change(found):
        SAMPLES["inference"](found)[0] = sample

    _change(house / "results" / "inference.json", change)
    with pytest.raises(SystemExit, match=r"inference\.json is not what"):
        run()


def test_turns_that_do_not_match_are_refused(house, run):
    _change(house / "results" / "label_bank.json", lambda found: SAMPLES["label_bank"](found).pop())
    with pytest.raises(SystemExit, match=r"label_bank\.json is not what"):
        run()


def test_results_with_a_page_of_their_own_are_linked_where_it_is(house, made):
    assert "ablation.md" not in made()["performance.md"]
    (house / "docs" / "ablation.md").write_text("# Ablation\n")
    assert "](ablation.md)" in made()["performance.md"]


@pytest.mark.parametrize("name", blocks.BLOCKS)
def test_marked_blocks_of_other_pages_are_filled(name, house, made):
    readme = house / "README.md"
    readme.write_text(f"Before.\n<!-- performance:{name} -->old<!-- end -->\nAfter.\n")
    text = made()["README.md"]
    assert text.startswith("Before.\n<!-- performance:")
    assert text.endswith("<!-- end -->\nAfter.\n")
    assert "old" not in text
    readme.write_text(text)
    assert made()["README.md"] == text
    readme.write_text(text.replace("<!-- end -->", "1<!-- end -->"))
    assert made()["README.md"] == text


def test_what_a_block_quotes_stands_in_the_page(made):
    page = made()["performance.md"]
    files = report.load(results.FOLDER)
    for name, (source, make) in blocks.BLOCKS.items():
        cells = [cell.strip() for cell in make(files[source]).replace("\n", "|").split("|")]
        figures = [cell for cell in cells if cell[:1].isdigit()]
        assert figures
        for figure in figures:
            assert figure in page, f"{name}: {figure}"


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("<!-- performance:nothing --><!-- end -->", "no performance block nothing"),
        ("<!-- performance:inference -->", "no <!-- end -->"),
        ("<!-- performance:inference --> <!-- performance:pipeline --><!-- end -->", "no <!-- end"),
    ],
)
def test_a_block_that_is_wrong_is_one_line(text, says):
    with pytest.raises(InputError, match=says):
        blocks.fill(text, report.load(results.FOLDER), "README.md")


def test_a_block_whose_results_are_missing_is_one_line():
    with pytest.raises(InputError, match=r"inference needs inference\.json"):
        blocks.fill("<!-- performance:inference --><!-- end -->", {}, "README.md")


@pytest.mark.parametrize("student", cost.STUDENTS)
@pytest.mark.parametrize("accelerator", [cost.A100, cost.H100], ids=lambda each: each.name)
@pytest.mark.parametrize("way", cost.WAYS)
def test_hours_fall_with_gpus_and_no_gpu_does_more_than_one_alone(
    student, accelerator, way, counted
):
    plans = [cost.plan(counted, student, gpus, way, accelerator) for gpus in cost.GPUS]
    assert plans[0].efficiency == 1
    for fewer, more in itertools.pairwise(plans):
        assert more.hours < fewer.hours
        assert more.gpu_hours > fewer.gpu_hours
        assert 0 < more.efficiency < fewer.efficiency


@pytest.mark.parametrize("student", cost.STUDENTS)
@pytest.mark.parametrize("gpus", cost.GPUS)
def test_a_run_that_reads_a_bank_is_one_without_a_teacher_and_the_reading(student, gpus, counted):
    none, live, read = (cost.plan(counted, student, gpus, way).hours for way in cost.WAYS)
    assert read < live
    assert read == pytest.approx(none + cost.bank_bytes() / cost.READ / 3600, rel=1e-12)
    asked = counted["teacher"]["flops"] * cost.STEPS * cost.BATCH
    spent = asked / (cost.A100.peak * cost.USED * gpus * 3600)
    assert live == pytest.approx(none + spent, rel=1e-12)


def test_deit_small_on_eight_gpus_by_hand():
    # 3 × 9 + 32 = 59 GFLOP an image at 0.3 × 312 TFLOP/s: 0.63034 ms; 128 images: 80.684 ms.
    # The ring: 2 × 7/8 × 88 MB / 300 GB/s = 0.5133 ms. 1,251 × 300 steps of 81.197 ms: 8.4648 h.
    found = cost.plan(ROUND, "small", 8, "live")
    assert found.hours == pytest.approx(8.4648, rel=1e-4)
    assert found.gpu_hours == pytest.approx(67.718, rel=1e-4)
    assert found.efficiency == pytest.approx(80.684 / 81.197, rel=1e-4)
    assert found.images_per_second == pytest.approx(1024 / 0.081197, rel=1e-4)
    # 27 GFLOP: 36.923 ms a step, with the ring 37.436; 768.6 MB at 100 MB/s: 7.7 s.
    assert cost.plan(ROUND, "small", 8, "bank").hours == pytest.approx(3.9049, rel=1e-4)


def test_between_machines_the_ring_is_as_slow_as_the_network():
    assert cost.reduce_seconds(22e6, 1) == 0
    assert cost.reduce_seconds(22e6, 8) == pytest.approx(2 * 7 / 8 * 88e6 / 300e9)
    assert cost.reduce_seconds(22e6, 16) == pytest.approx(2 * 15 / 16 * 88e6 / 25e9)


def test_cores_make_images_as_fast_as_gpus_learn():
    found = cost.plan(ROUND, "small", 8, "bank")
    assert cost.cores(found, 200) == pytest.approx(1024 / 0.037436 / 200, rel=1e-4)
    hours = cost.feeding_hours(8, 200)
    assert hours == pytest.approx(1251 * 1024 * 300 / (16 * 8 * 200) / 3600)


def test_an_anchor_by_hand():
    # 1,281,167 × 300 images of 3 × 33.219 GFLOP in 53 hours on 8 GPUs of 125 TFLOP/s.
    found = cost.share({"base": {"flops": 33.219e9}}, cost.ANCHORS[0])
    assert found == pytest.approx(0.20075, rel=1e-4)


def test_a_bank_is_as_large_as_bank_py_writes_it(tmp_path):
    positions = cost.STEPS // cost.EPOCHS * cost.BATCH
    found = bank.Bank(tmp_path, {"positions": positions, "num_classes": 1000, "bank_topk": 0})
    found.begin()
    found.hear(0, np.full((positions, 1), 7, np.int32))
    found.flush()
    assert found.join(0) == 0
    size = (tmp_path / "epoch_00000.npy").stat().st_size
    assert cost.bank_bytes() == size * cost.EPOCHS


def test_the_counted_networks_are_the_papers(counted):
    million = {name: round(each["parameters"] / 1e6, 1) for name, each in counted.items()}
    assert million == {"teacher": 83.7, "tiny": 5.9, "small": 22.4, "base": 87.3}


def test_facts_are_all_that_a_results_file_must_say(tmp_path):
    path = tmp_path / "facts.json"
    path.write_text(json.dumps(machine.facts("numpy")))
    found = results.read(path)
    assert datetime.date.fromisoformat(found["date"]) <= datetime.date.today()
    assert found["versions"] == {"numpy": np.__version__}


def test_a_load_keeps_the_milliseconds_of_every_request(scripts):
    import serving_load

    found = serving_load.load(lambda: time.sleep(0.002), 2, 0.1)
    assert len(found["milliseconds"]) == found["requests"] > 0
    assert all(each >= 2 for each in found["milliseconds"])
    assert found["p50"] == pytest.approx(np.median(found["milliseconds"]), abs=0.06)


def test_an_engines_peak_memory_is_not_its_parents(tmp_path, scripts):
    import turns

    engine = tmp_path / "engine.py"
    engine.write_text(
        f"import sys\nsys.path.insert(0, {str(ROOT / 'benchmarks')!r})\n"
        "import mmap, turns\nheld, untouched = bytearray(2**26), mmap.mmap(-1, 2**30)\n"
        "turns.serve(lambda: None)\n"
    )
    parent = b"x" * 2**28
    found = turns.measure(engine, {"engine": None}, rounds=3, steps=2)["engine"]
    assert 2**26 < found["peak_bytes"] < len(parent)
    assert (len(found["seconds"]), len(found["all_seconds"])) == (3, 6)
