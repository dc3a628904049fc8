"""A run from where it stands to its end: Keras' `fit`, its callbacks, and what can go wrong."""

import dataclasses
import json
import signal

import keras

from deit_tf import config as configuration
from deit_tf import dataset, devices, distiller, progress, readable, rundir, saving
from deit_tf.config import InputError

_WATCHED = 32  # evaluation images that TensorBoard hears of


class Images:
    """The batches of a run, as this machine and its replicas take them.

    Args:
      config: the `config.Config`.
      data: its `source.Source`.
      strategy: what shares the batches.
      machines: a `cluster.Cluster`.
      bank: a `bank.Bank` with the teacher's answers, or None.

    Attributes:
      steps: of an epoch.
      test_steps: of an evaluation.
    """

    def __init__(self, config, data, strategy, machines, bank=None):
        size, self.config, self.data = config.data.batch_size, config, data
        self.strategy, self.machines, self.bank = strategy, machines, bank
        self.part = (machines.worker, machines.workers)
        self.steps = dataset.steps_per_epoch(data.train, size)
        self.test_steps = dataset.eval_steps(data.eval, size)
        self.tests = self._share(dataset.eval_batches(data.eval, config, *self.part))

    def from_step(self, step):
        """The training batches from a step of the run on."""
        answers = self.bank and self.bank.read
        batches = dataset.train_batches(
            self.data.train, self.config, step, *self.part, answers=answers
        )
        return self._share(batches)

    def measure(self, network):
        """How well a network does on the evaluation images; see `distiller.measure`."""
        facts = (self.config.run.fusion, self.bar(), self.test_steps)
        with self.strategy.scope():
            return distiller.measure(network, self.tests, *facts)

    def watched(self):
        """The first evaluation images, float32 [n, S, S, 3] in 0–255."""
        records, config = self.data.eval, self.config
        some = dataclasses.replace(config.data, batch_size=min(_WATCHED, len(records)))
        batches = dataset.eval_batches(records, dataclasses.replace(config, data=some))
        return next(iter(batches))["image"].numpy()

    def bar(self):
        """A list of the bar of an evaluation, on the machine that shows it."""
        return [progress.EvaluationBar(self.test_steps)] if self.machines.is_chief else []

    def suspects(self, position):
        """What may be why training or evaluation failed, as `readable.naming` wants it.

        Args:
          position: steps of the run so far; the one that fails may have been counted, or not.
        """
        if self.bank:
            self.bank.check(position // self.steps)
        for step in range(max(position - 1, 0), position + 1):
            yield self.data.train, dataset.indices(self.data.train, self.config, step)
        yield self.data.eval, range(len(self.data.eval))

    def _share(self, batches):
        return devices.share(self.strategy, batches)


def finish(pair, taught_by, run, images, eval_only=False):
    """Trains a run to its end, and measures what it has reached.

    Args:
      pair: a `distiller.Distiller`, restored.
      taught_by: its teacher, or None.
      run: a `checkpoint.Run`, restored.
      images: the run's `Images`.
      eval_only: True only measures.

    Returns:
      {"student": measured, "teacher": measured or None}; see `distiller.measure`.

    Raises:
      InputError: an image that cannot be read, a run directory that can no longer be written, or
        too many bad steps.
      SystemExit: SIGTERM was received; all is saved.
    """

    def suspects():
        return images.suspects(devices.number(pair.position))

    if images.machines.is_chief and not eval_only:
        with rundir.writing(run.path):
            run.mend()
    with readable.naming(suspects):
        if run.epoch < images.config.optimizer.epochs and not eval_only:
            _fit(pair, run, images)
        return {
            "student": images.measure(pair.evaluated),
            "teacher": taught_by and images.measure(taught_by),
        }


def _fit(pair, run, images):
    """The rest of a run: of the epoch that was left in the middle, then whole epochs."""
    rest = (run.epoch + 1) * images.steps - run.step
    epochs, chief = images.config.optimizer.epochs, images.machines.is_chief
    keeper = saving.SaveRun(run, images.config.run, chief, images.bank)
    watchers = [*_scribes(pair, images), keeper, *_shown(run, images)]
    callbacks = keras.callbacks.CallbackList(watchers, add_history=True, model=pair)
    facts = {
        "validation_data": images.tests,
        "validation_steps": images.test_steps,
        "shuffle": False,
        "verbose": 0,
        "callbacks": callbacks,
    }
    with keeper.listening():
        if rest == 0:
            _evaluate_epoch(pair, run, images, callbacks)
        elif rest < images.steps:
            facts |= {"initial_epoch": run.epoch, "epochs": run.epoch + 1}
            pair.fit(images.from_step(run.step), steps_per_epoch=rest, **facts)
        callbacks.set_model(pair)  # TensorBoard opens its files there, and closes them after a fit
        if run.epoch < epochs:
            facts |= {"initial_epoch": run.epoch, "epochs": epochs}
            pair.fit(images.from_step(run.step), steps_per_epoch=images.steps, **facts)
    if keeper.asked:  # after the last step that looks; all is saved
        raise SystemExit(128 + signal.SIGTERM)


def _evaluate_epoch(pair, run, images, callbacks):
    """The end of an epoch that was left while it was evaluated."""
    callbacks.on_train_begin()
    callbacks.on_epoch_begin(run.epoch)
    steps = {"steps": images.test_steps, "verbose": 0, "callbacks": callbacks}
    found = pair.evaluate(images.tests, return_dict=True, **steps)
    found = {f"val_{name}": value for name, value in found.items()}
    callbacks.on_epoch_end(run.epoch, {**pair.train_logs(), **found})
    callbacks.on_train_end()


def _scribes(pair, images):
    """A list of the callback that writes down what the teacher says, where that is wanted."""
    if not (images.bank and pair.asks):
        return []
    return [saving.KeepAnswers(images.bank, images.strategy, images.machines.is_chief)]


def _shown(run, images):
    """Callbacks of what a person looks at, on the machine that shows it."""
    config, steps = images.config, images.steps
    if not images.machines.is_chief:
        return []
    boards = [keras.callbacks.TensorBoard(run.path / "logs", write_graph=False)]
    if config.network.distilled:
        boards.append(progress.TokenBoard(run.path / "logs" / "tokens", images.watched))
    line = progress.Progress(config.optimizer.epochs, steps, config.data.batch_size)
    return [*boards, line, *images.bar()]


def check_machines(strategy, config, facts, run, pair, eval_only):
    """Raises InputError where the machines do not do the same from the same place."""
    place = [run.epoch, run.step, eval_only, pair.asks, config.run.max_bad_steps]
    if run.step:  # what it started from is needed no more, and may be gone from some
        facts = {name: value for name, value in facts.items() if name != "init_from_sha256"}
    says = json.dumps([configuration.identity(config), facts, *place], sort_keys=True)
    if not devices.meet(strategy, says):
        devices.meet(strategy)  # all know it before the first leaves
        raise InputError(
            f"the workers differ in their flags, their data or in what they find in {run.path}"
            f" (here: step {run.step}); give all the same command and a --run_dir that they share"
        )
