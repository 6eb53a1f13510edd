"""The typed configuration of a run: YAML file < `key.path=value` overrides, checked once, frozen.

Nothing else in the package reads YAML. Importing this module does not import torch, so that a
wrong configuration is answered at once.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Literal, TypeVar, get_args

from pydantic import AfterValidator, Field, model_validator

from mixer_dist.sections import (
    DecayRate,
    Fraction,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    Section,
    Url,
    parse,
)
from mixer_dist.yaml_tree import apply_override, read_yaml

T = TypeVar("T")

Variant = Literal["S/32", "S/16", "B/32", "B/16", "L/32", "L/16", "H/14"]
EngineName = Literal["single", "ddp", "fsdp", "hsdp", "zero1", "zero2", "zero3"]


def _even(value: int) -> int:
    if value % 2:
        raise ValueError("must be even, because mixup mixes pairs of images")
    return value


def _not_empty(values: tuple[T, ...]) -> tuple[T, ...]:
    if not values:  # min_length would also complain where an entry has another fault
        raise ValueError("must have at least one entry")
    return values


EvenInt = Annotated[PositiveInt, AfterValidator(_even)]


class ModelConfig(Section):
    """A variant of the paper's Table 1, or a Mixer given by its dimensions."""

    variant: Variant | None = None
    """One of the paper's seven models; of the five dimensions below only tokens_mlp_dim may then
    be given, for images of K times the height and width: K*K times the variant's."""
    patch_size: PositiveInt | None = None
    """Side of a patch, in pixels."""
    hidden_dim: PositiveInt | None = None
    num_blocks: PositiveInt | None = None
    tokens_mlp_dim: PositiveInt | None = None
    channels_mlp_dim: PositiveInt | None = None
    image_size: PositiveInt = 224
    """Side of the square training images, in pixels."""
    num_classes: PositiveInt
    head_bias: float = 0.0
    """The classifier's first bias; the official runs use -6.9 (1k) and -10 (21k classes)."""
    stochastic_depth: Fraction = 0.0
    """Rate at which the last block's branches are dropped; it grows linearly from 0."""

    def dimensions(self) -> dict[str, int | None]:
        """The five dimensions as given, None where the variant gives them."""
        names = ("patch_size", "hidden_dim", "num_blocks", "tokens_mlp_dim", "channels_mlp_dim")
        return {name: getattr(self, name) for name in names}

    @model_validator(mode="after")
    def _is_one_model(self) -> "ModelConfig":
        given = {name for name, value in self.dimensions().items() if value is not None}
        missing = self.dimensions().keys() - given
        if self.variant and (fixed := given - {"tokens_mlp_dim"}):
            raise ValueError(
                f"variant {self.variant} fixes {', '.join(sorted(fixed))}: remove them"
            )
        if not self.variant and missing:
            raise ValueError(
                f"give a variant ({', '.join(get_args(Variant))}) "
                f"or also {', '.join(sorted(missing))}"
            )
        return self

    @model_validator(mode="after")
    def _image_is_whole_patches(self) -> "ModelConfig":
        patch_px = int(self.variant.split("/")[1]) if self.variant else self.patch_size
        if patch_px and self.image_size % patch_px:
            raise ValueError(f"image_size ({self.image_size}) must be a multiple of {patch_px}")
        return self


class DatasetConfig(Section):
    """One entry of the training data."""

    manifest: Url
    """URL of a manifest.json, as data_tools/shard.py writes it."""
    repeats: PositiveInt = 1
    """How often its samples stand in one epoch."""


class OrderConfig(Section):
    """The sample order's shape; what is not given is derived at the first start, then kept."""

    round_samples: PositiveInt | None = None
    """Positions dealt to all lanes in one round; by default the global batch size."""
    lanes: PositiveInt | None = None
    """Independent streams; by default the largest divisor of round_samples up to 512."""
    chunk_samples: PositiveInt | None = None
    """Neighbouring samples read in one request; by default about 4 MiB."""
    window: PositiveInt | None = None
    """Samples shuffled among each other within a lane; by default one chunk."""


class DataConfig(Section):
    """What is read, and how."""

    train: Annotated[tuple[DatasetConfig, ...], AfterValidator(_not_empty)]
    """Datasets laid end to end; their classes must agree."""
    order: OrderConfig = OrderConfig()
    num_threads: NonNegativeInt = 0
    """Threads a rank that fetch, decode and augment; 0: one a core this rank may use."""
    prefetch_batches: PositiveInt = 2
    """Batches a rank prepares ahead of the training step."""
    max_bad_fraction: Fraction = 0.001
    """Share of undecodable samples above which the run stops."""
    stages: tuple[str, ...] = ()
    """Dotted names of your own webdataset pipeline stages, run on decoded crops."""


