"""Where the student meets the teacher: one step of training, one step of evaluation."""

import keras
import tensorflow as tf
from keras import ops

from deit_tf import losses, model
from deit_tf.config import DistillConfig, InputError


class Distiller(keras.Model):
    """Trains a student on labels and on a teacher's answers; `fit` is Keras' own.

    A batch is {"image": float32 [B, S, S, 3] in 0–255, "label": float32 [B, K]}, in training
    perhaps with "keep": float32 [B, depth, 2], in evaluation with "weight": float32 [B].

    The teacher sees the very same pixels as the student and normalises them itself. It is frozen,
    runs in inference mode, and is no part of what is trained, tracked or saved.

    A student with one head learns both terms with it (the paper's "usual" and "hard" rows). One
    with two heads and no teacher learns the labels with both.

    Args:
      student: a network whose answer is {"cls": logits} and perhaps "dist".
      config: a `config.DistillConfig`; None is no distillation.
      teacher: a network, where `config.distillation` is not "none".
      fusion: how both heads are read together, see `model.fuse`.
      average: an `optimizer.Average` of the student, which then is what is evaluated, or None.
      train_mode: whether the student drops paths and renews its batch statistics in training.

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
    ):
        super().__init__(name="distiller")
        self.train_mode = train_mode
        self.student, self.config = student, config or DistillConfig()
        self.fusion, self.average = fusion, average
        self.teach = None
        if self.config.distillation != "none":
            _check_teacher(student, teacher)
            teacher.trainable = False
            # Behind a function Keras does not find the teacher's weights among the student's.
            self.teach = lambda image: teacher(image, training=False)["cls"]
        terms = ("loss", "class_loss", "distillation_loss") if self.teach else ("loss",)
        heads = ("cls", "dist", "fused") if student.config.distilled else ("cls", "fused")
        eval_names = [f"{head}_{what}" for head in heads for what in ("loss", "top1", "top5")]
        self.train_means = {name: keras.metrics.Mean(name) for name in (*terms, "top1")}
        self.eval_means = {name: keras.metrics.Mean(name) for name in eval_names}
        self.evaluating = False
        self.built = True

    def compile(self, optimizer=None, jit_compile=False, **kwargs):
        """Keras' `compile`, but for two things.

        Args:
          optimizer: one that is not built yet is built for the student.
          jit_compile: whether XLA compiles each replica's forward and backward pass. The sum over
            replicas and the update stay outside: with them inside, several replicas fail.
          **kwargs: Keras'.
        """
        super().compile(optimizer=optimizer, jit_compile=False, **kwargs)
        if self.optimizer is not None and not self.optimizer.built:
            self.optimizer.build(self.student.trainable_variables)
        whole = tf.function(self.forward_backward, jit_compile=True)
        self.run_forward_backward = whole if jit_compile else self.forward_backward

    @property
    def evaluated(self):
        """The network that is evaluated and saved as the best: the average where there is one."""
        return self.average.network if self.average else self.student

    @property
    def metrics(self):
        """The metrics of what runs now: those of training, or those of evaluation."""
        return list((self.eval_means if self.evaluating else self.train_means).values())

    def evaluate(self, *args, **kwargs):
        """Keras' `evaluate`; each head's and their fusion's loss, top-1 and top-5."""
        self.evaluating = True
        try:
            return super().evaluate(*args, **kwargs)
        finally:
            self.evaluating = False

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

    def forward_backward(self, image, label, keep):
        """One replica's part of a step.

        Args:
          image: float32 [B, S, S, 3], 0–255.
          label: float32 [B, K].
          keep: float32 [B, depth, 2], or None.

        Returns:
          The student's logits, the terms of `losses_of`, and the gradients of this replica's share
          of the mean loss.
        """
        teacher_logits = self.teach(image) if self.teach else None
        with tf.GradientTape() as tape:
            logits = self.student(image, keep=keep, training=self.train_mode)
            terms = self.losses_of(logits, label, teacher_logits)
            # Keras' optimizer sums the gradients of the replicas, so each gives its share.
            share = ops.mean(terms["loss"]) / self.distribute_strategy.num_replicas_in_sync
        return logits, terms, tape.gradient(share, self.student.trainable_variables)

    def train_step(self, batch):
        """One update of the student; returns the means of the epoch so far."""
        image, label = batch["image"], batch["label"]
        logits, terms, gradients = self.run_forward_backward(image, label, batch.get("keep"))
        self.optimizer.apply(gradients, self.student.trainable_variables)
        self._average_statistics()
        if self.average:
            self.average.update()
        for name, term in terms.items():
            self.train_means[name].update_state(term)
        fused = model.fuse(logits, self.fusion)
        self.train_means["top1"].update_state(_hits(fused, label, 1))
        return self.get_metrics_result()

    def _average_statistics(self):
        """Gives all replicas the mean of their batch statistics; each gathers only its own."""
        context = tf.distribute.get_replica_context()
        if context.num_replicas_in_sync > 1:
            for variable in self.student.non_trainable_weights:
                variable.assign(context.all_reduce("MEAN", tf.convert_to_tensor(variable)))

    def test_step(self, batch):
        """Measures one batch; returns the means so far."""
        label, weight = batch["label"], batch["weight"]
        logits = self.evaluated(batch["image"], training=False)
        for head, answer in {
            **logits,
            "fused": model.fuse(logits, self.fusion),
        }.items():
            measured = {
                "loss": losses.soft_target_cross_entropy(answer, label),
                "top1": _hits(answer, label, 1),
                "top5": _hits(answer, label, 5),
            }
            for what, values in measured.items():
                self.eval_means[f"{head}_{what}"].update_state(values, weight)
        return self.get_metrics_result()


def measure(network, batches, fusion="logits", callbacks=()):
    """How well a network does on evaluation images.

    Args:
      network: answers {"cls": logits} and perhaps "dist".
      batches: what `dataset.eval_batches` gave.
      fusion: see `model.fuse`.
      callbacks: Keras', for a progress bar.

    Returns:
      {"images": int, "cls": {"top1", "top5", "loss"}, "fused": the same} and, distilled, "dist";
      images of weight 0 not counted, accuracies 0–1, losses in nats.
    """
    meter = Distiller(network, fusion=fusion)
    meter.compile()
    flat = meter.evaluate(batches, return_dict=True, verbose=0, callbacks=list(callbacks))
    heads = [head for head in ("cls", "dist", "fused") if f"{head}_top1" in flat]
    measured = {
        head: {what: float(flat[f"{head}_{what}"]) for what in ("top1", "top5", "loss")}
        for head in heads
    }
    weights = keras.ops.convert_to_numpy(meter.eval_means["fused_top1"].count)
    return {"images": round(float(weights)), **measured}


def _hits(logits, label, k):
    """float32 [B]: whether the label's largest class is among the k largest logits.

    Of equal logits the first classes count as larger, as `argmax` has it; so a network that gives
    the same to all classes is not always right.
    """
    truth = tf.argmax(label, axis=-1, output_type=tf.int32)[:, tf.newaxis]
    _, largest = tf.math.top_k(logits, min(k, logits.shape[-1]))  # [B, k]
    return tf.cast(tf.reduce_any(largest == truth, axis=-1), tf.float32)


def _check_teacher(student, teacher):
    """Raises InputError where the teacher cannot teach this student."""
    if teacher is None:
        raise InputError("distillation needs a teacher; give one, or distillation none")
    ours, theirs = student.config.num_classes, teacher.config.num_classes
    if ours != theirs:
        raise InputError(f"the teacher has {theirs} classes, the student {ours}")
