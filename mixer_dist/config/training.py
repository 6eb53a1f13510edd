"""How steps are taken, and what is written down on the way."""

from typing import Literal

from pydantic import model_validator

from mixer_dist.sections import (
    DecayRate,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    Section,
)

EngineName = Literal["single", "ddp", "fsdp", "hsdp", "zero1", "zero2", "zero3"]


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
