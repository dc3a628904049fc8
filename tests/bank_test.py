"""The files of a label bank: what is written is read, and what is not whole is not there."""

import dataclasses
import json
import os
import resource

import numpy as np
import pytest

from deit_tf import bank, config, source

POSITIONS, CLASSES = 24, 10
FACTS = {"positions": POSITIONS, "num_classes": CLASSES, "bank_topk": 0, "seed": 0}


def _bank(folder, **changes):
    found = bank.Bank(folder, {**FACTS, **changes})
    found.begin()
    return found


def _labels(epoch, classes=CLASSES, k=1):
    return np.random.RandomState(epoch).randint(0, classes, (POSITIONS, k)).astype(np.int32)


def _fill(found, epoch, **facts):
    """Writes an epoch as a run does, eight positions a step."""
    labels = _labels(epoch, **facts)
    for first in range(0, POSITIONS, 8):
        found.hear(epoch * POSITIONS + first, labels[first : first + 8])
        found.write()
    found.flush()
    assert found.join(epoch) == 0
    found.leave(epoch)
    return labels


def test_reads_what_was_written(tmp_path):
    found = _bank(tmp_path / "bank")
    labels = _fill(found, 3)
    again = bank.Bank(tmp_path / "bank", FACTS)
    assert (again.epochs(), again.begun()) == ([3], [])
    assert again.missing(range(5)) == [0, 1, 2, 4]
    read = again.read(3, range(5, 20))["teacher_classes"]
    assert read.dtype == np.int32
    np.testing.assert_array_equal(read, labels[5:20])
    assert (again.read(2, range(4))["teacher_classes"] == -1).all()
    assert {path.name for path in (tmp_path / "bank").iterdir()} == {"bank.json", "epoch_00003.npy"}


@pytest.mark.parametrize(("classes", "size"), [(65_535, 2), (65_536, 4)])
def test_a_label_takes_two_bytes_or_four(tmp_path, classes, size):
    found = _bank(tmp_path, num_classes=classes)
    labels = np.full((POSITIONS, 1), classes - 1, np.int32)
    found.hear(0, labels)
    found.flush()
    assert found.join(0) == 0
    header = 128
    assert (tmp_path / "epoch_00000.npy").stat().st_size == header + POSITIONS * size + 32
    np.testing.assert_array_equal(found.read(0, range(POSITIONS))["teacher_classes"], labels)


def test_keeps_the_largest_probabilities(tmp_path):
    found = _bank(tmp_path, bank_topk=3)
    labels = _labels(0, k=3)
    probabilities = np.random.RandomState(1).uniform(size=(POSITIONS, 3)).astype(np.float16)
    found.hear(0, labels, probabilities)
    found.flush()
    assert found.join(0) == 0
    read = found.read(0, range(2, 9))
    np.testing.assert_array_equal(read["teacher_classes"], labels[2:9])
    np.testing.assert_array_equal(read["teacher_probabilities"], probabilities[2:9])


def test_parts_of_several_processes_make_an_epoch(tmp_path, monkeypatch):
    labels = _labels(0)
    for process, positions in enumerate((range(0, 8), range(16, 24), range(4, 12))):
        found = _bank(tmp_path)
        monkeypatch.setattr(bank.os, "getpid", lambda process=process: process)
        found.hear(positions.start, labels[positions.start : positions.stop])
        found.flush()
    assert len(list(tmp_path.glob("*.part"))) == 3
    assert found.begun() == [0]
    np.testing.assert_array_equal(np.flatnonzero(found.unknown(0)), range(12, 16))
    assert found.join(0) == 4
    assert found.missing([0]) == [0]
    found.hear(12, labels[12:16])
    found.flush()
    assert found.join(0) == 0
    np.testing.assert_array_equal(found.read(0, range(24))["teacher_classes"], labels)
    assert not list(tmp_path.glob("*.part"))


