"""DeiT: raw pixels in, a dictionary of logits out, always.

`build_deit` makes the network, `fuse` joins its two heads, `classifier` wraps both into one
tensor for a plain `compile` and `fit`.
"""

import dataclasses

import keras
from keras import ops

from deit_tf import config as configuration
from deit_tf import layers

FUSIONS = ("logits", "softmax")


@keras.saving.register_keras_serializable("deit_tf")
class DeiT(keras.Model):
    """Vision transformer with a class token and, distilled, a distillation token.

    Args:
      config: a `config.DeiTConfig`, or the dictionary of its fields.

    Reference: Touvron et al. 2021, section 4 and figure 2.
    """

    def __init__(self, config, **kwargs):
        # Keras would cast raw pixels to bfloat16 before Normalize sees them.
        super().__init__(**{"name": "deit", **kwargs, "autocast": False})
        if isinstance(config, dict):
            config = configuration.DeiTConfig(**config)
        self.config = config
        policy = {"dtype": self.dtype_policy}
        self.normalize = layers.Normalize(config.mean, config.std, name="normalize")
        self.patch_embed = layers.PatchEmbed(
            config.patch_size, config.width, name="patch_embed", **policy
        )
        self.tokens = layers.Tokens(config.distilled, name="tokens", **policy)
        self.blocks = [self._block(i) for i in range(config.depth)]
        self.norm = keras.layers.LayerNormalization(
            epsilon=config.layer_norm_epsilon, name="norm", **policy
        )
        self.head = self._head("head")
        self.head_dist = self._head("head_dist") if config.distilled else None

    def _block(self, i):
        """Block i of depth; its drop path rate grows linearly from 0 to the last block's."""
        facts = self.config
        return layers.Block(
            facts.width,
            facts.heads,
            facts.mlp_ratio,
            facts.drop_path_rates[i],
            facts.layer_norm_epsilon,
            dtype=self.dtype_policy,
            name=f"blocks_{i}",
        )

    def _head(self, name):
        """A linear classifier; float32, because losses and probabilities are."""
        return keras.layers.Dense(
            self.config.num_classes,
            kernel_initializer=keras.initializers.RandomNormal(stddev=0.02),
            dtype="float32",
            name=name,
        )

    def build(self, input_shape):
        """Makes all weights; the input's size is the configuration's."""
        facts = self.config
        side, patches = facts.image_size, facts.patches
        sequence = (None, patches + facts.prefix_tokens, facts.width)
        self.normalize.build((None, side, side, 3))
        self.patch_embed.build((None, side, side, 3))
        self.tokens.build((None, patches, facts.width))
        for layer in (*self.blocks, self.norm):
            layer.build(sequence)
        for head in (self.head, self.head_dist):
            if head is not None:
                head.build((None, facts.width))

    def encode(self, image, keep=None, training=None, first=None):
        """Tokens after the last LayerNorm.

        Args:
          image: [B, S, S, 3], any dtype, 0–255.
          keep: [B, depth, 2] of 0 and 1: which branch of which block runs for which image; None
            leaves it to Keras' own random numbers.
          training: whether branches are dropped.
          first: how many tokens are asked for, so that the last block leaves the others out; None
            is all.

        Returns:
          [B, T, D]: class token, distillation token (if any), patches; or [B, first, D].
        """
        x = self.tokens(self.patch_embed(self.normalize(image)))  # [B, T, D]
        for i, block in enumerate(self.blocks):
            asked = first if block is self.blocks[-1] else None
            kept = None if keep is None else keep[:, i]
            x = block(x, keep=kept, training=training, first=asked)
        return self.norm(x)

    def call(self, image, keep=None, training=None):
        """Logits of every head; for the arguments see `encode`.

        Returns:
          {"cls": float32 [B, K]} and, distilled, "dist": float32 [B, K].
        """
        # The heads read the class and the distillation token: a sixteenth of the work is saved.
        x = self.encode(image, keep=keep, training=training, first=self.config.prefix_tokens)
        logits = {"cls": self.head(x[:, 0])}
        if self.head_dist is not None:
            logits["dist"] = self.head_dist(x[:, 1])
        return logits

    def get_config(self):
        """Arguments that rebuild the model."""
        facts = dataclasses.asdict(self.config)
        base = super().get_config()
        return {"name": self.name, "dtype": base.get("dtype"), "config": facts}

    @classmethod
    def from_config(cls, config):
        """Rebuilds the model from what `get_config` gave."""
        return cls(**config)


