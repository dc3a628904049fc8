"""Which machines train together, and which of them this is; read from TF_CONFIG."""

import contextlib
import dataclasses
import json
import os
import re

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
      InputError: TF_CONFIG is missing, or does not say what TensorFlow needs; or it names several
        workers, and the strategy is another.
    """
    text = os.environ.get("TF_CONFIG", "")
    if strategy != "multi_worker":
        if len(re.findall(r"[\w.-]+:\d+", text)) > 1:
            raise InputError(
                f"TF_CONFIG names several workers, and strategy is {strategy}; give"
                " --strategy=multi_worker, or unset TF_CONFIG"
            )
        return Cluster()
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


@contextlib.contextmanager
def blaming(machines, run_dir):
    """Says in one line that another machine has gone, where that is why the block failed.

    Args:
      machines: a `Cluster`.
      run_dir: what goes on when all are started again.

    Raises:
      InputError: another machine has gone. Else what the block raised.
    """
    try:
        yield
    except Exception as error:
        if machines.workers == 1 or not _has_gone(error):
            raise
        raise InputError(
            f"another worker has gone ({type(error).__name__}); start all of them again by the same"
            f" command: {run_dir} goes on from what it holds (--debug shows more)"
        ) from error


def _has_gone(error):
    """Whether an exception of TensorFlow's is about another machine."""
    from tensorflow import errors

    if isinstance(error, (errors.UnavailableError, errors.AbortedError)):
        return True
    perhaps = (errors.CancelledError, errors.DeadlineExceededError, errors.InternalError)
    words = r"ollective|/job:|/task:|onnection|[Pp]eer|RPC"
    return isinstance(error, perhaps) and bool(re.search(words, str(error)))
