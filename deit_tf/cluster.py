"""Which machines train together, and which of them this is; read from TF_CONFIG."""

import dataclasses
import json
import os

from deit_tf.config import InputError

_EXAMPLE = (
    'TF_CONFIG=\'{"cluster": {"worker": ["a:2222", "b:2222"]}, "task": {"type": "worker",'
    ' "index": 0}}\''
)


@dataclasses.dataclass(frozen=True)
class Cluster:
    """The machines of a run.

    Attributes:
      worker: this machine's place among them, counted from 0.
      workers: how many there are.
    """

    worker: int = 0
    workers: int = 1

    @property
    def is_chief(self):
        """Whether this machine is the one that writes checkpoints and logs."""
        return self.worker == 0


def find(strategy):
    """The machines that a strategy trains on.

    Args:
      strategy: a `config.RunConfig.strategy`.

    Returns:
      A `Cluster`; of this machine alone unless the strategy is multi_worker.

    Raises:
      InputError: TF_CONFIG is missing, or does not say what TensorFlow needs.
    """
    if strategy != "multi_worker":
        return Cluster()
    text = os.environ.get("TF_CONFIG", "")
    if not text:
        raise InputError(f"strategy is multi_worker, and TF_CONFIG is not set; set {_EXAMPLE}")
    try:
        found = json.loads(text)
        jobs = {name: len(hosts) for name, hosts in found["cluster"].items()}
        job, index = found["task"]["type"], int(found["task"]["index"])
        places = [(name, i) for name in ("chief", "worker") for i in range(jobs.pop(name, 0))]
        if jobs:
            raise ValueError(f"it has {', '.join(jobs)}")
        return Cluster(places.index((job, index)), len(places))
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(
            f"TF_CONFIG does not say which worker this is ({type(error).__name__}: {error}); set it"
            f" as {_EXAMPLE}"
        ) from error
