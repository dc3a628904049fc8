"""Where the class token and the distillation token look: attention rollout."""

from keras import ops


def rollout(network, image):
    """How much each patch has gone into the class token and into the distillation token.

    Heads are averaged; each block keeps half of a token (the residual path) and takes the other
    half as it attends; blocks are multiplied from the first to the last.

    Args:
      network: a `model.DeiT`.
      image: [B, S, S, 3], any dtype, 0–255.

    Returns:
      {"cls": float32 [B, S/P, S/P]} and, distilled, "dist": the same; patches row by row. A map
      sums to what the patches have of the token; the rest is the tokens' own.

    Reference: Abnar and Zuidema 2020, "Quantifying attention flow in transformers", section 3.
    """
    facts = network.config
    x = network.tokens(network.patch_embed(network.normalize(image)))  # [B, T, D]
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
