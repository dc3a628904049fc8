"""What keeps a run, and a label bank, up to date while Keras' `fit` runs; SIGTERM ends it."""

import contextlib
import math
import signal
import threading
import time

import keras
from absl import logging

from deit_tf import devices, rundir
from deit_tf.config import InputError

_SECONDS_BETWEEN_CURVES = 60  # a drawing takes one


class SaveRun(keras.callbacks.Callback):
    """Saves step by step and epoch by epoch, as a `config.RunConfig` says.

    SIGTERM, where it listens, lets the step under way end on all machines, saves, and leaves with
    exit code 143.

    Args:
      run: a `checkpoint.Run`.
      config: a `config.RunConfig`.
      writes: whether this machine is the one that writes.
      bank: a `bank.Bank` that is written too, or None; what it heard is on the disk before a
        checkpoint is.

    Raises:
      InputError: it can no longer be written, or too many steps in a row were bad.
      SystemExit: SIGTERM was received; all is saved.
    """

    def __init__(self, run, config, writes=True, bank=None):
        super().__init__()
        self.run, self.facts, self.writes, self.bank = run, config, writes, bank
        self.drawn, self.asked = -math.inf, False

    @contextlib.contextmanager
    def listening(self):
        """Listens for SIGTERM while the block runs; in the main thread, which alone can."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        before = signal.signal(signal.SIGTERM, self._ask)
        try:
            yield
        finally:
            signal.signal(signal.SIGTERM, before)

    def on_train_end(self, logs=None):
        """Draws the whole of it."""
        if self.writes:
            with rundir.writing(self.run.path):
                self.run.draw_curves()

    def _ask(self, received, frame):
        """Notes that this machine is to stop."""
        self.asked = True

    def on_epoch_begin(self, epoch, logs=None):
        """Goes on with the means of an epoch that was left in the middle."""
        if self.run.means:
            self.model.train_means.put(self.run.means)
            self.run.means = None

    def on_train_batch_begin(self, batch, logs=None):
        """Tells the other machines, by the next step's sums, that this one is to stop."""
        if self.asked:
            self.model.leaving.assign(1)

    on_test_batch_begin = on_train_batch_begin

    def on_train_batch_end(self, batch, logs=None):
        """Saves within the epoch; stops after too many bad steps."""
        self.run.step = devices.number(self.model.position)
        self._look_at_bad_steps()
        every = self.facts.checkpoint_every_steps
        if devices.number(self.model.all_leave):
            self._leave()
        elif every and self.run.step % every == 0:
            self._save_within()

    def on_test_batch_end(self, batch, logs=None):
        """Leaves while an epoch's evaluation is under way, which then begins anew."""
        if devices.number(self.model.all_leave):
            self._leave()

    def on_epoch_end(self, epoch, logs=None):
        """Notes the epoch, saves and draws; the best is judged by val_fused_top1."""
        run, rate = self.run, float(self.model.optimizer.rate_at(self.run.step - 1))
        values = {name: float(value) for name, value in (logs or {}).items()}
        run.epoch, run.means = epoch + 1, None
        run.history.append({"epoch": epoch + 1, "step": run.step, "lr": rate, **values})
        if not self.writes:
            return
        with rundir.writing(self.run.path):
            if values["val_fused_top1"] > run.best:
                run.best = values["val_fused_top1"]
                run.save_best(self.model.evaluated)
            run.save(self.model)
            run.write_history()
            if time.monotonic() - self.drawn > _SECONDS_BETWEEN_CURVES:
                run.draw_curves()
                self.drawn = time.monotonic()

    def _look_at_bad_steps(self):
        """Warns of a bad step; raises InputError after too many in a row."""
        count, run = devices.number(self.model.bad_in_a_row), self.run
        if not count:
            return
        logging.warning("step %d left out: its loss or gradient is not finite", run.step - 1)
        if count >= self.facts.max_bad_steps:
            raise InputError(
                f"{count} steps in a row of {run.path}, up to step {run.step - 1}, had a loss or a"
                " gradient that is not finite, and were left out; look at the data, or train anew"
                " with a smaller --lr"
            )

    def _save_within(self):
        """Writes the state in the middle of an epoch."""
        if self.bank:
            self.bank.flush()
        if self.writes:
            self.run.means = self.model.train_means.take()
            with rundir.writing(self.run.path):
                self.run.save(self.model)
            self.run.means = None

    def _leave(self):
        """Saves, and ends the process."""
        self._save_within()
        logging.info("stopped by SIGTERM after step %d; started again it goes on", self.run.step)
        raise SystemExit(128 + signal.SIGTERM)


class KeepAnswers(keras.callbacks.Callback):
    """Writes down in a label bank what the teacher says; each machine what it says there.

    Args:
      bank: a `bank.Bank`.
      strategy: what shares the batches.
      writes: whether this machine is the one that joins what all have written.

    Raises:
      InputError: the bank can no longer be written.
    """

    def __init__(self, bank, strategy, writes=True):
        super().__init__()
        self.bank, self.strategy, self.writes = bank, strategy, writes

    def set_model(self, model):
        """Listens to the teacher."""
        super().set_model(model)
        model.lessons.heard = self.bank.hear

    def on_train_batch_end(self, batch, logs=None):
        """Writes what was heard."""
        self.bank.write()

    def on_epoch_end(self, epoch, logs=None):
        """Makes the epoch's file, once all machines have written their part of it."""
        self.bank.flush()
        devices.meet(self.strategy)
        unknown = self.bank.join(epoch) if self.writes else 0
        self.bank.leave(epoch)
        if unknown:
            logging.warning(
                "epoch %d is not whole in label bank %s: %d labels are from before it was named;"
                " python -m deit_tf.label_bank fill adds them",
                epoch + 1,
                self.bank.path,
                unknown,
            )