class RandAugmentConfig(Section):
    """RandAugment as the official code does it (arXiv 1909.13719)."""

    layers: PositiveInt = 2
    """Operations applied to each image, one after the other."""
    magnitude: Annotated[int, Field(ge=0, le=30)]
    """How strong they are; the paper's runs use 10, 15 and 20."""


class AugmentConfig(Section):
    """Random changes of the training images."""

    min_crop_area: Annotated[float, Field(gt=0, le=1)] = 0.05
    """Smallest share of the image that the inception crop keeps; 1 turns cropping off."""
    flip: bool = True
    """Mirror every second image, at random."""
    randaugment: RandAugmentConfig | None = None
    """Random operations on colours and shape; null turns them off."""
    mixup: Fraction = 0.0
    """p of the Beta(p, p) that mixes pairs of images; 0 turns mixup off."""


class OptimizerConfig(Section):
    """AdamW as the paper uses it, and its learning-rate schedule."""

    learning_rate: PositiveFloat
    """The peak, reached after warmup_steps."""
    warmup_steps: NonNegativeInt = 0
    decay: Literal["linear", "cosine"] = "linear"
    end_learning_rate: NonNegativeFloat = 0.0
    """The learning rate at total_steps."""
    weight_decay: NonNegativeFloat = 0.0
    """Decoupled, times the learning rate, on weight matrices only."""
    betas: tuple[DecayRate, DecayRate] = (0.9, 0.999)
    epsilon: PositiveFloat = 1e-8
    max_grad_norm: PositiveFloat = 1.0
    """Gradients are scaled down to this global norm."""


class EngineConfig(Section):
    """How the training state lies on the ranks; free to change at every start."""

    name: EngineName = "fsdp"
    precision: Literal["fp32", "bf16"] = "bf16"
    reshard_after_forward: bool = False
    """Under fsdp and hsdp: free gathered weights between forward and backward, for memory."""
    shard_ranks: PositiveInt | None = None
    """Under hsdp: ranks that share one copy of the state; by default those of a node."""
    timeout_s: PositiveFloat = 600.0
    """A collective that takes longer ends the run."""


class KeepBestConfig(Section):
    """The checkpoints that did best in an evaluation task are kept."""

    task: str
    """Its name in evals."""
    metric: str = "accuracy"
    """A number in the task's results."""
    mode: Literal["max", "min"] = "max"
    """Whether a larger or a smaller number is better."""
    count: PositiveInt = 1


class CheckpointConfig(Section):
    """When training state is saved, and for how long."""

    every_steps: PositiveInt = 1000
    timeout_s: PositiveFloat = 1800.0
    """A save that takes longer is given up, and tried again at the next interval."""
    grace_s: NonNegativeFloat = 240.0
    """How long a save may still take when the run ends early."""
    keep_last: PositiveInt | None = None
    """How many of the newest checkpoints are kept; null keeps all."""
    keep_every: PositiveInt | None = None
    """Steps that are a multiple of this are kept too."""
    keep_best: KeepBestConfig | None = None
    """The best by an evaluation are kept too."""
    lease_grace_s: PositiveFloat = 300.0
    """How long a checkpoint that is to go stays readable, for whoever has just found it."""

    @model_validator(mode="after")
    def _something_may_go(self) -> "CheckpointConfig":
        if self.keep_last is None and (self.keep_every or self.keep_best):
            raise ValueError(
                "keep_every and keep_best add to keep_last, and keep_last: null keeps all; "
                "set keep_last too"
            )
        return self


class LoggingConfig(Section):
    """What is shown while a run goes on; metrics.jsonl is always written."""

    every_steps: PositiveInt = 10
    tensorboard: bool = False


class StorageConfig(Section):
    """Options of one storage place; what is not given, and credentials, the AWS chain decides."""

    endpoint_url: Url | None = None
    region: str | None = None
    profile: str | None = None
    addressing_style: Literal["auto", "path", "virtual"] | None = None
    checksum: Literal["when_supported", "when_required"] | None = None
    """Whether checksums of the S3 protocol are demanded; older servers need when_required."""
    requester_pays: bool = False
    """Reading is charged to your account, as some public buckets demand."""
    sse: Literal["AES256", "aws:kms"] | None = None
    """Server-side encryption of what is written."""
    kms_key_id: str | None = None
    """The key for sse: aws:kms, as its ARN; not a secret."""
    ca_bundle: str | None = None
    """A PEM file of certificates to trust, for stores with their own authority."""
    proxy: Url | None = None
    """URL of a proxy on the way to the store."""
    deadline_s: PositiveFloat = 120.0
    """How long failing reads and writes are tried again before the run gives up."""


