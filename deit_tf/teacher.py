"""The teacher: a trained network, frozen, that normalises its own input."""

from deit_tf import checkpoint


def load_teacher(config):
    """The teacher of a distillation.

    Args:
      config: a `config.DistillConfig`.

    Returns:
      None where nothing is distilled, else a `keras.Model`: image [B, S, S, 3], 0–255 ->
      {"cls": [B, K]}.

    Raises:
      InputError: its run directory is missing or not trained.
    """
    if config.distillation == "none":
        return None
    network = checkpoint.load(config.teacher)
    network.trainable = False
    return network


def facts(config):
    """What identifies the teacher, for config.json: {} or {"teacher_sha256": digest}."""
    if config.distillation == "none":
        return {}
    return {"teacher_sha256": checkpoint.digest(checkpoint.weights_path(config.teacher))}
