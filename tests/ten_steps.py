"""Ten steps of the whole recipe on the digits, with or without a planted fault.

`python ten_steps.py DATA OUT CASE...` is one worker of those that TF_CONFIG names; the chief writes
the weights of each case. `workers_test` trains the same on one machine and compares.
"""

import sys

import keras
import numpy as np
import tensorflow as tf

from deit_tf import checkpoint, cluster, config, dataset, devices, distiller, optimizer, source

STEPS, BATCH = 10, 56
STUDENT = config.network(
    "deit",
    num_classes=10,
    distilled=True,
    image_size=32,
    patch_size=8,
    width=32,
    depth=2,
    heads=2,
    drop_path_rate=0.3,
)
TEACHER = config.network("regnety_tiny", num_classes=10, depth=2)
OPTIMIZERS = {
    "sgd": {"optimizer": "sgd", "lr": 1.0},
    "adamw": {"optimizer": "adamw", "lr": 0.01, "clip_norm": 1.0},
}


class Doubled(optimizer.SGD):
    """A planted fault: gradients are doubled, as where they are summed where a mean is meant."""

    def update(self, gradients, variables, step, norm=None):
        super().update([2.0 * gradient for gradient in gradients], variables, step)


def masks_of_a_replica(batch):
    """A planted fault: both replicas drop the same paths, as where each draws by the same seed."""
    half = BATCH // 2
    return {**batch, "keep": tf.concat([batch["keep"][:half]] * 2, axis=0)}


def train(strategy, data_dir, case, worker=0, workers=1):
    """Weights before and after the ten steps.

    Args:
      strategy: what shares the batches.
      data_dir: where the digits are.
      case: a key of `OPTIMIZERS`, or one with a fault: "sgd doubled", "sgd slice", "sgd masks".
      worker: this one.
      workers: how many there are.
    """
    kind, _, fault = case.partition(" ")
    facts = config.OptimizerConfig(
        epochs=1, lr_schedule="constant", warmup_epochs=0.0, **OPTIMIZERS[kind]
    )
    data = config.DataConfig(data_dir=str(data_dir), batch_size=BATCH)
    whole = config.Config(
        "deit", STUDENT, data, config.AugmentConfig(mix_group=14), optimizer=facts
    )
    with strategy.scope():
        keras.utils.set_random_seed(1)
        teacher = checkpoint.build_network(TEACHER)
        keras.utils.set_random_seed(0)
        student = checkpoint.build_network(STUDENT)
        hard = config.DistillConfig(distillation="hard", teacher="given")
        pair = distiller.Distiller(student, hard, teacher)
        built = optimizer.build(facts, BATCH, STEPS, student.trainable_variables)
        if fault == "doubled":
            built = Doubled(1.0 * BATCH / 512, momentum=0.9, nesterov=True, l2=facts.weight_decay)
            built.build(student.trainable_variables)
            built.exclude_from_weight_decay(
                optimizer.without_decay(student.trainable_variables, facts.decay_dist_token)
            )
        pair.compile(built, accumulate=workers)  # workers work in micro-batches, too
    before = student.get_weights()
    part = 0 if fault == "slice" else worker
    records = source.open_source(data).train
    batches = dataset.train_batches(records, whole, worker=part, workers=workers)
    if fault == "masks":
        batches = batches.map(masks_of_a_replica)
    batches = devices.share(strategy, batches)
    pair.fit(batches, steps_per_epoch=STEPS, shuffle=False, verbose=0)
    return before, student.get_weights()


def main(data_dir, out, *cases):
    """Trains the cases one after the other."""
    here = cluster.find("multi_worker")
    strategy = devices.strategy("multi_worker")
    for case in cases:
        _, after = train(strategy, data_dir, case, here.worker, here.workers)
        if here.is_chief:
            np.savez(f"{out}/{case}.npz", *after)


if __name__ == "__main__":
    main(*sys.argv[1:])
