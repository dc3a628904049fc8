"""A teacher that is asked without a student: to fill a label bank, or to check one."""

import numpy as np
import tensorflow as tf

from deit_tf import bank, dataset, devices, lessons, readable, teacher


class Asking:
    """The views that a run would show, the teacher that it would ask, and the bank for its answers.

    Args:
      config: a `config.Config` with a label bank.
      data: its `source.Source`.
      machines: a `cluster.Cluster`.

    Attributes:
      bank: a `bank.Bank`.
      steps: of an epoch.

    Raises:
      InputError: something that was given does not fit.
    """

    def __init__(self, config, data, machines):
        self.config, self.data, self.machines = config, data, machines
        run, size = config.run, config.data.batch_size
        self.strategy = devices.strategy(run.strategy, run.replicas)
        devices.check_batch(size, self.strategy.num_replicas_in_sync, run.accumulate)
        precision = devices.set_precision(run.precision)
        self.steps = dataset.steps_per_epoch(data.train, size)
        self.bank = bank.open_bank(config, data, self.steps, precision, devices.kind())
        with self.strategy.scope():
            network = teacher.load_teacher(config.distill, config.network.image_size, run.jit)
        topk = config.distill.bank_topk
        self.lessons = lessons.Lessons(network, config.network.num_classes, topk)
        self.lessons.compile(run.jit, run.accumulate)
        self._step = tf.function(self._ask)

    def fill(self, epochs, bar):
        """Has the teacher answer what the bank does not know of some epochs.

        Args:
          epochs: list of epochs that are not whole.
          bar: a `progress.images_bar`.

        Raises:
          InputError: an image cannot be read, or the bank can no longer be written.
        """
        self.lessons.heard = self.bank.hear
        for epoch in epochs:
            first = self._first_unknown(epoch)
            bar.update(first * self.config.data.batch_size)
            for _ in self._answered(epoch * self.steps + first, (epoch + 1) * self.steps):
                self.bank.write()
                bar.update(self.config.data.batch_size)
            self.bank.flush()
            devices.meet(self.strategy)
            if self.machines.is_chief:
                self.bank.join(epoch)
            self.bank.leave(epoch)

    def _first_unknown(self, epoch):
        """The first step of an epoch of whose part for this machine not all is known."""
        unknown = self.bank.unknown(epoch).reshape(self.steps, self.machines.workers, -1)
        steps = unknown[:, self.machines.worker].any(axis=-1)
        return int(steps.argmax()) if steps.any() else self.steps

    def again(self, step):
        """What the teacher says of a step's views.

        Args:
          step: of the run.

        Returns:
          int32 [B, k], the classes.
        """
        heard = {}
        self.lessons.heard = lambda first, classes, *_: heard.update({first: classes})
        list(self._answered(step, step + 1))
        return np.concatenate([heard[first] for first in sorted(heard)])

    def _answered(self, first, end):
        """Asks about some steps of the run; gives the number of each when it is answered."""
        part = (self.machines.worker, self.machines.workers)
        batches = dataset.train_batches(self.data.train, self.config, first, *part).take(
            end - first
        )
        images = batches.map(lambda batch: {"image": batch["image"]})
        shared = devices.share(self.strategy, images)
        if shared is images:
            shared = self.strategy.experimental_distribute_dataset(images)

        def suspects():
            yield self.data.train, dataset.indices(self.data.train, self.config, at)

        at, found = first, iter(shared)
        for at in range(first, end):
            with readable.naming(suspects):
                self._step(next(found), tf.constant(at, tf.int64))
            yield at

    def _ask(self, batch, step):
        """Has each replica ask about its part of a batch."""
        self.strategy.run(lambda mine, at: self.lessons.ask(mine["image"], at), (batch, step))
