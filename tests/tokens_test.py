import keras
import numpy as np
import pytest
from scipy import special

from deit_tf import model, tokens

FACTS = {"image_size": 12, "patch_size": 4, "width": 8, "depth": 3, "heads": 2, "num_classes": 5}


@pytest.fixture
def network():
    """Function of fields that differ: a tiny DeiT whose tokens attend to some more than others."""

    def build(**changes):
        keras.utils.set_random_seed(0)
        built = model.build_deit("deit", **{**FACTS, "distilled": True, **changes})
        rng = np.random.RandomState(1)
        for weight in built.weights:
            weight.assign(rng.normal(0, 0.5, weight.shape) + ("gamma" in weight.path))
        return built

    return build


@pytest.fixture
def images():
    return np.random.RandomState(2).randint(0, 256, (4, 12, 12, 3)).astype(np.uint8)


def _by_hand(network, images):
    """NumPy's word: tokens before each block and after the last, and each block's attention."""
    facts = network.config
    of = {weight.path.split("/", 1)[1]: np.float64(weight.numpy()) for weight in network.weights}

    def norm(x, name):
        centred = x - x.mean(-1, keepdims=True)
        scaled = centred / np.sqrt(centred.var(-1, keepdims=True) + facts.layer_norm_epsilon)
        return scaled * of[f"{name}/gamma"] + of[f"{name}/beta"]

    def dense(x, name):
        return x @ of[f"{name}/kernel"] + of[f"{name}/bias"]

    pixels = (images / 255 - facts.mean) / facts.std
    patches = pixels.reshape(-1, 3, 4, 3, 4, 3).transpose(0, 1, 3, 2, 4, 5).reshape(-1, 9, 48)
    kernel = of["patch_embed/proj/kernel"].reshape(48, 8)
    names = ("cls_token", "dist_token")[: facts.prefix_tokens]
    first = [np.repeat(of[f"tokens/{name}"], len(images), 0) for name in names]
    x = np.concatenate([*first, patches @ kernel + of["patch_embed/proj/bias"]], 1)
    x = x + of["tokens/pos_embed"]
    states, weights = [x], []
    for i in range(facts.depth):
        block = f"blocks_{i}"
        qkv = dense(norm(x, f"{block}/norm1"), f"{block}/attn/qkv")
        q, k, v = qkv.reshape(len(x), -1, 3, 2, 4).transpose(2, 0, 3, 1, 4)
        weights.append(special.softmax(q @ k.swapaxes(-1, -2) / 2, axis=-1))
        mixed = (weights[-1] @ v).swapaxes(1, 2).reshape(x.shape)
        x = x + dense(mixed, f"{block}/attn/proj")
        hidden = dense(norm(x, f"{block}/norm2"), f"{block}/mlp/fc1")
        hidden = hidden * special.ndtr(hidden)
        x = x + dense(hidden, f"{block}/mlp/fc2")
        states.append(x)
    return [*states, norm(x, "norm")], weights


@pytest.mark.parametrize("distilled", [True, False])
def test_rollout_is_that_of_a_hand(distilled, network, images):
    built = network(distilled=distilled)
    joint = np.eye(9 + built.config.prefix_tokens)
    for weights in _by_hand(built, images)[1]:
        joint = (0.5 * weights.mean(1) + 0.5 * np.eye(joint.shape[-1])) @ joint
    np.testing.assert_allclose(joint.sum(-1), 1, rtol=1e-12)  # nothing is lost
    found = tokens.rollout(built, images)
    assert list(found) == (["cls", "dist"] if distilled else ["cls"])
    for i, heat in enumerate(found.values()):
        expected = joint[:, i, len(found) :].reshape(-1, 3, 3)
        assert expected.std() > 0.01  # the maps tell something
        np.testing.assert_allclose(heat, expected, rtol=1e-4, atol=1e-6)


def test_what_patches_and_tokens_have_is_all_of_a_token(network, images):
    for heat in tokens.rollout(network(), images).values():
        kept = 1 - keras.ops.convert_to_numpy(heat).sum((1, 2))
        assert np.all(kept > 0.5**3)  # half of it through each of three blocks, and what it gets
        assert np.all(kept < 1)
        assert np.all(keras.ops.convert_to_numpy(heat) > 0)


def _cosine(one, other):
    return (one * other).sum(-1) / np.sqrt((one**2).sum(-1) * (other**2).sum(-1))


def test_similarity_is_the_cosine_of_the_tokens_in_between(network, images):
    built = network()
    found = keras.ops.convert_to_numpy(tokens.similarity(built, images))
    assert (found.shape, found.dtype) == ((4, 5), np.float32)
    learned = _cosine(built.tokens.cls_token.numpy(), built.tokens.dist_token.numpy()).item()
    np.testing.assert_allclose(found[:, 0], learned, rtol=1e-5)
    for place, state in enumerate(_by_hand(built, images)[0][1:], start=1):
        np.testing.assert_allclose(found[:, place], _cosine(state[:, 0], state[:, 1]), atol=1e-5)
    assert np.all(found[:, 1:].std(0) > 1e-4)  # after a block it depends on the image


def test_tokens_that_begin_alike_stay_alike(network, images):
    built = network()
    layer = built.tokens
    layer.dist_token.assign(layer.cls_token)
    places = layer.pos_embed.numpy()
    places[:, 1] = places[:, 0]
    layer.pos_embed.assign(places)
    np.testing.assert_allclose(tokens.similarity(built, images), 1, atol=1e-5)


def test_the_learned_vectors_are_taken_without_their_positions(network, images):
    built = network()
    built.tokens.dist_token.assign(-built.tokens.cls_token)
    np.testing.assert_allclose(tokens.similarity(built, images)[:, 0], -1, atol=1e-6)


def test_similarity_is_float32_under_any_precision(network, images):
    keras.config.set_dtype_policy("mixed_bfloat16")
    found = tokens.similarity(network(), images)
    assert keras.backend.standardize_dtype(found.dtype) == "float32"


def test_layers_are_named_as_they_are_measured(network, images):
    built = network()
    assert tokens.layers_of(built) == ["learned", "1", "2", "3", "norm"]
    assert tokens.similarity(built, images).shape[1] == len(tokens.layers_of(built))
