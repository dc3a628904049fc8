"""RegNetY, the family of the paper's teacher, from the generator's parameters.

Reference: Radosavovic et al. 2020, "Designing network design spaces". Layer names follow timm's
checkpoint (`s1_b1/conv1/conv/kernel` is `s1.b1.conv1.conv.weight`).
"""

import dataclasses
import itertools

import keras
import numpy as np
from keras import ops

from deit_tf import config as configuration
from deit_tf import layers

_PACKAGE = "deit_tf"
_QUANTUM = 8  # widths are multiples of 8, as in the original


def stages(config):
    """Widths and depths of the stages that the generator's parameters describe.

    Args:
      config: a `config.RegNetYConfig`.

    Returns:
      A list of (width, depth), one a stage.

    Reference: equations (2)–(4) of the RegNet paper; widths are then made multiples of the group.
    """
    linear = config.initial_width + config.slope * np.arange(config.depth)
    power = np.round(np.log(linear / config.initial_width) / np.log(config.multiplier))
    raw = config.initial_width * config.multiplier**power
    raw = (np.round(raw / _QUANTUM) * _QUANTUM).astype(int)
    found = []
    for width, blocks in itertools.groupby(raw.tolist()):
        group = min(config.group_width, width)
        found.append((round(width / group) * group, len(list(blocks))))
    return found


def _pad_for(kernel_size, strides):
    """Zeros that PyTorch puts around the image; `same` would pad bottom and right alone."""
    return kernel_size // 2 if strides > 1 else 0


@keras.saving.register_keras_serializable(_PACKAGE)
class ConvNorm(keras.layers.Layer):
    """Convolution without bias, batch normalisation, and perhaps a ReLU.

    Args:
      filters: channels out.
      kernel_size: side of the kernel, odd.
      strides: stride.
      groups: groups of the convolution.
      activation: whether a ReLU follows.
      zero_gamma: whether the scale starts at 0, so that a residual branch starts silent.
    """

    def __init__(
        self,
        filters,
        kernel_size=1,
        strides=1,
        groups=1,
        activation=True,
        zero_gamma=False,
        **kwargs,
    ):
        super().__init__(**kwargs)
        self.arguments = {
            "filters": filters,
            "kernel_size": kernel_size,
            "strides": strides,
            "groups": groups,
            "activation": activation,
            "zero_gamma": zero_gamma,
        }
        self.pad = _pad_for(kernel_size, strides)
        self.conv = keras.layers.Conv2D(
            filters,
            kernel_size,
            strides=strides,
            groups=groups,
            padding="valid" if self.pad else "same",
            use_bias=False,
            kernel_initializer=keras.initializers.VarianceScaling(
                2.0, mode="fan_out", distribution="untruncated_normal"
            ),
            dtype=self.dtype_policy,
            name="conv",
        )
        self.bn = keras.layers.BatchNormalization(
            momentum=0.9,
            epsilon=1e-5,
            gamma_initializer="zeros" if zero_gamma else "ones",
            dtype=self.dtype_policy,
            name="bn",
        )

    def build(self, input_shape):
        """Makes the weights."""
        self.conv.build(input_shape)
        self.bn.build((None, None, None, self.arguments["filters"]))

    def call(self, x, training=None):
        """Maps [B, h, w, C] to [B, h / strides, w / strides, filters]."""
        if self.pad:
            side = (self.pad, self.pad)
            x = ops.pad(x, ((0, 0), side, side, (0, 0)))
        x = self.bn(self.conv(x), training=training)
        return ops.relu(x) if self.arguments["activation"] else x

    def get_config(self):
        """Arguments that rebuild the layer."""
        return {**super().get_config(), **self.arguments}


@keras.saving.register_keras_serializable(_PACKAGE)
class SqueezeExcite(keras.layers.Layer):
    """Weighs channels by what their means say.

    Args:
      channels: C, in and out.
      squeeze: channels between.

    Reference: Hu et al. 2018, "Squeeze-and-excitation networks".
    """

    def __init__(self, channels, squeeze, **kwargs):
        super().__init__(**kwargs)
        self.channels, self.squeeze = channels, squeeze
        he = keras.initializers.VarianceScaling(
            2.0, mode="fan_out", distribution="untruncated_normal"
        )
        conv = {"kernel_size": 1, "kernel_initializer": he, "dtype": self.dtype_policy}
        self.fc1 = keras.layers.Conv2D(squeeze, name="fc1", **conv)
        self.fc2 = keras.layers.Conv2D(channels, name="fc2", **conv)

    def build(self, input_shape):
        """Makes the weights."""
        self.fc1.build((None, 1, 1, self.channels))
        self.fc2.build((None, 1, 1, self.squeeze))

    def call(self, x):
        """Maps [B, h, w, C] to [B, h, w, C]."""
        mean = ops.mean(x, axis=(1, 2), keepdims=True)  # [B, 1, 1, C]
        return x * ops.sigmoid(self.fc2(ops.relu(self.fc1(mean))))

    def get_config(self):
        """Arguments that rebuild the layer."""
        return {
            **super().get_config(),
            "channels": self.channels,
            "squeeze": self.squeeze,
        }


