"""Teachers of every kind, as real files: what they answer is what their own library answers."""

import pathlib

import keras
import numpy as np
import pytest
import tensorflow as tf

from deit_tf import (
    checkpoint,
    config,
    distiller,
    foreign,
    model,
    optimizer,
    rundir,
    teacher,
    teacher_facts,
)

TINY = config.network("regnety_tiny", num_classes=3, depth=1)
NANO = {"num_classes": 3, "image_size": 16, "patch_size": 8, "width": 16, "depth": 1, "heads": 2}
GREY = {"teacher_mean": (0.5, 0.4, 0.3), "teacher_std": (0.2, 0.3, 0.4)}


def _image(side, count=2):
    return np.random.RandomState(0).uniform(0, 255, (count, side, side, 3)).astype(np.float32)


def _save_run(path, name, facts, fusion="logits"):
    whole = config.Config(name, facts, run=config.RunConfig(fusion=fusion))
    network = checkpoint.build_network(facts)
    pair = distiller.Distiller(network)
    pair.compile(optimizer.build(whole.optimizer, 8, 4, network.trainable_variables))
    rundir.begin(path, whole, {}, ["a", "b", "c"], ["A", "B", "C"])
    checkpoint.Run(path).save(pair)
    return network


def _named(name, **changes):
    return config.DistillConfig(distillation="hard", teacher=str(name), **changes)


@pytest.fixture
def taught_by(tmp_path):
    """The configuration of a distillation by a network that is saved in a run directory."""
    return _save_run(tmp_path, "regnety_tiny", TINY), _named(tmp_path)


def test_a_run_is_loaded_frozen(taught_by):
    network, facts = taught_by
    loaded = teacher.load_teacher(facts, 32)
    assert not loaded.trainable_variables
    expected = np.asarray(network(_image(32), training=False)["cls"])
    np.testing.assert_array_equal(np.asarray(loaded(_image(32), training=False)["cls"]), expected)


def test_is_known_by_its_digest(taught_by):
    _, facts = taught_by
    digest = rundir.digest(rundir.weights_path(facts.teacher))
    assert teacher_facts.facts(facts, ("a", "b", "c")) == {"teacher_sha256": digest}


def test_refuses_other_classes_and_another_order(taught_by):
    _, facts = taught_by
    for labels in (("a", "b", "d"), ("b", "a", "c")):
        with pytest.raises(config.InputError, match="are not the student's"):
            teacher_facts.facts(facts, labels)


def test_without_distillation_there_is_none():
    assert teacher.load_teacher(config.DistillConfig(), 32) is None
    assert teacher_facts.facts(config.DistillConfig(), ("a",)) == {}


def test_a_convolutional_teacher_sees_the_students_resolution_or_the_one_named(taught_by):
    network, facts = taught_by
    seen = teacher.load_teacher(facts, 48)(_image(48))["cls"]
    np.testing.assert_allclose(seen, network(_image(48), training=False)["cls"], atol=1e-6)
    named = teacher.load_teacher(_named(facts.teacher, teacher_image_size=32), 48)
    resized = tf.image.resize(_image(48), (32, 32), "bicubic", antialias=True)
    expected = network(resized, training=False)["cls"]
    np.testing.assert_allclose(named(_image(48))["cls"], expected, atol=1e-5)
    assert not np.allclose(seen, expected, atol=1e-3)


@pytest.mark.parametrize("fusion", ["logits", "softmax"])
def test_a_deit_sees_its_own_resolution_and_answers_with_both_heads(fusion, tmp_path):
    facts = config.network("deit", distilled=True, **NANO)
    network = _save_run(tmp_path, "deit", facts, fusion)
    loaded = teacher.load_teacher(_named(tmp_path), 32)
    assert loaded.config == teacher.Facts(32, 3)
    resized = tf.image.resize(_image(32), (16, 16), "bicubic", antialias=True)
    expected = model.fuse(network(resized, training=False), fusion)
    np.testing.assert_allclose(loaded(_image(32))["cls"], expected, atol=1e-5)
    with pytest.raises(
        config.InputError, match=r"teacher_image_size is 24, but .* takes 16 pixels"
    ):
        teacher.load_teacher(_named(tmp_path, teacher_image_size=24), 32)