class EvaluationConfig(Section):
    """One evaluation task."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")]
    """Results lie at run_dir/evals/<name>/."""
    kind: Literal["fewshot"]
    train: Url
    """Manifest whose images give the few examples a class."""
    test: Url
    """Manifest whose images are classified."""
    shots: PositiveInt = 5
    seeds: Annotated[tuple[NonNegativeInt, ...], AfterValidator(_not_empty)] = (0, 1, 2)
    l2: PositiveFloat = 1024.0
    resize: PositiveInt | None = None
    """Images become squares of this side before the central crop; by default 8/7 of image_size."""


class RunConfig(Section):
    """A whole run: with the step number it determines images, pixels and weights."""

    run_dir: Url
    """Where the run lives: a directory or an fsspec URL."""
    seed: NonNegativeInt = 0
    total_steps: PositiveInt
    global_batch_size: EvenInt
    """Images an optimizer step, summed over ranks."""
    micro_batch_size: EvenInt
    """Images a rank takes through the model at once, at most; accumulation follows from it."""
    umask: Annotated[str, Field(pattern="^[0-7]{3,4}$")] | None = None
    """Permissions that new files lack, octal: "002" shares run_dir with a group."""
    loss: Literal["sigmoid", "softmax"] = "sigmoid"
    max_consecutive_skips: PositiveInt = 10
    """Steps with a non-finite gradient, in a row, after which the run stops."""
    model: ModelConfig
    init_from: Url | None = None
    """Weights to begin with, not moments: a .npz or .safetensors file (names ours or timm's), a
    checkpoint, or another run_dir, whose newest is taken. Read at step 0 only."""
    data: DataConfig
    augment: AugmentConfig = AugmentConfig()
    optimizer: OptimizerConfig
    engine: EngineConfig = EngineConfig()
    checkpoint: CheckpointConfig = CheckpointConfig()
    logging: LoggingConfig = LoggingConfig()
    storage: dict[Url, StorageConfig] = Field(default_factory=dict)
    """Options by URL prefix, such as "s3://bucket"; the longest prefix that fits holds."""
    evals: tuple[EvaluationConfig, ...] = ()

    @model_validator(mode="after")
    def _warmup_ends(self) -> "RunConfig":
        if self.optimizer.warmup_steps >= self.total_steps:
            raise ValueError(
                f"optimizer.warmup_steps ({self.optimizer.warmup_steps}) "
                f"must be below total_steps ({self.total_steps})"
            )
        return self

    @model_validator(mode="after")
    def _micro_batch_fits(self) -> "RunConfig":
        if self.micro_batch_size > self.global_batch_size:
            raise ValueError(
                f"micro_batch_size ({self.micro_batch_size}) must be at most "
                f"global_batch_size ({self.global_batch_size})"
            )
        return self

    @model_validator(mode="after")
    def _task_names_differ(self) -> "RunConfig":
        names = [task.name for task in self.evals]
        if twice := sorted({name for name in names if names.count(name) > 1}):
            raise ValueError(f"evals: the name {twice[0]!r} is given twice; results would collide")
        return self

    @model_validator(mode="after")
    def _best_task_is_known(self) -> "RunConfig":
        best, names = self.checkpoint.keep_best, [task.name for task in self.evals]
        if best and best.task not in names:
            raise ValueError(
                f"checkpoint.keep_best.task is {best.task!r}; tasks in evals: "
                f"{', '.join(names) or 'none'}"
            )
        return self

    @model_validator(mode="after")
    def _evaluation_crops_fit(self) -> "RunConfig":
        for task in self.evals:
            if task.resize and task.resize < self.model.image_size:
                raise ValueError(
                    f"evals: {task.name}: resize ({task.resize}) must be at least "
                    f"model.image_size ({self.model.image_size}), which is cut out of it"
                )
        return self

    @model_validator(mode="after")
    def _tensorboard_is_local(self) -> "RunConfig":
        if self.logging.tensorboard and "://" in self.run_dir:
            raise ValueError(
                "logging.tensorboard needs a local run_dir; metrics.jsonl goes anywhere"
            )
        return self


def load_config(path: str | Path, overrides: Sequence[str] = ()) -> RunConfig:
    """Read `path`, apply `key.path=value` overrides in order, check everything; ConfigError."""
    tree = read_yaml(Path(path))
    for override in overrides:
        apply_override(override, tree)
    return parse(RunConfig, tree, str(path))
