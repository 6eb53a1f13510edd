"""A whole run, and how it is read from a file."""

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator, Field, model_validator

from mixer_dist.config.data import AugmentConfig, DataConfig
from mixer_dist.config.evaluation import EvaluationConfig
from mixer_dist.config.model import ModelConfig
from mixer_dist.config.pool import PoolConfig
from mixer_dist.config.storage import StorageConfig
from mixer_dist.config.training import (
    CheckpointConfig,
    EngineConfig,
    LoggingConfig,
    NumericsConfig,
    OptimizerConfig,
)
from mixer_dist.sections import NonNegativeInt, PositiveInt, Section, Url, parse
from mixer_dist.yaml_tree import apply_override, read_yaml


def _even(value: int) -> int:
    if value % 2:
        raise ValueError("must be even, because mixup mixes pairs of images")
    return value


def _even_or_auto(value: Any) -> Any:
    is_even = type(value) is int and value > 0 and value % 2 == 0
    if not is_even and value != "auto":
        raise ValueError(
            "must be a positive even number, because mixup mixes pairs of images, or auto"
        )
    return value


EvenInt = Annotated[PositiveInt, AfterValidator(_even)]
EvenOrAuto = Annotated[int | Literal["auto"], BeforeValidator(_even_or_auto)]


class RunConfig(Section):
    """A whole run: with the step number it determines images, pixels and weights."""

    run_dir: Url
    """Where the run lives: a directory or an fsspec URL."""
    seed: NonNegativeInt = 0
    total_steps: PositiveInt
    global_batch_size: EvenInt
    """Images an optimizer step, summed over ranks."""
    micro_batch_size: EvenOrAuto
    """Images a rank takes through the model at once, at most; accumulation follows from it. auto:
    as many as fit into memory, found before the first step, fewer where they no longer do."""
    umask: Annotated[str, Field(pattern="^[0-7]{3,4}$")] | None = None
    """Permissions that new files lack, octal: "002" shares run_dir with a group."""
    loss: Literal["sigmoid", "softmax"] = "sigmoid"
    max_consecutive_skips: PositiveInt = 10
    """Updates skipped in a row, after which the run stops."""
    model: ModelConfig
    init_from: Url | None = None
    """Weights to begin with, not moments: a .npz or .safetensors file (names ours or timm's), a
    checkpoint, or another run_dir, whose newest is taken. Read at step 0 only."""
    init_head: Literal["keep", "new"] = "keep"
    """Whether the classifier is taken from init_from where it fits, or begins anew all the same."""
    data: DataConfig
    augment: AugmentConfig = AugmentConfig()
    optimizer: OptimizerConfig
    engine: EngineConfig = EngineConfig()
    numerics: NumericsConfig = NumericsConfig()
    checkpoint: CheckpointConfig = CheckpointConfig()
    logging: LoggingConfig = LoggingConfig()
    storage: dict[Url, StorageConfig] = Field(default_factory=dict)
    """Options by URL prefix, such as "s3://bucket"; the longest prefix that fits holds."""
    evals: tuple[EvaluationConfig, ...] = ()
    pool: PoolConfig = PoolConfig()

    @property
    def collective_timeout_s(self) -> float:
        """A collective that takes longer fails; before, the watchdog says whom it waits for."""
        engine = self.engine
        return 1.1 * max(engine.hang_timeout_s, engine.start_timeout_s, self.checkpoint.timeout_s)

    @model_validator(mode="after")
    def _warmup_ends(self) -> "RunConfig":
        if self.optimizer.warmup_steps >= self.total_steps:
            raise ValueError(
                f"optimizer.warmup_steps ({self.optimizer.warmup_steps}) "
                f"must be below total_steps ({self.total_steps})"
            )
        return self

    @model_validator(mode="after")
    def _engine_has_the_optimizer(self) -> "RunConfig":
        if self.optimizer.name == "sgd" and self.engine.name.startswith("zero"):
            raise ValueError(
                f"optimizer.name sgd does not go with engine.name {self.engine.name}: "
                "take ddp, fsdp or hsdp"
            )
        return self

    @model_validator(mode="after")
    def _skipped_steps_are_steps(self) -> "RunConfig":
        for first, last in self.data.skip_steps:
            if last > self.total_steps:
                raise ValueError(
                    f"data.skip_steps: [{first}, {last}] must end by total_steps "
                    f"({self.total_steps})"
                )
        return self

    @model_validator(mode="after")
    def _outages_are_no_hangs(self) -> "RunConfig":
        for prefix, place in self.storage.items():
            if place.deadline_s >= self.engine.hang_timeout_s:
                raise ValueError(
                    f"storage.{prefix}.deadline_s ({place.deadline_s:g}) must be below "
                    f"engine.hang_timeout_s ({self.engine.hang_timeout_s:g}): an outage that is "
                    "ridden out would be taken for a hang"
                )
        return self

    @model_validator(mode="after")
    def _micro_batch_fits(self) -> "RunConfig":
        if self.micro_batch_size != "auto" and self.micro_batch_size > self.global_batch_size:
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
    def _training_crops_fit(self) -> "RunConfig":
        if self.augment.resize and self.augment.resize < self.model.image_size:
            raise ValueError(
                f"augment.resize ({self.augment.resize}) must be at least model.image_size "
                f"({self.model.image_size}), which is cut out of it"
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
