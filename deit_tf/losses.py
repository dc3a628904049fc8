"""The losses of DeiT: pure functions, one number an image.

Logits are float [B, K], labels float [B, K] with rows that sum to 1; results are float [B] in
nats. Whoever trains takes the mean over the global batch. No gradient flows to the teacher.
"""

from keras import ops

REDUCTIONS = ("elements", "batchmean")


def soft_target_cross_entropy(logits, labels):
    """Cross-entropy with a distribution over classes, as mixing and smoothing make it.

    Args:
      logits: float [B, K].
      labels: float [B, K], rows sum to 1.

    Returns:
      float [B].
    """
    return -ops.sum(labels * ops.log_softmax(logits), axis=-1)


def hard_distillation(logits, teacher_logits):
    """Cross-entropy with the teacher's decision, without label smoothing.

    Args:
      logits: float [B, K], of the head that learns from the teacher.
      teacher_logits: float [B, K]; only the largest of each row counts.

    Returns:
      float [B].

    Reference: Touvron et al. 2021, section 4, equation (3), second term.
    """
    decision = ops.argmax(teacher_logits, axis=-1)
    chosen = ops.one_hot(decision, logits.shape[-1], dtype=logits.dtype)
    return soft_target_cross_entropy(logits, chosen)


def soft_distillation(logits, teacher_logits, tau, reduction="elements"):
    """Divergence of the student from the teacher at a temperature, times its square.

    Args:
      logits: float [B, K], of the head that learns from the teacher.
      teacher_logits: float [B, K].
      tau: temperature, above 0.
      reduction: "batchmean" is equation (2): the sum over classes. "elements" divides it by K,
        as the released code does by averaging over all elements.

    Returns:
      float [B].

    Raises:
      ValueError: another reduction.

    Reference: Touvron et al. 2021, section 4, equation (2), second term.
    """
    if reduction not in REDUCTIONS:
        raise ValueError(f"reduction is {reduction!r}; choose one of {', '.join(REDUCTIONS)}")
    teacher = ops.stop_gradient(ops.log_softmax(teacher_logits / tau))
    student = ops.log_softmax(logits / tau)
    divergence = ops.sum(ops.exp(teacher) * (teacher - student), axis=-1) * tau**2  # [B]
    return divergence / logits.shape[-1] if reduction == "elements" else divergence