def _keras_cv_backbone(kind, rescales):
    import keras_cv

    stack = {"stackwise_filters": [64, 64], "stackwise_blocks": [1, 1], "stackwise_strides": [1, 2]}
    if kind == "resnet":
        return keras_cv.models.ResNetBackbone(
            **stack, block_type="basic_block", include_rescaling=rescales
        )
    if kind == "densenet":
        return keras_cv.models.DenseNetBackbone(
            stackwise_num_repeats=[1, 1],
            growth_rate=8,
            compression_ratio=0.5,
            include_rescaling=rescales,
        )
    return keras_cv.models.EfficientNetV2Backbone(
        stackwise_kernel_sizes=[3],
        stackwise_num_repeats=[1],
        stackwise_input_filters=[16],
        stackwise_output_filters=[24],
        stackwise_expansion_ratios=[1],
        stackwise_squeeze_and_excite_ratios=[0.25],
        stackwise_strides=[2],
        stackwise_conv_types=["unfused"],
        width_coefficient=1.0,
        depth_coefficient=1.0,
        include_rescaling=rescales,
    )


@pytest.mark.parametrize(
    ("kind", "rescales"), [("resnet", True), ("resnet", False), ("densenet", True), ("effv2", True)]
)
def test_a_keras_cv_preset_with_its_own_rescaling(kind, rescales, tmp_path):
    import keras_cv
    from keras_cv.src.utils import preset_utils

    network = keras_cv.models.ImageClassifier(_keras_cv_backbone(kind, rescales), num_classes=3)
    preset_utils.save_to_preset(network, str(tmp_path))
    thirds = {"teacher_mean": (0.0,) * 3, "teacher_std": (1.0,) * 3}
    facts = _named(f"keras_cv:{tmp_path}", **({} if rescales else thirds))
    with pytest.raises(config.InputError, match=r"own normalisation|how its pixels are normalised"):
        teacher_facts.facts(_named(f"keras_cv:{tmp_path}", **(thirds if rescales else {})), "abc")
    assert list(teacher_facts.facts(facts, "abc")) == ["teacher_sha256"]
    loaded = teacher.load_teacher(facts, 32)
    image = _image(32)
    expected = network(image if rescales else image / 255.0, training=False)
    assert loaded.probabilities
    assert not loaded.trainable_variables
    np.testing.assert_allclose(keras.ops.softmax(loaded(image)["cls"]), expected, atol=1e-6)


def test_a_keras_cv_preset_without_a_classifier_is_refused(tmp_path):
    from keras_cv.src.utils import preset_utils

    preset_utils.save_to_preset(_keras_cv_backbone("resnet", True), str(tmp_path))
    with pytest.raises(config.InputError, match="is no preset of a classifier that says"):
        teacher.load_teacher(_named(f"keras_cv:{tmp_path}"), 32)


def test_an_application_sees_its_own_size_where_an_image_is_too_small():
    assert foreign.open_application("MobileNetV2", weights=None, image_size=20).image_size == 224


@pytest.mark.parametrize("side", [224, 96])
def test_an_application_preprocesses_for_itself_at_any_size(side):
    opened = foreign.open_application("MobileNetV2", weights=None, image_size=side)
    assert opened.image_size == side
    image = _image(side, 1)
    prepared = keras.applications.mobilenet_v2.preprocess_input(image.copy())
    expected = opened.network(prepared, training=False)
    found = teacher.Teacher(opened, side, side)
    assert not found.probabilities
    assert found.config.num_classes == 1000
    np.testing.assert_allclose(found(image)["cls"], expected, atol=1e-5)


def test_an_application_without_a_network_says_so(monkeypatch):
    monkeypatch.setenv("https_proxy", "http://127.0.0.1:9")
    if list(pathlib.Path.home().glob(".keras/models/mobilenet_v2*")):
        pytest.skip("its weights lie in Keras' cache")
    with pytest.raises(
        config.InputError, match=r"of keras.applications:MobileNetV2 cannot be down"
    ):
        foreign.open_application("MobileNetV2")


def test_networks_of_others_stay_in_float32(tmp_path):
    _someones_network(None).save(tmp_path / "net.keras")
    keras.config.set_dtype_policy("mixed_bfloat16")
    for opened in (
        foreign.open_application("MobileNetV2", weights=None, image_size=32),
        foreign.open_keras_file(tmp_path / "net.keras"),
    ):
        assert {layer.compute_dtype for layer in opened.network.layers} == {"float32"}
    assert keras.config.dtype_policy().name == "mixed_bfloat16"


