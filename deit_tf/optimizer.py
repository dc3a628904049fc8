"""AdamW as the paper uses it, with its schedule and its exclusions from weight decay."""

import keras

from deit_tf import schedule

_TOKENS = ("cls_token", "pos_embed")


def without_decay(variables, decay_dist_token):
    """The variables that weight decay leaves alone, as in the released code.

    Args:
      variables: a network's trainable variables.
      decay_dist_token: whether the distillation token is decayed (the released code does).

    Returns:
      A list: every vector (biases, norms), the class token, the position embedding and, unless it
      is decayed, the distillation token.
    """
    tokens = _TOKENS if decay_dist_token else (*_TOKENS, "dist_token")
    return [v for v in variables if len(v.shape) <= 1 or v.name in tokens]


def build(config, batch_size, steps_per_epoch, variables):
    """The optimizer of a run, built for these variables.

    Args:
      config: a `config.OptimizerConfig`.
      batch_size: images in a step over all replicas.
      steps_per_epoch: steps of an epoch.
      variables: the network's trainable variables.

    Returns:
      A `keras.optimizers.AdamW`. Its epsilon is PyTorch's default, 1e-8.

    Reference: Touvron et al. 2021, table 9.
    """
    rate = schedule.WarmupCosine(
        peak=schedule.peak_lr(config.lr, batch_size),
        warmup_lr=config.warmup_lr,
        min_lr=config.min_lr,
        warmup_steps=round(config.warmup_epochs * steps_per_epoch),
        total_steps=config.epochs * steps_per_epoch,
    )
    optimizer = keras.optimizers.AdamW(
        rate, weight_decay=config.weight_decay, beta_1=0.9, beta_2=0.999, epsilon=1e-8
    )
    excluded = without_decay(variables, config.decay_dist_token)
    optimizer.exclude_from_weight_decay(var_list=excluded)
    optimizer.build(variables)
    return optimizer
