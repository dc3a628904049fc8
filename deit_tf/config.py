"""Every fact of a run: frozen dataclasses that validate themselves and travel as JSON.

One field is one fact: its name is the flag, the JSON key and the argument; its help text is
written here and nowhere else. The defaults are the paper's recipe for ImageNet. Standard library
only, so that a command can explain itself before TensorFlow is imported.
"""

import dataclasses
import difflib
import json
import math
import typing

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


class InputError(ValueError):
    """What a person gave cannot be used; the message says what is allowed and what to do.

    Commands print it as one line and exit with 1; every other exception keeps its traceback.
    """


def fact(
    default,
    help_text,
    *,
    choices=None,
    at_least=None,
    above=None,
    at_most=None,
    free=False,
):
    """One field of a configuration.

    Args:
      default: its value where nothing is said; its type is the field's type.
      help_text: what `--help` prints.
      choices: the allowed values, or None.
      at_least: smallest allowed number, inclusive, or None.
      above: exclusive lower bound, or None.
      at_most: largest allowed number, inclusive, or None.
      free: whether the value may change when a run is started again in its directory; True, False
        (it is part of what the run is), or a function of the old and the new section that answers.

    Returns:
      A `dataclasses.Field`.
    """
    metadata = {
        "help": help_text,
        "choices": choices,
        "at_least": at_least,
        "above": above,
        "at_most": at_most,
        "free": free,
    }
    return dataclasses.field(default=default, metadata=metadata)


def _check(field, value):
    """Raises InputError where `value` breaks what `fact` says of `field`."""
    rule, name = field.metadata, field.name
    number = field.type in (int, float)
    if isinstance(value, bool) != (field.type is bool):
        raise InputError(f"{name} is {value!r}; it must be a {field.type.__name__}")
    if number and not (isinstance(value, int) or _is_finite(value)):
        raise InputError(f"{name} is {value!r}; it must be a finite number")
    if field.type is int and not isinstance(value, int):
        raise InputError(f"{name} is {value!r}; it must be a whole number")
    if field.type is str and not isinstance(value, str):
        raise InputError(f"{name} is {value!r}; it must be a text")
    if rule["choices"] and value not in rule["choices"]:
        raise InputError(f"{name} is {value!r}; choose one of {', '.join(rule['choices'])}")
    if rule["at_least"] is not None and value < rule["at_least"]:
        raise InputError(f"{name} is {value}; it must be at least {rule['at_least']}")
    if rule["above"] is not None and value <= rule["above"]:
        raise InputError(f"{name} is {value}; it must be above {rule['above']}")
    if rule["at_most"] is not None and value > rule["at_most"]:
        raise InputError(f"{name} is {value}; it must be at most {rule['at_most']}")


def _is_finite(value):
    return isinstance(value, float) and math.isfinite(value)


class _Facts:
    """Checks each field of a dataclass against its own rule when it is born."""

    def __post_init__(self):
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if field.type is tuple and isinstance(value, list):
                object.__setattr__(self, field.name, tuple(value))  # as JSON gives it
            _check(field, value)


def _check_pixels(mean, std, prefix=""):
    """Raises InputError where the constants of normalisation are not three usable numbers."""
    for name, values, smallest in (("mean", mean, -math.inf), ("std", std, 0.0)):
        if len(values) != 3 or not all(v > smallest and math.isfinite(v) for v in values):
            raise InputError(
                f"{prefix}{name} is {values}; it must be three numbers (red, green, blue) in units"
                " of 0–1" + (", each above 0" if name == "std" else "")
            )


