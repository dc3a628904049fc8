"""The label bank: `python -m deit_tf.label_bank fill|check|info --label_bank=DIR --flagfile=FILE`.

`fill` has the teacher answer ahead of time, `check` asks it again about a sample, `info` says what
a bank holds. A run reads what is there by `python -m deit_tf.train --label_bank=DIR`.
"""

from deit_tf import cluster, flags
from deit_tf.config import InputError

_WORDS = ("fill", "check", "info")
_AGREE = 0.999  # between devices all but a few in ten thousand do
_WIDTH = 22


def fill(config, epochs):
    """Has the teacher answer all that a bank does not know yet; goes on where it stood.

    Args:
      config: a `config.Config` with a label bank.
      epochs: a `range` of epochs, counted from 0.

    Returns:
      What was done, a text.

    Raises:
      InputError: something that was given does not fit, an image that cannot be read, or the bank
        can no longer be written.
    """
    machines = cluster.find(config.run.strategy)
    with cluster.blaming(machines, config.distill.label_bank):
        asking = _asking(config, machines)

        from deit_tf import devices, progress

        bank = asking.bank
        missing = bank.missing(epochs)
        if not devices.meet(asking.strategy, str((missing, bank.facts))):
            devices.meet(asking.strategy)  # all know it before the first leaves
            raise InputError(
                "the workers differ in their flags, their data or in what they find in"
                f" {bank.path}; give all the same command and a --label_bank that they share"
            )
        if machines.is_chief:
            bank.begin()
        devices.meet(asking.strategy)
        images = len(missing) * bank.positions
        with progress.images_bar(images, "filling", machines.is_chief) as bar:
            asking.fill(missing, bar)
    return f"{bank.path} has epochs {_spans(list(epochs))}, {len(missing)} of them by now"


def check(config, sample):
    """Asks the teacher again about some of what a bank holds, drawn at random.

    Args:
      config: a `config.Config` with a label bank.
      sample: how many images, about: whole batches are asked about.

    Returns:
      How many labels agree, a text.

    Raises:
      InputError: fewer than rounding explains, or files are damaged.
    """
    if config.run.strategy == "multi_worker":
        raise InputError("strategy is multi_worker; check on one machine, by --strategy=mirrored")
    asking = _asking(config, cluster.find(config.run.strategy))

    import numpy as np

    bank, steps = asking.bank, asking.steps
    damaged = bank.missing(bank.epochs())
    whole = [epoch for epoch in bank.epochs() if epoch not in damaged]
    if not whole:
        raise InputError(f"{bank.path} holds no whole epoch; fill it first")
    size = config.data.batch_size
    count = min(-(-sample // size), len(whole) * steps)
    agree = 0
    for number in np.random.default_rng().choice(len(whole) * steps, count, replace=False):
        epoch, within = whole[number // steps], int(number % steps)
        said = asking.again(epoch * steps + within)
        stored = bank.read(epoch, range(within * size, (within + 1) * size))
        agree += int(np.sum(stored["teacher_classes"][:, 0] == said[:, 0]))
    found = f"{bank.path}: {agree} of {count * size} labels agree"
    if damaged:
        raise InputError(f"{found}; epochs {_spans(damaged)} are damaged: fill writes them anew")
    if agree < _AGREE * count * size:
        raise InputError(f"{found}, which is too few; remove the bank and fill it anew")
    return f"{found} ({agree / (count * size):.2%})"


def info(folder):
    """What a bank holds, and of what: a text.

    Args:
      folder: the bank.

    Raises:
      InputError: there is none.
    """
    from deit_tf import bank as banks

    _check_named(folder)
    bank = banks.Bank(folder)
    damaged = bank.missing(bank.epochs())
    found = dict(bank.facts)
    found["epochs"] = _spans([e for e in bank.epochs() if e not in damaged]) or "none"
    for epoch in bank.begun():
        found[f"epoch {epoch}"] = f"{1 - bank.unknown(epoch).mean():.0%}"
    if damaged:
        found["damaged"] = f"{_spans(damaged)}; fill writes them anew"
    found["size"] = f"{sum(path.stat().st_size for path in bank.path.iterdir()) / 1e6:.1f} MB"
    return "\n".join(f"{name:<{_WIDTH}}{value}" for name, value in found.items())


def _asking(config, machines):
    """The `asking.Asking` of a configuration that has a label bank."""
    _check_named(config.distill.label_bank)
    # What can be wrong is looked for before TensorFlow is imported, which takes seconds.
    from deit_tf import source, teacher_facts

    data = source.open_training(config, machines)
    teacher_facts.facts(config.distill, data.classes)

    from deit_tf import asking

    return asking.Asking(config, data, machines)


def _check_named(folder):
    """Raises InputError where no label bank is named."""
    if not folder:
        raise InputError("no label bank; give --label_bank=DIR")


def _spans(numbers):
    """Sorted whole numbers as text: 0:3, 5:6."""
    found = []
    for number in numbers:
        if found and found[-1][1] == number:
            found[-1][1] += 1
        else:
            found.append([number, number + 1])
    return ", ".join(f"{first}:{end}" for first, end in found)


def main(argv):
    """Word and flags -> what was done."""
    given = flags.FLAGS
    if argv[1] == "info":
        print(info(given.label_bank))
        return
    config = flags.config_from_flags()
    print(fill(config, given.epochs) if argv[1] == "fill" else check(config, given.sample))


def run():
    """The command: its flags, then `main`."""
    flags.define_config(spans=("epochs",))
    flags.define_number("sample", 1024, "check: images to ask the teacher about again, about.")
    flags.run(main, _WORDS)


if __name__ == "__main__":
    run()