def test_a_row_that_is_written_in_part_is_not_known(tmp_path):
    found = _bank(tmp_path, bank_topk=3)
    found.hear(0, _labels(0, k=3), np.ones((POSITIONS, 3), np.float16))
    found.flush()
    (part,) = tmp_path.glob("*.part")
    content = part.read_bytes()
    row = len(content) // POSITIONS
    for kept in range(0, row, 2):  # a page, as a block of the disk, ends between two numbers
        part.write_bytes(content[: 5 * row + kept] + bytes(row - kept) + content[6 * row :])
        np.testing.assert_array_equal(np.flatnonzero(found.unknown(0)), [5])
    part.write_bytes(content[:-1])  # and one that ends too early
    np.testing.assert_array_equal(np.flatnonzero(found.unknown(0)), [POSITIONS - 1])


def _truncated(content):
    return content[:-40]


def _flipped(content):
    return content[:-40] + bytes([content[-40] ^ 1]) + content[-39:]


@pytest.mark.parametrize("damage", [_truncated, _flipped, lambda content: b""])
def test_a_damaged_file_is_found_and_filled_again(tmp_path, damage):
    found = _bank(tmp_path)
    labels = _fill(found, 0)
    path = tmp_path / "epoch_00000.npy"
    content = path.read_bytes()
    path.write_bytes(damage(content))
    again = bank.Bank(tmp_path, FACTS)
    assert again.missing([0]) == [0]
    assert (again.read(0, range(4))["teacher_classes"] == -1).all()
    np.testing.assert_array_equal(_fill(again, 0), labels)
    assert path.read_bytes() == content


def test_an_epoch_that_is_relied_on_must_not_go(tmp_path):
    found = _bank(tmp_path)
    _fill(found, 0)
    found.complete = True
    (tmp_path / "epoch_00000.npy").unlink()
    with pytest.raises(config.InputError, match=r"epoch 0 of .* is gone or damaged; start again"):
        found.read(0, range(4))


def test_refuses_the_labels_of_something_else(tmp_path):
    _bank(tmp_path)
    with pytest.raises(config.InputError) as caught:
        bank.Bank(tmp_path, {**FACTS, "seed": 1, "repeats": 3})
    assert "(seed: 0 -> 1; repeats: None -> 3)" in str(caught.value)


def test_another_may_begin_it_at_the_same_time(tmp_path):
    two = [bank.Bank(tmp_path / "bank", {**FACTS, "seed": seed}) for seed in (0, 0, 1)]
    (tmp_path / "bank").mkdir()
    (tmp_path / "bank" / "bank.json.elsewhere_7.part").write_text("{")  # is being written
    two[0].begin()
    two[1].begin()
    with pytest.raises(config.InputError, match=r"holds the labels of something else \(seed: 0"):
        two[2].begin()


def test_refuses_what_is_no_bank(tmp_path):
    with pytest.raises(config.InputError, match="there is no label bank"):
        bank.Bank(tmp_path / "none")
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(config.InputError, match=r"is no label bank: it has no bank\.json"):
        bank.Bank(tmp_path, FACTS)
    for text in ("{", "{}", "[]"):
        (tmp_path / "bank.json").write_text(text)
        with pytest.raises(config.InputError, match=r"bank\.json cannot be read"):
            bank.Bank(tmp_path, FACTS)


@pytest.mark.parametrize(
    ("room", "known", "says"),
    [(16, 8, "File too large"), (24, 12, "No space left")],
    ids=["nothing is written", "a part is written"],
)
def test_a_full_disk_is_said_and_loses_nothing(tmp_path, room, known, says):
    found = _bank(tmp_path)
    labels = _labels(0)
    found.hear(0, labels[:8])
    found.flush()
    found.hear(8, labels[8:])
    old = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (room, old[1]))  # no file grows beyond it
    try:
        with pytest.raises(config.InputError, match=rf"can no longer be written: .*{says}"):
            found.write()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, old)
    np.testing.assert_array_equal(np.flatnonzero(found.unknown(0)), range(known, POSITIONS))