@dataclasses.dataclass(frozen=True)
class DeiTConfig(_Facts):
    """The facts of a DeiT. Reference: Touvron et al. 2021, table 1."""

    image_size: int = fact(224, "Side of the square input, pixels.", at_least=1)
    patch_size: int = fact(16, "Side of a patch, pixels; divides image_size.", at_least=1)
    width: int = fact(192, "Width of a token; a multiple of heads.", at_least=1)
    depth: int = fact(12, "Number of transformer blocks.", at_least=1)
    heads: int = fact(3, "Number of attention heads.", at_least=1)
    mlp_ratio: float = fact(4.0, "Width of the MLP's hidden layer over width.", above=0)
    num_classes: int = fact(1000, "Number of classes.", at_least=1)
    distilled: bool = fact(False, "Whether there is a distillation token with its own head.")
    drop_path_rate: float = fact(
        0.1,
        "Drop path rate of the last block; linear from 0 at the first.",
        at_least=0,
        at_most=0.99,
    )
    layer_norm_epsilon: float = fact(1e-6, "Epsilon of LayerNorm.", above=0)
    mean: tuple = fact(IMAGENET_MEAN, "Mean that the network subtracts, red,green,blue in 0–1.")
    std: tuple = fact(IMAGENET_STD, "Deviation that the network divides by, red,green,blue in 0–1.")

    def __post_init__(self):
        super().__post_init__()
        _check_pixels(self.mean, self.std)
        if self.image_size % self.patch_size:
            raise InputError(
                f"image_size {self.image_size} is not a multiple of patch_size {self.patch_size}"
            )
        if self.width % self.heads:
            raise InputError(f"width {self.width} is not a multiple of heads {self.heads}")
        if int(self.width * self.mlp_ratio) < 1:
            raise InputError(
                f"mlp_ratio {self.mlp_ratio} leaves no hidden layer at width {self.width}"
            )

    @property
    def patches(self):
        """N, the number of patches of an image."""
        return (self.image_size // self.patch_size) ** 2

    @property
    def prefix_tokens(self):
        """Tokens before the patches: 2 with a distillation token, else 1."""
        return 2 if self.distilled else 1

    @property
    def drop_path_rates(self):
        """Rate of each block, linear from 0 at the first to drop_path_rate at the last."""
        last = max(self.depth - 1, 1)
        return tuple(self.drop_path_rate * i / last for i in range(self.depth))


@dataclasses.dataclass(frozen=True)
class RegNetYConfig(_Facts):
    """The facts of a RegNetY: the generator's parameters.

    Reference: Radosavovic et al. 2020, "Designing network design spaces", equations (2)–(4); the
    Y form adds squeeze-and-excitation. The defaults are those of the paper's teacher, RegNetY-16GF.
    """

    distilled: typing.ClassVar[bool] = False  # one head
    drop_path_rates: typing.ClassVar[tuple] = ()  # no drop path

    image_size: int = fact(224, "Side of the square input, pixels.", at_least=1)
    num_classes: int = fact(1000, "Number of classes.", at_least=1)
    depth: int = fact(18, "Number of blocks over all stages.", at_least=1)
    initial_width: float = fact(200.0, "RegNet's w_0: width of the first block.", at_least=8)
    slope: float = fact(106.23, "RegNet's w_a: growth of the width per block.", at_least=0)
    multiplier: float = fact(2.48, "RegNet's w_m: ratio of neighbouring stages.", above=1)
    group_width: int = fact(112, "Channels in a group of the grouped convolution.", at_least=1)
    stem_width: int = fact(32, "Channels of the stem.", at_least=1)
    stem_stride: int = fact(2, "Stride of the stem.", at_least=1, at_most=2)
    se_ratio: float = fact(0.25, "Squeeze width over the block's input width.", above=0)
    mean: tuple = fact(IMAGENET_MEAN, "Mean that the network subtracts, red,green,blue in 0–1.")
    std: tuple = fact(IMAGENET_STD, "Deviation that the network divides by, red,green,blue in 0–1.")

    def __post_init__(self):
        super().__post_init__()
        _check_pixels(self.mean, self.std)


def _regnety(width, slope, multiplier, group_width, depth):
    return RegNetYConfig(
        initial_width=width,
        slope=slope,
        multiplier=multiplier,
        group_width=group_width,
        depth=depth,
    )


_TINY = DeiTConfig(width=192, heads=3)
_SMALL = DeiTConfig(width=384, heads=6)
_BASE = DeiTConfig(width=768, heads=12)

# Touvron et al. 2021, tables 1 and 2. `deit` is the row to start from for any other size.
VARIANTS = {
    "deit": _TINY,
    "deit_tiny_patch16_224": _TINY,
    "deit_small_patch16_224": _SMALL,
    "deit_base_patch16_224": _BASE,
    "deit_base_patch16_384": dataclasses.replace(_BASE, image_size=384),
    "deit_tiny_distilled_patch16_224": dataclasses.replace(_TINY, distilled=True),
    "deit_small_distilled_patch16_224": dataclasses.replace(_SMALL, distilled=True),
    "deit_base_distilled_patch16_224": dataclasses.replace(_BASE, distilled=True),
    "deit_base_distilled_patch16_384": dataclasses.replace(_BASE, distilled=True, image_size=384),
    "regnety_040": _regnety(96.0, 31.41, 2.24, 64, 22),
    "regnety_080": _regnety(192.0, 76.82, 2.19, 56, 17),
    "regnety_120": _regnety(168.0, 73.36, 2.37, 112, 19),
    "regnety_160": _regnety(200.0, 106.23, 2.48, 112, 18),
    # Ours, for images of 32 pixels: 16 pixels a side after the stem, then 8, 4, 2.
    "regnety_tiny": RegNetYConfig(
        image_size=32,
        depth=4,
        initial_width=32.0,
        slope=32.0,
        multiplier=2.0,
        group_width=64,
    ),
}


@dataclasses.dataclass(frozen=True)
class DataConfig(_Facts):
    """Which images, and in which batches."""

    dataset: str = fact(
        "digits",
        "Data set: digits (embedded), tfds:NAME (made ready by deit_tf.prepare), or folder:PATH.",
        free=True,  # what it holds is known by its facts: a folder may move
    )
    data_dir: str = fact("data", "Folder of the prepared data sets.", free=True)
    train_split: str = fact("train", "TFDS split, or folder, to train on.")
    eval_split: str = fact(
        "",
        "TFDS split, or folder, to evaluate on; empty: the first there is of validation, val,"
        " test.",
    )
    eval_fraction: float = fact(
        0.0,
        "Part of every class' training images held out for evaluation; for folders only.",
        at_least=0,
        at_most=0.9,
    )
    labels: str = fact(
        "",
        "File that names the classes: a name a line in their order, or lines CLASS<tab>name.",
        free=True,
    )
    skip_bad_images: bool = fact(
        False,
        "Put the next readable image in the place of an unreadable one, and count them, instead of"
        " stopping.",
        free=True,
    )
    batch_size: int = fact(1024, "Images in a step over all replicas together.", at_least=1)
    crop_fraction: float = fact(
        0.875,
        "Evaluation: side of the centre crop over the resized shorter side.",
        above=0,
        at_most=1,
    )

    def __post_init__(self):
        super().__post_init__()
        if self.eval_split and self.eval_fraction:
            raise InputError(
                f"eval_split is {self.eval_split!r} and eval_fraction {self.eval_fraction}; give"
                " one of them"
            )


@dataclasses.dataclass(frozen=True)
class AugmentConfig(_Facts):
    """What happens to a training image. Every draw is a function of (seed, epoch, position)."""

    crop_min_area: float = fact(
        0.08,
        "Smallest area of the random resized crop, of the image's.",
        above=0,
        at_most=1,
    )
    crop_max_aspect: float = fact(
        4 / 3,
        "Largest aspect of the random resized crop; the smallest is its inverse.",
        at_least=1,
    )
    flip_rate: float = fact(0.5, "Probability of a horizontal flip.", at_least=0, at_most=1)
    auto_augment: str = fact(
        "rand-m9-mstd0.5-inc1",
        "RandAugment by timm's string; 3a: one of grey, solarize, blur (DeiT III); empty: none.",
    )
    color_jitter: float = fact(
        0.0,
        "Largest change of brightness, contrast and colour, in random order; the released recipe"
        " has none beside RandAugment.",
        at_least=0,
        at_most=1,
    )
    rotation_degrees: float = fact(
        0.0, "Largest random rotation, either way.", at_least=0, at_most=180
    )
    shift_fraction: float = fact(
        0.0, "Largest random shift over the side, either way.", at_least=0, at_most=1
    )
    erasing_rate: float = fact(
        0.25, "Probability that a box of an image becomes noise.", at_least=0, at_most=1
    )
    repeats: int = fact(
        3,
        "Repeated augmentation: views of an image in an epoch, which shows that much fewer images.",
        at_least=1,
    )
    mixup_alpha: float = fact(0.8, "Mixup: λ ~ Beta(alpha, alpha); 0 is no mixup.", at_least=0)
    cutmix_alpha: float = fact(1.0, "CutMix: λ ~ Beta(alpha, alpha); 0 is no cutmix.", at_least=0)
    mix_rate: float = fact(1.0, "Probability that images are mixed at all.", at_least=0, at_most=1)
    cutmix_rate: float = fact(
        0.5, "Probability of cutmix instead of mixup, where there is both.", at_least=0, at_most=1
    )
    mix_mode: str = fact(
        "batch",
        "What shares a draw of λ and box: batch: a mix_group; pair: two partners; element: none.",
        choices=("batch", "pair", "element"),
    )
    mix_group: int = fact(
        64,
        "Consecutive images among which partners are, the first with the last; even, and"
        " batch_size is a multiple of it. The views of an image lie so far apart.",
        at_least=2,
    )
    label_smoothing: float = fact(
        0.1, "Mass that the true label gives up to all classes.", at_least=0, at_most=1
    )

    def __post_init__(self):
        super().__post_init__()
        if self.mixes and self.mix_group % 2:
            raise InputError(f"mix_group is {self.mix_group}; it must be even: images form pairs")

    @property
    def mixes(self):
        """Whether any image is mixed with another."""
        return self.mix_rate > 0 and (self.mixup_alpha > 0 or self.cutmix_alpha > 0)


@dataclasses.dataclass(frozen=True)
class DistillConfig(_Facts):
    """How the student learns from the teacher. Reference: Touvron et al. 2021, section 4."""

    distillation: str = fact(
        "none",
        "hard: the teacher's decision; soft: its distribution; none: labels only.",
        choices=("hard", "soft", "none"),
    )
    teacher: str = fact(
        "",
        "The teacher: a run directory, keras_cv:DIR (a preset), keras.applications:NAME, a .keras"
        " file or a SavedModel; needed unless distillation is none.",
        free=True,  # it is known by its digest
    )
    teacher_mean: tuple = fact(
        (), "Mean that a teacher of others wants subtracted, red,green,blue in 0–1."
    )
    teacher_std: tuple = fact(
        (), "Deviation that a teacher of others wants divided by, red,green,blue in 0–1."
    )
    teacher_image_size: int = fact(
        0,
        "Side of what the teacher sees, pixels; 0 is the student's, or the teacher's own where that"
        " is fixed.",
        at_least=0,
    )
    alpha: float = fact(0.5, "Weight of the distillation loss in the sum.", at_least=0, at_most=1)
    tau: float = fact(1.0, "Temperature of soft distillation.", above=0)
    soft_reduction: str = fact(
        "elements",
        "Soft distillation is averaged over images and classes (elements, as released) or over"
        " images (batchmean).",
        choices=("elements", "batchmean"),
    )
    label_bank: str = fact(
        "",
        "Folder where the teacher's answers to every view are kept: what is there is read, the rest"
        " is asked once and written down; soft distillation needs bank_topk.",
        free=True,  # it says the same as the teacher
    )
    bank_topk: int = fact(
        0,
        "Soft distillation learns the teacher's so many largest probabilities, the rest spread"
        " evenly; 0 is all of them.",
        at_least=0,
    )

    def __post_init__(self):
        super().__post_init__()
        self._check_bank()
        if self.distillation != "none" and not self.teacher:
            raise InputError(
                f"distillation is {self.distillation} but teacher is empty; name a trained run by"
                " --teacher=RUN_DIR, or say --distillation=none"
            )
        if bool(self.teacher_mean) != bool(self.teacher_std):
            raise InputError("give both teacher_mean and teacher_std, or none of them")
        if self.teacher_mean:
            _check_pixels(self.teacher_mean, self.teacher_std, "teacher_")

    def _check_bank(self):
        """Raises InputError where a label bank does not fit the distillation."""
        if self.label_bank and self.distillation == "none":
            raise InputError(
                f"label_bank is {self.label_bank}, but distillation is none; give"
                " --distillation=hard or soft, or leave --label_bank away"
            )
        if self.label_bank and self.distillation == "soft" and not self.bank_topk:
            raise InputError(
                "a label bank for soft distillation holds the largest probabilities; say how many"
                " by --bank_topk, as --bank_topk=10"
            )
        if self.bank_topk and self.distillation != "soft":
            raise InputError(
                f"bank_topk is {self.bank_topk}, but distillation is {self.distillation}; it is for"
                " --distillation=soft"
            )


@dataclasses.dataclass(frozen=True)
class OptimizerConfig(_Facts):
    """The optimizer and its schedule. Reference: Touvron et al. 2021, table 9."""

    optimizer: str = fact(
        "adamw",
        "adamw, or sgd: with Nesterov's momentum and weight decay in the gradient, as PyTorch's.",
        choices=("adamw", "sgd"),
    )
    momentum: float = fact(0.9, "Momentum of sgd.", at_least=0, at_most=0.9999)
    epochs: int = fact(
        300,
        "Passes over the training images.",
        at_least=1,
        free=lambda old, new: new.lr_schedule == "constant" and new.epochs >= old.epochs,
    )
    lr_schedule: str = fact(
        "cosine",
        "After the warm-up: cosine, step by step; epoch: the released code's ladder, a rate an"
        " epoch; constant.",
        choices=("cosine", "epoch", "constant"),
    )
    lr: float = fact(
        5e-4, "Peak learning rate for 512 images; scaled by batch_size / 512.", above=0
    )
    warmup_epochs: float = fact(5.0, "Epochs of linear warm-up.", at_least=0)
    warmup_lr: float = fact(1e-6, "Learning rate at the first step; not scaled.", at_least=0)
    min_lr: float = fact(1e-5, "Learning rate at the last step; not scaled.", at_least=0)
    weight_decay: float = fact(0.05, "Weight decay; decoupled in adamw.", at_least=0)
    decay_dist_token: bool = fact(
        True,
        "Whether weight decay falls on the distillation token, as in the released code.",
    )
    clip_norm: float = fact(
        0.0, "Largest global norm of the gradient of a whole batch; 0 is no limit.", at_least=0
    )
    ema_decay: float = fact(
        0.0,
        "Decay, a step, of the moving average of the weights, which is then what is evaluated and"
        " exported (0.99996 in the released code); 0 is no average.",
        at_least=0,
        at_most=0.9999999,
    )


@dataclasses.dataclass(frozen=True)
class RunConfig(_Facts):
    """What belongs to the run as a whole."""

    seed: int = fact(
        0, "Seed of the weights, the order and every draw.", at_least=0, at_most=2**32 - 1
    )
    init_from: str = fact(
        "",
        "Weights to start from: a run directory, or a .safetensors or PyTorch file; another"
        " resolution, other classes and a distillation token are adapted.",
        free=True,  # it is known by its digest
    )
    pos_embed_resize: str = fact(
        "bicubic",
        "How init_from's position embedding is resized: bicubic (as released), antialias (timm's)"
        " or bilinear.",
        choices=("bicubic", "antialias", "bilinear"),
    )
    train_mode: bool = fact(
        True,
        "Whether training drops paths and renews batch statistics; --notrain_mode fine-tunes as"
        " the code of 2021 did.",
    )
    precision: str = fact(
        "auto",
        "Precision of the layers: auto is bfloat16 on a GPU and float32 on a CPU.",
        choices=("auto", "float32", "bfloat16"),
    )
    strategy: str = fact(
        "mirrored",
        "What a batch is shared among: mirrored: the replicas of this machine; multi_worker: those"
        " of all machines that TF_CONFIG names; one_device: nothing.",
        choices=("mirrored", "multi_worker", "one_device"),
        free=True,
    )
    replicas: int = fact(
        0,
        "Copies of the network on this machine; 0 is one a visible GPU, or one on the CPU.",
        at_least=0,
        free=True,
    )
    accumulate: int = fact(
        1,
        "Micro-batches that a replica makes of its part of a batch, one after the other, so that a"
        " large batch fits into a small memory.",
        at_least=1,
        free=True,
    )
    jit: bool = fact(
        True, "Whether XLA compiles the forward and backward pass of each replica.", free=True
    )
    fusion: str = fact(
        "logits",
        "Both heads together: mean of the logits (as released) or of the softmaxes (the paper's"
        " text).",
        choices=("logits", "softmax"),
    )
    checkpoint_every_steps: int = fact(
        0,
        "Steps between checkpoints within an epoch; 0 saves at the end of each epoch alone.",
        at_least=0,
        free=True,
    )
    keep_checkpoints: int = fact(
        1, "Newest checkpoints that are kept, beside the best weights.", at_least=1, free=True
    )
    max_bad_steps: int = fact(
        10,
        "Steps in a row whose loss or gradient is not finite, at which a run stops; each is left"
        " out and counted.",
        at_least=1,
        free=True,
    )

    def __post_init__(self):
        super().__post_init__()
        if self.replicas > 1 and self.strategy == "one_device":
            raise InputError(
                f"replicas is {self.replicas} and strategy one_device; give --strategy=mirrored"
            )


@dataclasses.dataclass(frozen=True)
class Config:
    """A whole training run."""

    model: str
    network: DeiTConfig | RegNetYConfig
    data: DataConfig = DataConfig()
    augment: AugmentConfig = AugmentConfig()
    distill: DistillConfig = DistillConfig()
    optimizer: OptimizerConfig = OptimizerConfig()
    run: RunConfig = RunConfig()

    def __post_init__(self):
        topk, classes = self.distill.bank_topk, self.network.num_classes
        if topk > classes:
            raise InputError(f"bank_topk is {topk}, but there are {classes} classes")

    def check_groups(self, workers=1):
        """Raises InputError where a batch is mixed and does not consist of whole groups.

        Args:
          workers: machines that share a batch.
        """
        batch, facts = self.data.batch_size, self.augment
        whole = workers * (facts.mix_group if facts.mixes else 1)
        if batch % whole:
            parts = [f"{workers} workers"] * (workers > 1)
            parts += [f"mix_group {facts.mix_group}"] * facts.mixes
            raise InputError(
                f"batch_size {batch} is not a multiple of {' × '.join(parts)}; give"
                f" --batch_size={math.ceil(batch / whole) * whole}"
                + (", or another --mix_group" if facts.mixes else "")
            )


SECTIONS = {
    field.name: type(field.default)
    for field in dataclasses.fields(Config)
    if field.default is not dataclasses.MISSING
}


def network(model, **changes):
    """The facts of a network: a row of the table, with changes.

    Args:
      model: a key of `VARIANTS`.
      **changes: fields of that row's class that differ from the row.

    Returns:
      A `DeiTConfig` or a `RegNetYConfig`.

    Raises:
      InputError: unknown model, a field that its family does not have, or a value out of range.
    """
    if model not in VARIANTS:
        near = difflib.get_close_matches(str(model), VARIANTS, n=3) or sorted(VARIANTS)
        raise InputError(f"model {model!r} is not known; did you mean {', '.join(near)}?")
    return _replace(VARIANTS[model], changes, f"model {model}")


def _replace(facts, changes, owner):
    """A dataclass with some fields changed; a field it does not have is an InputError."""
    names = [field.name for field in dataclasses.fields(facts)]
    for name in changes:
        if name not in names:
            raise InputError(f"{owner} has no {name}; it has {', '.join(names)}")
    return dataclasses.replace(facts, **changes)


def to_json(config):
    """A configuration as a dictionary of plain JSON values."""
    return json.loads(json.dumps(dataclasses.asdict(config)))


def from_json(values):
    """The configuration that `to_json` wrote.

    Raises:
      InputError: a key that this version does not know, or a value out of range.
    """
    try:
        model, facts = values["model"], values["network"]
    except (KeyError, TypeError) as error:
        raise InputError("the configuration lacks model or network") from error
    sections = {
        name: _replace(cls(), values[name], name)
        for name, cls in SECTIONS.items()
        if name in values
    }
    return Config(model=model, network=network(model, **facts), **sections)


def differences(old, new):
    """Names of the facts in which two configurations differ, those marked free left out.

    Args:
      old: a `Config`.
      new: a `Config`.

    Returns:
      A list of "name: old value -> new value".
    """
    found = [] if old.model == new.model else [f"model: {old.model} -> {new.model}"]
    for section in ("network", *SECTIONS):
        before, after = getattr(old, section), getattr(new, section)
        if type(before) is not type(after):
            continue  # another family: the model's name, already listed, says so
        for field in dataclasses.fields(before):
            a, b = getattr(before, field.name), getattr(after, field.name)
            if a != b and not _is_free(field, before, after):
                found.append(f"{field.name}: {a} -> {b}")
    return found


def identity(config):
    """What is the same on all machines that train together: {name: value}, JSON values.

    All but what is free on each of them, as where its data lies.
    """
    sections = {name: getattr(config, name) for name in ("network", *SECTIONS)}
    values = to_json(config)
    same = {
        field.name: values[name][field.name]
        for name, section in sections.items()
        for field in dataclasses.fields(section)
        if field.metadata["free"] is not True
    }
    return {"model": config.model, **same}


def _is_free(field, before, after):
    """Whether a fact may change as it does between two starts of one run."""
    free = field.metadata["free"]
    return free(before, after) if callable(free) else free
