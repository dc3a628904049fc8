"""What goes into the class token and into the distillation token, and how alike the two are.

For a network of `model.DeiT`; images are [B, S, S, 3], any dtype, 0–255.
"""

from keras import ops


def rollout(network, image):
    """How much each patch has gone into the class token and into the distillation token.

    Heads are averaged; each block keeps half of a token (the residual path) and takes the other
    half as it attends; blocks are multiplied from the first to the last.

    Args:
      network: a `model.DeiT`.
      image: [B, S, S, 3].

    Returns:
      {"cls": float32 [B, S/P, S/P]} and, distilled, "dist": the same; patches row by row. A map
      sums to what the patches have of the token; the rest is the tokens' own.

    Reference: Abnar and Zuidema 2020, "Quantifying attention flow in transformers", section 3.
    """
    facts = network.config
    x = _embedded(network, image)
    joint = ops.eye(x.shape[1])
    for block in network.blocks:
        weights = ops.mean(block.attn.weights_of(block.norm1(x)), axis=1)  # [B, T, T]
        joint = ops.matmul(0.5 * weights + 0.5 * ops.eye(x.shape[1]), joint)
        x = block(x)
    side = facts.image_size // facts.patch_size
    names = ("cls", "dist")[: facts.prefix_tokens]
    return {
        name: ops.reshape(joint[:, i, len(names) :], (-1, side, side))
        for i, name in enumerate(names)
    }


def similarity(network, image):
    """The cosine between class token and distillation token: learned, and layer by layer.

    Args:
      network: a distilled `model.DeiT`.
      image: [B, S, S, 3].

    Returns:
      float32 [B, depth + 2], -1 to 1, as `layers_of` names them: of the two learned vectors, before
      their positions are added, which is the same for all images; after each block; and after the
      last LayerNorm, which is what the heads read.

    Reference: Touvron et al. 2021, section 4; which vectors are meant: facebookresearch/deit,
    issue 111.
    """
    x = _embedded(network, image)
    learned = _cosine(network.tokens.cls_token, network.tokens.dist_token)  # [1, 1]
    found = [ops.broadcast_to(learned[:, 0], ops.shape(x)[:1])]
    for block in network.blocks:
        x = block(x, training=False, first=2 if block is network.blocks[-1] else None)
        found.append(_cosine(x[:, 0], x[:, 1]))
    last = network.norm(x)
    return ops.stack([*found, _cosine(last[:, 0], last[:, 1])], axis=1)


def layers_of(network):
    """Names of the places that `similarity` looks at: learned, 1 to depth, norm."""
    return ["learned", *map(str, range(1, network.config.depth + 1)), "norm"]


def _embedded(network, image):
    """What the first block takes, [B, T, D]."""
    return network.tokens(network.patch_embed(network.normalize(image)))


def _cosine(one, other):
    """The cosine between vectors [..., D], float32 [...]."""
    one, other = (ops.normalize(ops.cast(each, "float32")) for each in (one, other))
    return ops.sum(one * other, axis=-1)