def test_an_epoch_that_is_left_keeps_no_file_open(tmp_path):
    found = _bank(tmp_path)
    handles = len(os.listdir("/proc/self/fd"))
    found.leave(0)  # of which nothing was written
    for epoch in range(3):
        _fill(found, epoch)
    assert len(os.listdir("/proc/self/fd")) == handles


@pytest.fixture(scope="module")
def digits(data_dir):
    return source.open_source(config.DataConfig(data_dir=str(data_dir)))


def _fingerprint(digits, section="run", **changes):
    """The fingerprint of a run whose teacher is one of keras.applications, which needs no files."""
    distill = {"distillation": "hard", "teacher": "keras.applications:ResNet50"}
    sections = {"distill": distill, "data": {"batch_size": 64}}
    sections[section] = {**sections.get(section, {}), **changes}
    network = {"num_classes": 1000, **sections.pop("network", {})}
    facts = {name: config.SECTIONS[name](**values) for name, values in sections.items()}
    whole = config.Config("deit", config.network("deit", **network), **facts)
    steps = len(digits.train) // whole.data.batch_size
    names = tuple(labels_of_imagenet())
    data = source.dataclasses.replace(digits, classes=names)
    return bank.fingerprint(whole, data, steps, "float32", "CPU")


def labels_of_imagenet():
    from deit_tf import labels

    return labels.imagenet()


DECIDES = [
    ("run", {"seed": 1}),
    ("augment", {"repeats": 1}),
    ("augment", {"crop_min_area": 0.5}),
    ("augment", {"mix_group": 32}),
    ("augment", {"cutmix_alpha": 0.5}),
    ("data", {"train_split": "train[:50%]"}),
    ("data", {"skip_bad_images": True}),
    ("data", {"batch_size": 1024}),
    ("network", {"image_size": 192}),
    ("network", {"mean": (0.5, 0.5, 0.5)}),
    ("distill", {"teacher": "keras.applications:ResNet101"}),
    ("distill", {"teacher_image_size": 256}),
    ("distill", {"distillation": "soft", "bank_topk": 5}),
]
FREE = [
    ("augment", {"label_smoothing": 0.0}),
    ("optimizer", {"epochs": 30, "lr": 1.0}),
    ("network", {"width": 384, "heads": 6, "distilled": True, "drop_path_rate": 0.0}),
    ("distill", {"alpha": 0.9}),
    ("data", {"batch_size": 192}),  # as many images in an epoch
    ("run", {"accumulate": 2, "fusion": "softmax"}),
]


@pytest.mark.parametrize(("section", "changes"), DECIDES, ids=str)
def test_what_decides_is_in_the_fingerprint(digits, section, changes):
    assert _fingerprint(digits, section, **changes) != _fingerprint(digits)


@pytest.mark.parametrize(("section", "changes"), FREE, ids=str)
def test_what_does_not_decide_is_not(digits, section, changes):
    assert _fingerprint(digits, section, **changes) == _fingerprint(digits)


@pytest.mark.parametrize(
    "name",
    [
        "dataset",
        "classes_sha256",
        "train_images",
        "train_files_sha256",
        "records_sha256",
        "split_sha256",
    ],
)
def test_other_training_images_are_other_labels(digits, name):
    found, other = (
        _fingerprint(dataclasses.replace(digits, facts={**digits.facts, name: value}))
        for value in ("one", "other")
    )
    assert (found[name], other[name]) == ("one", "other")
    assert {**found, name: "other"} == other


def test_other_images_to_evaluate_on_are_not(digits):
    facts = {**digits.facts, "eval_images": 7, "eval_files_sha256": "other"}
    assert _fingerprint(dataclasses.replace(digits, facts=facts)) == _fingerprint(digits)


def test_a_fingerprint_is_plain_json_that_names_versions(digits):
    found = _fingerprint(digits)
    assert json.loads(json.dumps(found)) == found
    assert set(found["versions"]) == {"numpy", "scipy", "tensorflow", "keras-cv"}
    assert (found["device"], found["precision"]) == ("CPU", "float32")