def test_every_application_has_its_preprocessing():
    for name, made in vars(keras.applications).items():
        if name[0].isupper() and callable(made):
            assert callable(foreign._application_module(name).preprocess_input)
    with pytest.raises(config.InputError, match="'ResNet18'; did you mean ResNet"):
        foreign._application_module("ResNet18")


def test_an_application_knows_imagenets_classes_alone():
    with pytest.raises(config.InputError, match="the teacher has 1000 classes, the student 3"):
        teacher_facts.facts(_named("keras.applications:ResNet50"), "abc")


def _someones_network(activation, side=None):
    """A network of others: wants normalised pixels, shouts if it gets raw ones."""
    image = keras.Input((side, side, 3))
    x = keras.layers.Conv2D(4, 3, activation="tanh")(image)
    x = keras.layers.GlobalAveragePooling2D()(x)
    return keras.Model(image, keras.layers.Dense(3, activation=activation)(x))


@pytest.mark.parametrize("kind", ["keras", "saved_model"])
@pytest.mark.parametrize("activation", [None, "softmax"])
def test_files_of_others_are_normalised_as_told(kind, activation, tmp_path):
    network = _someones_network(activation)
    path = tmp_path / "net.keras" if kind == "keras" else tmp_path / "net"
    network.save(path) if kind == "keras" else network.export(path, verbose=False)
    loaded = teacher.load_teacher(_named(path, **GREY), 20)
    normalised = (_image(20) / 255.0 - GREY["teacher_mean"]) / GREY["teacher_std"]
    expected = network(normalised.astype(np.float32), training=False)
    found = loaded(_image(20))["cls"]
    found = keras.ops.softmax(found) if activation else found
    np.testing.assert_allclose(found, expected, atol=1e-5)
    with pytest.raises(config.InputError, match="does not say how its pixels are normalised"):
        teacher_facts.facts(_named(path), "abc")


@pytest.mark.parametrize("kind", ["keras", "saved_model"])
def test_files_of_others_with_a_fixed_size_see_that(kind, tmp_path):
    network = _someones_network(None, 12)
    path = tmp_path / "net.keras" if kind == "keras" else tmp_path / "net"
    network.save(path) if kind == "keras" else network.export(path, verbose=False)
    loaded = teacher.load_teacher(_named(path, **GREY), 20)
    resized = tf.image.resize(_image(20), (12, 12), "bicubic", antialias=True)
    normalised = (resized / 255.0 - GREY["teacher_mean"]) / GREY["teacher_std"]
    np.testing.assert_allclose(loaded(_image(20))["cls"], network(normalised), atol=1e-4)


@pytest.mark.parametrize("wrapped", [True, False])
def test_our_own_keras_files_normalise_for_themselves(wrapped, tmp_path):
    deit = model.build_deit("deit", distilled=True, **NANO)
    (model.classifier(deit) if wrapped else deit).save(tmp_path / "deit.keras")
    loaded = teacher.load_teacher(_named(tmp_path / "deit.keras"), 16)
    np.testing.assert_allclose(loaded(_image(16))["cls"], model.fuse(deit(_image(16))), atol=1e-6)
    with pytest.raises(config.InputError, match="has its own normalisation; leave teacher_mean"):
        teacher_facts.facts(_named(tmp_path / "deit.keras", **GREY), "abc")


def test_a_network_around_ours_is_another(tmp_path):
    deit = model.build_deit("deit", **NANO)
    image = keras.Input((16, 16, 3))
    scaled = keras.layers.Rescaling(255.0)(image)
    keras.Model(image, model.classifier(deit)(scaled)).save(tmp_path / "net.keras")
    with pytest.raises(config.InputError, match="does not say how its pixels are normalised"):
        teacher_facts.facts(_named(tmp_path / "net.keras"), "abc")


@pytest.mark.parametrize("dtype", [tf.bfloat16, tf.float16, tf.float32])
def test_sharp_probabilities_of_half_precision_are_known_as_such(dtype):
    for seed in range(20):
        logits = 3.0 * np.random.RandomState(seed).standard_normal((2, 1000))

        def answer(image, logits=logits):
            return tf.nn.softmax(tf.cast(logits, dtype))

        assert foreign.try_out(answer, _image(8), "net") == (1000, True)


