"""One view of a training image: what is drawn for it, and what becomes of it.

`drawn` makes the decisions for some positions of an epoch, as arrays; `make` carries them out on
one image. So each decision can be looked at, and a view is a pure function of (seed, epoch,
position) and the image.
"""

import numpy as np
import tensorflow as tf

from deit_tf import augment, draws, mixing, policies, preprocess

_KEPT = ("keep", "own", "box")
_NOISE_SEED = 2**63 - 1  # the largest that TensorFlow takes


def drawn(config, epoch, positions):
    """Everything that is drawn for some positions of an epoch.

    Args:
      config: a `config.Config`.
      epoch: counted from 0.
      positions: a `range` of step 1, counted over the epoch.

    Returns:
      {name: array [B, ...]}; what the configuration does not ask for is left out.
    """
    facts, size, rates = config.augment, config.network.image_size, config.network.drop_path_rates

    def stream(name):
        return draws.key(config.run.seed, epoch, name)

    def numbers(name, count):
        return draws.uniform(stream(name), positions, count)

    found = {}
    found["sides"], found["corner"] = draws.crop(
        numbers("crop", draws.CROP_NUMBERS), facts.crop_min_area, facts.crop_max_aspect
    )
    if facts.flip_rate:
        found["flipped"] = numbers("flip", 1)[:, 0] < facts.flip_rate
    if facts.rotation_degrees or facts.shift_fraction:
        largest = (facts.rotation_degrees, *[facts.shift_fraction * size] * 2)
        spread = (2.0 * numbers("rotate_shift", 3) - 1.0) * largest
        found["rotate_shift"] = spread.astype(np.float32)
    chosen = [
        policy.draw(numbers(name, policy.numbers)) for name, policy in _policies(facts).items()
    ]
    if chosen:
        found["operations"], found["arguments"] = map(np.hstack, zip(*chosen, strict=True))
    if facts.erasing_rate:
        boxes = numbers("erasing", draws.ERASING_NUMBERS)
        found["erased"] = draws.erasing(boxes, facts.erasing_rate, size)
        noise = stream("noise") % _NOISE_SEED
        found["noise"] = np.array([(noise, position) for position in positions], np.int64)
    if any(rates):
        found["keep"] = draws.keep(numbers("keep", 2 * len(rates)), rates)
    if facts.mixes:
        found["own"], found["box"] = _mixed(facts, size, stream("mix"), np.array(positions))
    return found


def _policies(facts):
    """The policies that an image goes through, in their order."""
    found = {"auto_augment": policies.parse(facts.auto_augment)}
    if facts.color_jitter:
        found["color_jitter"] = policies.ColorJitter(facts.color_jitter)
    return {name: policy for name, policy in found.items() if policy}


def _mixed(facts, size, stream, positions):
    """What `draws.mix` draws: for a group, for two partners, or for each position."""
    group, i = np.divmod(positions, facts.mix_group)
    pairs = facts.mix_group // 2
    shared = {
        "batch": group,
        "pair": group * pairs + np.minimum(i, facts.mix_group - 1 - i),
        "element": positions,
    }[facts.mix_mode]
    first = shared.min()
    numbers = draws.uniform(stream, range(first, shared.max() + 1), draws.MIX_NUMBERS)
    return draws.mix(
        numbers[shared - first],
        size,
        facts.mixup_alpha,
        facts.cutmix_alpha,
        facts.mix_rate,
        facts.cutmix_rate,
    )


def make(image_bytes, label, found, config):
    """One training example, before it is mixed.

    Args:
      image_bytes: string scalar; see `preprocess.decode`.
      label: integer scalar.
      found: one row of what `drawn` answered, and perhaps of a teacher's answers.
      config: a `config.Config`.

    Returns:
      {"image": float32 [S, S, 3] in 0–255, "label": float32 [K]} and, where they are drawn,
      "keep": float32 [depth, 2], "own" and "box" as `mixing.mix` takes them; a teacher's answers
      stay as they are.
    """
    facts, network = config.augment, config.network
    image = preprocess.random_resized_crop(
        image_bytes, network.image_size, found["sides"], found["corner"], facts.crop_max_aspect
    )
    if "flipped" in found:
        image = augment.flip(image, found["flipped"])
    if "operations" in found:
        levels = [min(max(round(255 * mean), 0), 255) for mean in network.mean]
        fill = tf.constant(levels, tf.float32)
        image = augment.apply(image, found["operations"], found["arguments"], fill)
    if "rotate_shift" in found:
        image = augment.rotate_shift(image, *tf.unstack(found["rotate_shift"]))
    if "erased" in found:
        image = augment.erase(image, found["erased"], found["noise"], network.mean, network.std)
    label = mixing.smooth_labels(label, network.num_classes, facts.label_smoothing)
    rest = {name: found[name] for name in found if name in _KEPT or name.startswith("teacher_")}
    return {"image": image, "label": label, **rest}