@keras.saving.register_keras_serializable(_PACKAGE)
class Bottleneck(keras.layers.Layer):
    """RegNet's residual block in its Y form (bottleneck ratio 1).

    Args:
      filters: channels out.
      strides: stride of the 3×3 convolution.
      groups: its groups.
      se_ratio: squeeze width over the block's *input* channels.
    """

    def __init__(self, filters, strides, groups, se_ratio, **kwargs):
        super().__init__(**kwargs)
        self.arguments = {
            "filters": filters,
            "strides": strides,
            "groups": groups,
            "se_ratio": se_ratio,
        }
        policy = {"dtype": self.dtype_policy}
        self.conv1 = ConvNorm(filters, name="conv1", **policy)
        self.conv2 = ConvNorm(filters, 3, strides, groups, name="conv2", **policy)
        self.conv3 = ConvNorm(filters, activation=False, zero_gamma=True, name="conv3", **policy)
        self.se = self.downsample = None

    def build(self, input_shape):
        """Makes the weights; the shortcut is a convolution where the shape changes."""
        channels, facts = input_shape[-1], self.arguments
        filters, policy = facts["filters"], {"dtype": self.dtype_policy}
        squeeze = max(round(channels * facts["se_ratio"]), 1)
        self.se = SqueezeExcite(filters, squeeze, name="se", **policy)
        if channels != filters or facts["strides"] > 1:
            self.downsample = ConvNorm(
                filters,
                1,
                facts["strides"],
                activation=False,
                name="downsample",
                **policy,
            )
            self.downsample.build(input_shape)
        wide = (None, None, None, filters)
        self.conv1.build(input_shape)
        for layer in (self.conv2, self.se, self.conv3):
            layer.build(wide)

    def call(self, x, training=None):
        """Maps [B, h, w, C] to [B, h / strides, w / strides, filters]."""
        shortcut = x
        if self.downsample is not None:
            shortcut = self.downsample(x, training=training)
        x = self.conv2(self.conv1(x, training=training), training=training)
        x = self.conv3(self.se(x), training=training)
        return ops.relu(x + shortcut)

    def get_config(self):
        """Arguments that rebuild the layer."""
        return {**super().get_config(), **self.arguments}


@keras.saving.register_keras_serializable(_PACKAGE)
class RegNetY(keras.Model):
    """RegNetY with its own normalisation of pixels.

    Args:
      config: a `config.RegNetYConfig`, or the dictionary of its fields.
    """

    def __init__(self, config, **kwargs):
        super().__init__(**{"name": "regnety", **kwargs, "autocast": False})
        if isinstance(config, dict):
            config = configuration.RegNetYConfig(**config)
        self.config = config
        policy = {"dtype": self.dtype_policy}
        self.normalize = layers.Normalize(config.mean, config.std, name="normalize")
        self.stem = ConvNorm(config.stem_width, 3, config.stem_stride, name="stem", **policy)
        self.blocks = [
            Bottleneck(
                width,
                strides=2 if j == 1 else 1,
                groups=width // min(config.group_width, width),
                se_ratio=config.se_ratio,
                name=f"s{s}_b{j}",
                **policy,
            )
            for s, (width, depth) in enumerate(stages(config), start=1)
            for j in range(1, depth + 1)
        ]
        self.head = keras.layers.Dense(
            config.num_classes,
            kernel_initializer=keras.initializers.RandomNormal(stddev=0.01),
            dtype="float32",
            name="head",
        )

    def build(self, input_shape):
        """Makes all weights."""
        self.normalize.build((None, None, None, 3))
        self.stem.build((None, None, None, 3))
        width = self.config.stem_width
        for block in self.blocks:
            block.build((None, None, None, width))
            width = block.arguments["filters"]
        self.head.build((None, width))

    def call(self, image, keep=None, training=None):
        """Logits of the only head.

        Args:
          image: [B, S, S, 3], any dtype, 0–255.
          keep: ignored: this network has no drop path. (Every network is called alike.)
          training: whether batch statistics are used and gathered.

        Returns:
          {"cls": float32 [B, K]}.
        """
        x = self.stem(self.normalize(image), training=training)
        for block in self.blocks:
            x = block(x, training=training)
        x = ops.mean(ops.cast(x, "float32"), axis=(1, 2))  # [B, width]
        return {"cls": self.head(x)}

    def get_config(self):
        """Arguments that rebuild the model."""
        base = super().get_config()
        facts = dataclasses.asdict(self.config)
        return {"name": self.name, "dtype": base.get("dtype"), "config": facts}

    @classmethod
    def from_config(cls, config):
        """Rebuilds the model from what `get_config` gave."""
        return cls(**config)


def build_regnety(config):
    """A RegNetY with all its weights made.

    Args:
      config: a `config.RegNetYConfig`.

    Returns:
      A `RegNetY`: image [B, S, S, 3], 0–255 -> {"cls": [B, K]}.
    """
    network = RegNetY(config)
    network.build((None, config.image_size, config.image_size, 3))
    return network
