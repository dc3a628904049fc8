"""The teacher: a trained network, frozen, that normalises its own input."""

from deit_tf import rundir
from deit_tf.config import InputError


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
    from deit_tf import checkpoint  # seconds of Keras, which `facts` need not wait for

    network = checkpoint.load(config.teacher)
    network.trainable = False
    return network


def facts(config, classes):
    """What identifies the teacher, for config.json.

    Args:
      config: a `config.DistillConfig`.
      classes: the student's data set's own names of its classes.

    Returns:
      {} where nothing is distilled, else {"teacher_sha256": digest of its weights}.

    Raises:
      InputError: the teacher knows other classes, or the same in another order.
    """
    if config.distillation == "none":
        return {}
    theirs = rundir.read_config(config.teacher)["classes"]
    if len(theirs) != len(classes):
        raise InputError(
            f"the teacher has {len(theirs)} classes, the student {len(classes)}; give a teacher"
            " that was trained on the same classes"
        )
    if theirs != list(classes):
        raise InputError(
            f"the teacher's classes ({', '.join(theirs[:3])}, …) are not the student's"
            f" ({', '.join(classes[:3])}, …), or not in their order"
        )
    return {"teacher_sha256": rundir.digest(rundir.weights_path(config.teacher))}
