"""The parts of a DeiT, in `keras.ops` alone.

Weight paths follow the released checkpoint (`blocks_0/attn/qkv/kernel` is
`blocks.0.attn.qkv.weight`), so that a port is a rename. Initialisers are the released ones:
normal with deviation 0.02 for matrices and tokens (their truncation at ±2 cuts 100 deviations off,
so nothing; Keras' TruncatedNormal would cut at 2 deviations), PyTorch's default for the patches.
"""

import math

import keras
from keras import ops

_PACKAGE = "deit_tf"


def _normal():
    return keras.initializers.RandomNormal(stddev=0.02)


def gelu(x):
    """Gaussian error linear unit, exact: 0.5·x·(1 + erf(x / √2)).

    TensorFlow's own exact GELU lowers to `Erfc`, which has no counterpart in ONNX.
    """
    return 0.5 * x * (1.0 + ops.erf(x * math.sqrt(0.5)))


@keras.saving.register_keras_serializable(_PACKAGE)
class Normalize(keras.layers.Layer):
    """Raw pixels to what the network was trained on: (image / 255 - mean) / std.

    Computes in float32 under any precision: bfloat16 holds 8 bits, as many as a pixel has.

    Args:
      mean: three numbers, 0–1.
      std: three numbers, 0–1.
    """

    def __init__(self, mean, std, **kwargs):
        super().__init__(**{**kwargs, "dtype": "float32"})
        self.mean, self.std = tuple(mean), tuple(std)

    def build(self, input_shape):
        """Has no weights."""

    def call(self, image):
        """Maps [B, S, S, 3] of any dtype, 0–255, to float32 [B, S, S, 3]."""
        scale = [1.0 / (255.0 * std) for std in self.std]
        offset = [-mean / std for mean, std in zip(self.mean, self.std, strict=True)]
        return ops.cast(image, "float32") * ops.array(scale) + ops.array(offset)

    def compute_output_shape(self, input_shape):
        """Keeps the shape."""
        return input_shape

    def get_config(self):
        """Arguments that rebuild the layer."""
        return {**super().get_config(), "mean": self.mean, "std": self.std}


@keras.saving.register_keras_serializable(_PACKAGE)
class PatchEmbed(keras.layers.Layer):
    """Cuts the image into patches and embeds each: a convolution with stride P.

    Args:
      patch_size: P.
      width: D.
    """

    def __init__(self, patch_size, width, **kwargs):
        super().__init__(**kwargs)
        self.patch_size, self.width = patch_size, width
        bound = 1.0 / math.sqrt(3 * patch_size**2)  # PyTorch's default for a convolution
        uniform = keras.initializers.RandomUniform
        self.proj = keras.layers.Conv2D(
            width,
            patch_size,
            strides=patch_size,
            kernel_initializer=uniform(-bound, bound),
            bias_initializer=uniform(-bound, bound),
            dtype=self.dtype_policy,
            name="proj",
        )

    def build(self, input_shape):
        """Makes the weights."""
        self.proj.build(input_shape)

    def call(self, image):
        """Maps [B, S, S, 3] to [B, N, D], patches row by row."""
        x = self.proj(image)  # [B, S/P, S/P, D]
        return ops.reshape(x, (-1, x.shape[1] * x.shape[2], self.width))  # [B, N, D]

    def get_config(self):
        """Arguments that rebuild the layer."""
        return {
            **super().get_config(),
            "patch_size": self.patch_size,
            "width": self.width,
        }


