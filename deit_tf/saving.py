"""What keeps a run directory up to date while Keras' `fit` runs, and lets SIGTERM end it."""

import contextlib
import math
import signal
import threading
import time

import keras
from absl import logging

from deit_tf import devices
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

    Raises:
      InputError: it can no longer be written, or too many steps in a row were bad.
      SystemExit: SIGTERM was received; all is saved.
    """

    def __init__(self, run, config, writes=True):
        super().__init__()
        self.run, self.facts, self.writes = run, config, writes
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
            with self.run.writing():
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
        with self.run.writing():
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
        if self.writes:
            self.run.means = self.model.train_means.take()
            with self.run.writing():
                self.run.save(self.model)
            self.run.means = None

    def _leave(self):
        """Saves, and ends the process."""
        self._save_within()
        logging.info("stopped by SIGTERM after step %d; started again it goes on", self.run.step)
        raise SystemExit(128 + signal.SIGTERM)