class _Resizing(tf.Module):
    """A SavedModel that XLA cannot compile."""

    @tf.function(input_signature=[tf.TensorSpec([None, 8, 8, 3], name="image")])
    def __call__(self, image):
        image = tf.image.resize(image, (4, 4), "bicubic", antialias=True)
        return {"logits": tf.reduce_mean(image, axis=(1, 2))}


def test_a_teacher_that_xla_cannot_compile_asks_for_nojit(tmp_path):
    network = _Resizing()
    tf.saved_model.save(network, str(tmp_path), network.__call__)
    assert teacher.load_teacher(_named(tmp_path, **GREY), 8).config.num_classes == 3
    with pytest.raises(config.InputError, match=r"XLA cannot compile teacher .*; give --nojit"):
        teacher.load_teacher(_named(tmp_path, **GREY), 8, jit=True)


class _Signatures(tf.Module):
    """A SavedModel of others with raw integer pixels and several outputs."""

    def __init__(self, names):
        super().__init__()
        self.names = names
        self.scale = tf.Variable(2.0)

    @tf.function(input_signature=[tf.TensorSpec([None, None, None, 3], tf.uint8, name="pixels")])
    def pixels(self, pixels):
        mean = tf.reduce_mean(tf.cast(pixels, tf.float32), axis=(1, 2)) * self.scale
        return dict.fromkeys(self.names, mean)

    @tf.function(input_signature=[tf.TensorSpec([None], tf.string, name="image_bytes")])
    def from_bytes(self, image_bytes):
        return {"length": tf.strings.length(image_bytes)}


def _save_signatures(path, names):
    module = _Signatures(names)
    signatures = {"serving_default": module.from_bytes, "pixels": module.pixels}
    tf.saved_model.save(module, str(path), signatures)


def test_a_saved_model_teaches_by_the_signature_that_takes_images(tmp_path):
    _save_signatures(tmp_path / "good", ["features", "logits"])
    raw = {"teacher_mean": (0.0,) * 3, "teacher_std": (1 / 255,) * 3}
    loaded = teacher.load_teacher(_named(tmp_path / "good", **raw), 8)
    expected = 2 * np.round(_image(8)).mean(axis=(1, 2))
    np.testing.assert_allclose(loaded(_image(8))["cls"], expected, rtol=1e-5)
    _save_signatures(tmp_path / "bad", ["features", "scores"])
    with pytest.raises(config.InputError, match="one of them must be named logits"):
        teacher.load_teacher(_named(tmp_path / "bad", **raw), 8)
    several = _Signatures(["logits"])
    signatures = {"features": several.pixels, "predict": several.pixels}
    tf.saved_model.save(several, str(tmp_path / "several"), signatures)
    with pytest.raises(config.InputError, match="one of them must be named serving_default"):
        teacher.load_teacher(_named(tmp_path / "several", **raw), 8)


def test_refuses_what_cannot_teach(tmp_path):
    with pytest.raises(config.InputError, match="is nothing that can teach; give a run directory"):
        teacher_facts.facts(_named(tmp_path / "none"), "abc")
    (tmp_path / "cut.keras").write_bytes(b"PK")
    with pytest.raises(config.InputError, match=r"is no whole .keras file"):
        teacher_facts.facts(_named(tmp_path / "cut.keras"), "abc")
    (tmp_path / "cut").mkdir()
    (tmp_path / "cut/saved_model.pb").write_bytes(b"\x00cut")
    with pytest.raises(config.InputError, match="is no SavedModel that can be loaded here"):
        teacher.load_teacher(_named(tmp_path / "cut", **GREY), 8)
    image = keras.Input((8, 8, 3))
    keras.Model(image, keras.layers.Conv2D(2, 3)(image)).save(tmp_path / "map.keras")
    with pytest.raises(config.InputError, match=r"answers \(2, 6, 6, 2\), not \[B, K\]"):
        teacher.load_teacher(_named(tmp_path / "map.keras", **GREY), 8)


def test_constants_come_in_pairs_of_three():
    with pytest.raises(config.InputError, match="give both teacher_mean and teacher_std"):
        config.DistillConfig(teacher_mean=(0.5, 0.5, 0.5))
    with pytest.raises(config.InputError, match=r"teacher_std is .* must be three numbers"):
        config.DistillConfig(teacher_mean=(0.5,) * 3, teacher_std=(0.5, 0.0, 0.5))