@keras.saving.register_keras_serializable(_PACKAGE)
class Tokens(keras.layers.Layer):
    """Puts the class token and the distillation token first, and adds the position embedding.

    Args:
      distilled: whether there is a distillation token.
    """

    def __init__(self, distilled, **kwargs):
        super().__init__(**kwargs)
        self.distilled = distilled

    def build(self, input_shape):
        """Makes `cls_token`, `dist_token` and `pos_embed` (one position a token, both kinds)."""
        _, patches, width = input_shape
        names = ["cls_token", "dist_token"] if self.distilled else ["cls_token"]
        for name in names:
            weight = self.add_weight(shape=(1, 1, width), initializer=_normal(), name=name)
            setattr(self, name, weight)
        self.pos_embed = self.add_weight(
            shape=(1, patches + len(names), width),
            initializer=_normal(),
            name="pos_embed",
        )

    def call(self, x):
        """Maps patches [B, N, D] to tokens [B, T, D]."""
        first = [self.cls_token, self.dist_token] if self.distilled else [self.cls_token]
        shape = (ops.shape(x)[0], 1, x.shape[2])
        prefix = [ops.broadcast_to(ops.cast(token, x.dtype), shape) for token in first]
        return ops.concatenate([*prefix, x], axis=1) + self.pos_embed  # [B, T, D]

    def get_config(self):
        """Arguments that rebuild the layer."""
        return {**super().get_config(), "distilled": self.distilled}


