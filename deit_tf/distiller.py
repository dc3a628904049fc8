"""Where the student meets the teacher: one step of training, one step of evaluation."""

import keras
import tensorflow as tf
from keras import ops

from deit_tf import lessons, losses, means, model
from deit_tf.config import DistillConfig, InputError

_MEASURED = ("loss", "top1", "top5")
_WORKED_WITH = ("image", "label", "keep", "teacher_logits")
_COUNTS = ("position", "bad_steps", "bad_in_a_row", "leaving", "all_leave")


class Distiller(keras.Model):
    """Trains a student on labels and on a teacher's answers; `fit` is Keras' own.

    A batch is {"image": float32 [B, S, S, 3] in 0–255, "label": float32 [B, K]}, in training
    perhaps with "keep": float32 [B, depth, 2] and with the teacher's answers, as `lessons.shorten`
    gives them; in evaluation with "weight": float32 [B].

    The teacher is frozen and no part of what is trained, tracked or saved.

    A student with one head learns both terms with it (the paper's "usual" and "hard" rows). One
    with two heads and no teacher learns the labels with both.

    Args:
      student: a network whose answer is {"cls": logits} and perhaps "dist".
      config: a `config.DistillConfig`; None is no distillation.
      teacher: a network, where `config.distillation` is not "none"; or None where every batch
        brings its answers.
      fusion: how both heads are read together, see `model.fuse`.
      average: an `optimizer.Average` of the student, which then is what is evaluated, or None.
      train_mode: whether the student drops paths and renews its batch statistics in training.
      answered: whether every batch brings the teacher's answers, so that there need be none.

    Attributes, the same on all replicas and int64 [] where they count:
      train_means, eval_means: `means.Means` of the epoch and of the evaluation.
      position: steps of the run so far, those left out included; the schedule's place.
      bad_steps, bad_in_a_row: steps left out so far, and since the last good one.
      leaving: 1 where this machine is to stop; all_leave: 1 after a step in which any was.

    Raises:
      InputError: a teacher is missing, or has another number of classes than the student.

    Reference: Touvron et al. 2021, section 4.
    """

    def __init__(
        self,
        student,
        config=None,
        teacher=None,
        fusion="logits",
        average=None,
        train_mode=True,
        answered=False,
    ):
        super().__init__(name="distiller")
        self.train_mode = train_mode
        self.student, self.config = student, config or DistillConfig()
        self.fusion, self.average = fusion, average
        self.lessons = None
        if self.config.distillation != "none":
            if teacher is not None or not answered:
                _check_teacher(student, teacher)
            classes = student.config.num_classes
            # Within it Keras does not find the teacher's weights among the student's.
            self.lessons = lessons.Lessons(teacher, classes, self.config.bank_topk)
        terms = ("loss", "class_loss", "distillation_loss") if self.lessons else ("loss",)
        heads = ("cls", "dist", "fused") if student.config.distilled else ("cls", "fused")
        self.train_means = means.Means([*terms, "top1"])
        self.eval_means = means.Means(f"{head}_{what}" for head in heads for what in _MEASURED)
        self.position, self.bad_steps, self.bad_in_a_row, self.leaving, self.all_leave = (
            keras.Variable(0, dtype="int64", trainable=False, name=name) for name in _COUNTS
        )
        self.evaluating = False
        self.built = True

    def compile(self, optimizer=None, jit_compile=False, accumulate=1):
        """Makes ready for `fit`, or without an optimizer for `evaluate`.

        Args:
          optimizer: one of `deit_tf.optimizer`; one that is not built yet is built for the student.
          jit_compile: whether XLA compiles each replica's forward and backward pass, and the
            teacher's forward pass. The sum over replicas and the update stay outside: with them
            inside, several replicas fail.
          accumulate: micro-batches that a replica's part of a batch is computed in.
        """
        super().compile(optimizer=optimizer, jit_compile=False)
        if self.optimizer is not None and not self.optimizer.built:
            self.optimizer.build(self.student.trainable_variables)
        self.accumulate = accumulate
        if self.lessons:
            self.lessons.compile(jit_compile, accumulate)
        whole = tf.function(self.forward_backward, jit_compile=True)
        self.run_forward_backward = whole if jit_compile else self.forward_backward

    @property
    def asks(self):
        """Whether there is a teacher that is asked."""
        return self.lessons is not None and self.lessons.teacher is not None

    @property
    def evaluated(self):
        """The network that is evaluated and saved as the best: the average where there is one."""
        return self.average.network if self.average else self.student

    @property
    def metrics(self):
        """None of Keras': both steps answer the means so far."""
        return []

    def reset_metrics(self):
        """Begins the means anew: those of training, or those of evaluation."""
        (self.eval_means if self.evaluating else self.train_means).reset()

    def evaluate(self, *args, **kwargs):
        """Keras' `evaluate`; each head's and their fusion's loss, top-1 and top-5."""
        self.evaluating = True
        try:
            return super().evaluate(*args, **kwargs)
        finally:
            self.evaluating = False

    def make_train_function(self, force=False):
        """Keras' hook: what `fit` calls with an iterator, step by step."""
        if self.train_function is None or force:
            self.train_function = self._on_each_replica(self.train_step)

    def make_test_function(self, force=False):
        """Keras' hook: what `evaluate` calls with an iterator, batch by batch."""
        if self.test_function is None or force:
            self.test_function = self._on_each_replica(self.test_step)

    def _on_each_replica(self, step):
        """A compiled function of an iterator: a step on each replica.

        All replicas answer alike, so that the first one's answer is the step's. Keras reduces the
        answers, by a way that several machines do not have.
        """
        strategy = self.distribute_strategy

        def run(iterator):
            answers = strategy.run(step, args=(next(iterator),))
            first = strategy.experimental_local_results
            return {name: first(answer)[0] for name, answer in answers.items()}

        return tf.function(run, autograph=False)

    def _maybe_symbolic_build(self, *args, **kwargs):
        """Nothing is left to build; Keras would look at a batch, which several machines refuse."""

    def losses_of(self, logits, label, teacher_logits):
        """Both terms of the objective.

        Args:
          logits: the student's answer.
          label: float32 [B, K].
          teacher_logits: float32 [B, K], or None without a teacher.

        Returns:
          {"loss": float32 [B]} and, with a teacher, its terms "class_loss" and
          "distillation_loss"; loss = (1 - alpha) · class + alpha · distillation.

        Reference: Touvron et al. 2021, equations (2) and (3).
        """
        facts = self.config
        if teacher_logits is None:
            terms = [losses.soft_target_cross_entropy(head, label) for head in logits.values()]
            return {"loss": sum(terms) / len(terms)}
        class_loss = losses.soft_target_cross_entropy(logits["cls"], label)
        pupil = logits.get("dist", logits["cls"])
        if facts.distillation == "hard":
            distillation_loss = losses.hard_distillation(pupil, teacher_logits)
        else:
            distillation_loss = losses.soft_distillation(
                pupil, teacher_logits, facts.tau, facts.soft_reduction
            )
        return {
            "loss": (1.0 - facts.alpha) * class_loss + facts.alpha * distillation_loss,
            "class_loss": class_loss,
            "distillation_loss": distillation_loss,
        }

    def forward_backward(self, image, label, keep=None, teacher_logits=None):
        """A replica's work on a micro-batch.

        Args:
          image: float32 [b, S, S, 3], 0–255.
          label: float32 [b, K].
          keep: float32 [b, depth, 2], or None.
          teacher_logits: float32 [b, K], or None without a teacher.

        Returns:
          The gradients of this micro-batch's share of the mean loss over the whole batch; and
          float32 [n + 1]: the sums over its images of the terms of `losses_of` and of the hits,
          then the number of images.
        """
        shares = self.distribute_strategy.num_replicas_in_sync * self.accumulate
        with tf.GradientTape() as tape:
            logits = self.student(image, keep=keep, training=self.train_mode)
            terms = self.losses_of(logits, label, teacher_logits)
            share = ops.mean(terms["loss"]) / shares
        gradients = tape.gradient(share, self.student.trainable_variables)
        hits = _hits(model.fuse(logits, self.fusion), label, 1)
        sums = [ops.sum(ops.cast(value, "float32")) for value in (*terms.values(), hits)]
        images = ops.cast(ops.shape(image)[0], "float32")
        return gradients, ops.stack([*sums, images])

    def _work(self, batch):
        """A replica's gradients and sums of a batch, micro-batch after micro-batch."""
        batch = {name: batch[name] for name in _WORKED_WITH if name in batch}
        if self.accumulate == 1:
            return self.run_forward_backward(**batch)
        parts = {
            name: tf.reshape(value, [self.accumulate, -1, *value.shape[1:]])
            for name, value in batch.items()
        }
        size = batch["image"].shape[0] // self.accumulate

        def add(i, gradients, sums):
            part = {name: tf.ensure_shape(v[i], [size, *v.shape[2:]]) for name, v in parts.items()}
            more, found = self.run_forward_backward(**part)
            return i + 1, [a + b for a, b in zip(gradients, more, strict=True)], sums + found

        none = [tf.zeros(v.shape, v.dtype) for v in self.student.trainable_variables]
        nothing = tf.zeros([len(self.train_means.names) + 1])
        start = (tf.constant(0), none, nothing)
        # One after the other: side by side they would need the memory of the whole batch.
        more = tf.while_loop(lambda i, *_: i < self.accumulate, add, start, parallel_iterations=1)
        return more[1], more[2]

    def train_step(self, batch):
        """One update of the student; returns the means of the epoch so far.

        A step whose loss or gradient is not finite, on any replica, changes nothing but the
        position and the count of such steps: all replicas see it in the sums. So does one whose
        gradient's norm is beyond float32, which would make the moments infinite.
        """
        context = tf.distribute.get_replica_context()
        if self.lessons:
            step = ops.convert_to_tensor(self.position)
            batch = {**batch, "teacher_logits": self.lessons.of(batch, step)}
        statistics = [tf.identity(weight) for weight in self.student.non_trainable_weights]
        gradients, sums = self._work(batch)
        *gradients, sums, leaving = context.all_reduce("SUM", [*gradients, sums, self._leaving()])
        norm = tf.linalg.global_norm(gradients)
        good = tf.reduce_all(tf.math.is_finite(tf.concat([sums, [norm]], axis=0)))
        self._settle_statistics(context, statistics, good)

        def update():
            weights = self.student.trainable_variables
            self.optimizer.update(gradients, weights, self.position, norm)
            if self.average:
                self.average.update()

        tf.cond(good, update, lambda: None)
        self.train_means.add(tf.where(good, sums, 0.0))
        self._count(good, leaving)
        return self.train_logs()

    def train_logs(self):
        """The means of the epoch so far, and the number of bad steps of the run."""
        return {**self.train_means.result(), "bad_steps": ops.cast(self.bad_steps, "float32")}

    def _settle_statistics(self, context, before, good):
        """Gives all replicas the mean of their batch statistics, or after a bad step the old ones.

        Each replica gathers the statistics of its own part of a batch alone.
        """
        weights = self.student.non_trainable_weights
        if not weights:
            return
        found = context.all_reduce("MEAN", [tf.convert_to_tensor(weight) for weight in weights])
        for weight, new, old in zip(weights, found, before, strict=True):
            weight.assign(tf.where(good, new, old))

    def _leaving(self):
        """float32 []: whether this machine asks all to leave, as a number that can be summed."""
        return ops.cast(self.leaving, "float32")

    def _count(self, good, leaving):
        """Notes a step in the counts, which are the same on all replicas."""
        one = ops.cast(good, "int64")
        self.optimizer.iterations.assign_add(ops.cast(one, self.optimizer.iterations.dtype))
        self.position.assign_add(1)
        self.bad_steps.assign_add(1 - one)
        self.bad_in_a_row.assign((self.bad_in_a_row + 1) * (1 - one))
        self.all_leave.assign(ops.cast(leaving > 0, "int64"))

    def test_step(self, batch):
        """Measures one batch; returns the means so far."""
        label, weight = batch["label"], batch["weight"]
        logits = self.evaluated(batch["image"], training=False)
        sums = []
        for answer in (*logits.values(), model.fuse(logits, self.fusion)):
            loss = losses.soft_target_cross_entropy(answer, label)
            measured = (loss, _hits(answer, label, 1), _hits(answer, label, 5))
            sums += [tf.reduce_sum(value * weight) for value in measured]
        context = tf.distribute.get_replica_context()
        sums = tf.stack([*sums, tf.reduce_sum(weight)])
        sums, leaving = context.all_reduce("SUM", [sums, self._leaving()])
        self.eval_means.add(sums)
        self.all_leave.assign(ops.cast(leaving > 0, "int64"))
        return self.eval_means.result()