def build_deit(model, **changes):
    """A DeiT with all its weights made.

    Args:
      model: a name from `config.VARIANTS`, or a `config.DeiTConfig`.
      **changes: fields that differ, as `num_classes=10`.

    Returns:
      A `DeiT`: image [B, S, S, 3], 0–255 -> {"cls": [B, K]} and, distilled, "dist": [B, K].

    Raises:
      config.InputError: unknown name or field, a value out of range, or no DeiT's name.
    """
    if isinstance(model, str):
        facts = configuration.network(model, **changes)
    else:
        facts = dataclasses.replace(model, **changes)
    if not isinstance(facts, configuration.DeiTConfig):
        raise configuration.InputError(f"model {model!r} is no DeiT")
    deit = DeiT(facts)
    deit.build((None, facts.image_size, facts.image_size, 3))
    return deit


def fuse(logits, fusion="logits"):
    """Both heads as one answer, whose softmax is the prediction.

    Args:
      logits: {"cls": float [B, K]} and perhaps "dist": float [B, K].
      fusion: "logits" takes the mean of the logits, as the released code and its published
        accuracies do; "softmax" the logarithm of the mean of the two softmaxes, the paper's text
        (section 4, "Classification with our approach"). The two can differ in the top class.

    Returns:
      float [B, K]; with one head, that head.

    Raises:
      config.InputError: another fusion.
    """
    if fusion not in FUSIONS:
        raise configuration.InputError(f"fusion is {fusion!r}; choose one of {', '.join(FUSIONS)}")
    if "dist" not in logits:
        return logits["cls"]
    cls, dist = logits["cls"], logits["dist"]
    if fusion == "logits":
        return (cls + dist) / 2.0
    both = ops.stack([ops.log_softmax(cls), ops.log_softmax(dist)])
    return ops.logsumexp(both, axis=0) - ops.log(2.0)


@keras.saving.register_keras_serializable("deit_tf")
class Fuse(keras.layers.Layer):
    """`fuse` as a layer.

    Args:
      fusion: see `fuse`.
    """

    def __init__(self, fusion="logits", **kwargs):
        super().__init__(**{**kwargs, "dtype": "float32"})
        self.fusion = fusion

    def build(self, input_shape):
        """Has no weights."""

    def call(self, logits):
        """Maps the dictionary of logits to [B, K]."""
        return fuse(logits, self.fusion)

    def get_config(self):
        """Arguments that rebuild the layer."""
        return {**super().get_config(), "fusion": self.fusion}


def classifier(model, fusion="logits", activation=None):
    """One fused tensor, for a plain `compile`, `fit` and `predict`.

    Args:
      model: a network, from `build_deit` or `checkpoint.load` (its weights are shared).
      fusion: see `fuse`.
      activation: None answers logits; "softmax" probabilities, as `sparse_categorical_crossentropy`
        by its name expects them.

    Returns:
      A `keras.Model`: image [B, S, S, 3], 0–255 -> float32 [B, K].

    Raises:
      config.InputError: another activation.
    """
    if activation not in (None, "softmax"):
        raise configuration.InputError(f"activation is {activation!r}; give None or 'softmax'")
    side = model.config.image_size
    image = keras.Input((side, side, 3), name="image")
    answer = Fuse(fusion, name="logits")(model(image))
    if activation:
        answer = keras.layers.Softmax(dtype="float32", name="probabilities")(answer)
    return keras.Model(image, answer, name="classifier")
