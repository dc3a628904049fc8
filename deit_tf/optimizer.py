"""AdamW as the paper uses it: schedule, exclusions from decay, clipping; the weights' average."""

import keras
import tensorflow as tf
from keras import ops

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


class _Updates:
    """What ours add to a Keras optimizer: `update`, in place of Keras' `apply`.

    Keras sums the gradients over replicas inside `apply`, where nobody can look at the sum before
    it is applied, and updates all replicas from one place, which cannot stand in a `tf.cond`. Here
    gradients come summed, and every replica updates its own copy, alike.

    Args:
      *args: Keras'.
      clip_norm: largest global norm of the gradient, summed over replicas; 0 is no limit. Keras'
        own `global_clipnorm` limits each replica's part: another update on every number of them.
      **kwargs: Keras'.
    """

    def __init__(self, *args, clip_norm=0.0, **kwargs):
        super().__init__(*args, **kwargs)
        self.clip_norm = clip_norm

    def rate_at(self, step):
        """The learning rate of a step, counted from 0; steps that were left out count."""
        schedule_of = self._learning_rate
        return schedule_of(step) if callable(schedule_of) else schedule_of

    def update(self, gradients, variables, step, norm=None):
        """One update; the caller counts it in `iterations`.

        Args:
          gradients: summed over replicas, one a variable.
          variables: those that the optimizer was built for.
          step: int64 [], the place in the schedule.
          norm: float32 [], the global norm of the gradients; None computes it where it is needed.
        """
        if self.clip_norm:
            gradients, _ = tf.clip_by_global_norm(gradients, self.clip_norm, norm)
        rate = self.rate_at(step)
        for gradient, variable in zip(gradients, variables, strict=True):
            if self.weight_decay and self._use_weight_decay(variable):
                self.assign_sub(variable, variable * self.weight_decay * rate)
            self.update_step(gradient, variable, rate)

    def apply(self, grads, trainable_variables=None):
        """Keras' way in, for a plain `fit`: sums over replicas, updates, counts."""
        variables = trainable_variables or self._trainable_variables
        if not self.built:
            self.build(variables)
        summed = tf.distribute.get_replica_context().all_reduce("SUM", list(grads))
        self.update(summed, variables, self.iterations)
        self.iterations.assign_add(1)


class AdamW(_Updates, keras.optimizers.AdamW):
    """Keras' AdamW, with `update` and `clip_norm`: w ← w - rate·decay·w, then Adam's."""


class SGD(_Updates, keras.optimizers.SGD):
    """PyTorch's SGD: momentum that holds the gradient, weight decay in it, `update`, `clip_norm`.

    Keras' own multiplies the rate into the momentum, so that a schedule reaches the weights late,
    and its weight decay is decoupled.

    Args:
      *args: Keras'.
      l2: weight decay, added to the gradient.
      **kwargs: Keras'.
    """

    def __init__(self, *args, l2=0.0, **kwargs):
        super().__init__(*args, **kwargs)
        self.l2, self._not_decayed = l2, ()

    def exclude_from_weight_decay(self, var_list):
        """Names the variables, after `build`, that are not decayed."""
        self._not_decayed = {self._get_variable_index(variable) for variable in var_list}

    def update_step(self, gradient, variable, learning_rate):
        """One variable's update: m ← momentum·m + g; w ← w - rate·(g + momentum·m)."""
        rate = ops.cast(learning_rate, variable.dtype)
        gradient = ops.cast(gradient, variable.dtype)
        index = self._get_variable_index(variable)
        if self.l2 and index not in self._not_decayed:
            gradient = gradient + self.l2 * variable
        if self.momentum:
            held = self.momentums[index]
            self.assign(held, self.momentum * held + gradient)
            gradient = gradient + self.momentum * held if self.nesterov else held
        self.assign_sub(variable, rate * gradient)


class Average:
    """The moving average of a network's weights, kept in a second network.

    After every update average ← decay · average + (1 - decay) · weight, batch statistics included,
    from the initial weights on: as in the released code. It is the same on all replicas.

    Args:
      network: the network that is trained.
      copy: another of the same facts; takes over the weights of `network`.
      decay: 0–1.
    """

    def __init__(self, network, copy, decay):
        self.network, self.decay = copy, decay
        copy.trainable = False
        copy.set_weights(network.get_weights())
        self._pairs = list(zip(copy.weights, network.weights, strict=True))

    def update(self):
        """One step of the average; called by every replica after its update."""
        for average, weight in self._pairs:
            average.assign(average + (1.0 - self.decay) * (weight - average))


def build(config, batch_size, steps_per_epoch, variables):
    """The optimizer of a run, built for these variables.

    Args:
      config: a `config.OptimizerConfig`.
      batch_size: images in a step over all replicas.
      steps_per_epoch: steps of an epoch.
      variables: the network's trainable variables.

    Returns:
      An `AdamW`, whose epsilon is PyTorch's default, 1e-8, or an `SGD`.

    Reference: Touvron et al. 2021, table 9.
    """
    rate = schedule.KINDS[config.lr_schedule](
        peak=schedule.peak_lr(config.lr, batch_size),
        warmup_lr=config.warmup_lr,
        min_lr=config.min_lr,
        warmup_steps=round(config.warmup_epochs * steps_per_epoch),
        total_steps=config.epochs * steps_per_epoch,
        epoch_steps=steps_per_epoch,
    )
    excluded = without_decay(variables, config.decay_dist_token)
    if config.optimizer == "sgd":
        momentum = {"momentum": config.momentum, "nesterov": config.momentum > 0}
        optimizer = SGD(rate, clip_norm=config.clip_norm, l2=config.weight_decay, **momentum)
        optimizer.build(variables)
        optimizer.exclude_from_weight_decay(var_list=excluded)
        return optimizer
    optimizer = AdamW(
        rate,
        clip_norm=config.clip_norm,
        weight_decay=config.weight_decay,
        beta_1=0.9,
        beta_2=0.999,
        epsilon=1e-8,
    )
    optimizer.exclude_from_weight_decay(var_list=excluded)
    optimizer.build(variables)
    return optimizer