def measure(network, batches, fusion="logits", callbacks=(), steps=None):
    """How well a network does on evaluation images.

    Args:
      network: answers {"cls": logits} and perhaps "dist".
      batches: what `dataset.eval_batches` gave.
      fusion: see `model.fuse`.
      callbacks: Keras', for a progress bar.
      steps: how many batches there are, where they do not know it themselves.

    Returns:
      {"images": int, "cls": {"top1", "top5", "loss"}, "fused": the same} and, distilled, "dist";
      images of weight 0 not counted, accuracies 0–1, losses in nats.
    """
    meter = Distiller(network, fusion=fusion)
    meter.compile()
    flat = meter.evaluate(
        batches, steps=steps, return_dict=True, verbose=0, callbacks=list(callbacks)
    )
    heads = [head for head in ("cls", "dist", "fused") if f"{head}_top1" in flat]
    measured = {
        head: {what: float(flat[f"{head}_{what}"]) for what in ("top1", "top5", "loss")}
        for head in heads
    }
    return {"images": round(meter.eval_means.take()[-1]), **measured}


def _hits(logits, label, k):
    """float32 [B]: whether the label's largest class is among the k largest logits.

    Of equal logits the first classes count as larger, as `argmax` has it; so a network that gives
    the same to all classes is not always right.
    """
    truth = tf.argmax(label, axis=-1, output_type=tf.int32)
    if k == 1:  # in every training step: no sorting
        return tf.cast(tf.argmax(logits, axis=-1, output_type=tf.int32) == truth, tf.float32)
    _, largest = tf.math.top_k(logits, min(k, logits.shape[-1]))  # [B, k]
    return tf.cast(tf.reduce_any(largest == truth[:, tf.newaxis], axis=-1), tf.float32)


def _check_teacher(student, teacher):
    """Raises InputError where the teacher cannot teach this student."""
    if teacher is None:
        raise InputError("distillation needs a teacher; give one, or distillation none")
    ours, theirs = student.config.num_classes, teacher.config.num_classes
    if ours != theirs:
        raise InputError(f"the teacher has {theirs} classes, the student {ours}")