@keras.saving.register_keras_serializable(_PACKAGE)
class Attention(keras.layers.Layer):
    """Multi-head self-attention with one matrix for queries, keys and values.

    Args:
      width: D.
      heads: H; divides D.
    """

    def __init__(self, width, heads, **kwargs):
        super().__init__(**kwargs)
        self.width, self.heads = width, heads
        dense = {"kernel_initializer": _normal(), "dtype": self.dtype_policy}
        self.qkv = keras.layers.Dense(3 * width, name="qkv", **dense)
        self.proj = keras.layers.Dense(width, name="proj", **dense)

    def build(self, input_shape):
        """Makes the weights."""
        self.qkv.build(input_shape)
        self.proj.build(input_shape)

    def call(self, x, first=None):
        """Maps tokens [B, T, D] to [B, T, D], or to the `first` of them alone."""
        query, key, value = self._split(x)
        if first is not None:
            query = query[:, :, :first]
        weights = ops.cast(self._weigh(query, key), x.dtype)
        mixed = ops.transpose(ops.matmul(weights, value), (0, 2, 1, 3))  # [B, T, H, D/H]
        return self.proj(ops.reshape(mixed, (-1, mixed.shape[1], self.width)))

    def weights_of(self, x):
        """What each token takes from each: tokens [B, T, D] to float32 [B, H, T, T]."""
        query, key, _ = self._split(x)
        return self._weigh(query, key)

    def _split(self, x):
        """Queries, keys and values, [B, H, T, D/H] each."""
        qkv = ops.reshape(self.qkv(x), (-1, x.shape[1], 3, self.heads, self.width // self.heads))
        return ops.unstack(ops.transpose(qkv, (2, 0, 3, 1, 4)))

    def _weigh(self, query, key):
        """What each query takes from each key, [B, H, T, T]; a row sums to 1."""
        scores = ops.matmul(query * query.shape[-1] ** -0.5, ops.swapaxes(key, -1, -2))
        # In float32 under any precision: bfloat16 scores made DeiT-B unstable.
        return ops.softmax(ops.cast(scores, "float32"))

    def get_config(self):
        """Arguments that rebuild the layer."""
        return {**super().get_config(), "width": self.width, "heads": self.heads}


@keras.saving.register_keras_serializable(_PACKAGE)
class Mlp(keras.layers.Layer):
    """Two dense layers with a GELU between.

    Args:
      width: D.
      hidden: width between the two.
    """

    def __init__(self, width, hidden, **kwargs):
        super().__init__(**kwargs)
        self.width, self.hidden = width, hidden
        dense = {"kernel_initializer": _normal(), "dtype": self.dtype_policy}
        self.fc1 = keras.layers.Dense(hidden, name="fc1", **dense)
        self.fc2 = keras.layers.Dense(width, name="fc2", **dense)

    def build(self, input_shape):
        """Makes the weights."""
        self.fc1.build(input_shape)
        self.fc2.build((*input_shape[:-1], self.hidden))

    def call(self, x):
        """Maps tokens [B, T, D] to [B, T, D]."""
        return self.fc2(gelu(self.fc1(x)))

    def get_config(self):
        """Arguments that rebuild the layer."""
        return {**super().get_config(), "width": self.width, "hidden": self.hidden}


@keras.saving.register_keras_serializable(_PACKAGE)
class DropPath(keras.layers.Layer):
    """Drops a branch for some images of a batch, in training, and scales up the others.

    Args:
      rate: probability that a branch is dropped, 0–1.

    Reference: Huang et al. 2016, "Deep networks with stochastic depth"; the released DeiT scales
    by 1 / (1 - rate) in training.
    """

    def __init__(self, rate, **kwargs):
        super().__init__(**kwargs)
        self.rate = rate
        self.seed_generator = keras.random.SeedGenerator() if rate else None

    def build(self, input_shape):
        """Has no weights."""

    def call(self, x, keep=None, training=None):
        """Keeps or drops the branch `x`.

        Args:
          x: [B, T, D].
          keep: [B] of 0 and 1, drawn with the batch; None draws by Keras' own random numbers.
          training: whether anything is dropped at all.

        Returns:
          [B, T, D].
        """
        if not training or not self.rate:
            return x
        if keep is None:
            draw = keras.random.uniform((ops.shape(x)[0],), seed=self.seed_generator)
            keep = draw >= self.rate
        scale = ops.cast(keep, "float32") / (1.0 - self.rate)
        return x * ops.cast(ops.reshape(scale, (-1, 1, 1)), x.dtype)

    def compute_output_shape(self, input_shape):
        """Keeps the shape."""
        return input_shape

    def get_config(self):
        """Arguments that rebuild the layer."""
        return {**super().get_config(), "rate": self.rate}


@keras.saving.register_keras_serializable(_PACKAGE)
class Block(keras.layers.Layer):
    """A transformer block: attention, then MLP, each on a normalised input and dropped as a branch.

    Args:
      width: D.
      heads: H.
      mlp_ratio: the MLP's hidden width over D.
      drop_path_rate: rate of both branches; they are dropped independently.
      layer_norm_epsilon: epsilon of both LayerNorms.
    """

    def __init__(self, width, heads, mlp_ratio, drop_path_rate, layer_norm_epsilon, **kwargs):
        super().__init__(**kwargs)
        self.arguments = {
            "width": width,
            "heads": heads,
            "mlp_ratio": mlp_ratio,
            "drop_path_rate": drop_path_rate,
            "layer_norm_epsilon": layer_norm_epsilon,
        }
        policy = {"dtype": self.dtype_policy}
        norm = {"epsilon": layer_norm_epsilon, **policy}
        self.norm1 = keras.layers.LayerNormalization(name="norm1", **norm)
        self.attn = Attention(width, heads, name="attn", **policy)
        self.norm2 = keras.layers.LayerNormalization(name="norm2", **norm)
        self.mlp = Mlp(width, int(width * mlp_ratio), name="mlp", **policy)
        self.drop_path1 = DropPath(drop_path_rate, name="drop_path1", **policy)
        self.drop_path2 = DropPath(drop_path_rate, name="drop_path2", **policy)

    def build(self, input_shape):
        """Makes the weights."""
        parts = (self.norm1, self.attn, self.drop_path1, self.norm2, self.mlp, self.drop_path2)
        for layer in parts:
            layer.build(input_shape)

    def call(self, x, keep=None, training=None, first=None):
        """Maps tokens [B, T, D] to [B, T, D].

        Args:
          x: [B, T, D].
          keep: [B, 2] of 0 and 1, one for each branch, or None (`DropPath`).
          training: whether branches are dropped.
          first: how many tokens are asked for; the others are looked at alone. None is all.

        Returns:
          [B, T, D], or [B, first, D].
        """
        keep1, keep2 = (None, None) if keep is None else (keep[:, 0], keep[:, 1])
        attended = self.attn(self.norm1(x), first=first)
        x = x if first is None else x[:, :first]
        x = x + self.drop_path1(attended, keep=keep1, training=training)
        return x + self.drop_path2(self.mlp(self.norm2(x)), keep=keep2, training=training)

    def get_config(self):
        """Arguments that rebuild the layer."""
        return {**super().get_config(), **self.arguments}
