"""How steps are taken, and what is written down on the way."""

from typing import Annotated, Literal

from pydantic import Field, model_validator

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
    """AdamW as the paper pretrains, or SGD as it fine-tunes, and the learning-rate schedule."""

    name: Literal["adamw", "sgd"] = "adamw"
    learning_rate: PositiveFloat
    """The peak, reached after warmup_steps."""
    warmup_steps: NonNegativeInt = 0
    decay: Literal["linear", "cosine", "staircase"] = "linear"
    """`staircase` divides by 10 after 30, 60 and 90% of the steps."""
    end_learning_rate: NonNegativeFloat = 0.0
    """The learning rate at total_steps."""
    weight_decay: NonNegativeFloat = 0.0
    """Decoupled, times the learning rate, on weight matrices only."""
    betas: tuple[DecayRate, DecayRate] = (0.9, 0.999)
    epsilon: PositiveFloat = 1e-8
    momentum: DecayRate = 0.9
    """Under sgd, in place of betas and epsilon."""
    max_grad_norm: PositiveFloat = 1.0
    """Gradients are scaled down to this global norm."""

    @model_validator(mode="after")
    def _sgd_decays_nothing(self) -> "OptimizerConfig":
        if self.name == "sgd" and self.weight_decay:
            raise ValueError(
                f"weight_decay ({self.weight_decay:g}) is decoupled, which sgd has not: set it to 0"
            )
        return self


class EngineConfig(Section):
    """How the training state lies on the ranks; free to change at every start."""

    name: EngineName = "fsdp"
    precision: Literal["fp32", "bf16"] = "bf16"
    reshard_after_forward: bool = False
    """Under fsdp and hsdp: free gathered weights between forward and backward, for memory."""
    compile: bool = False
    """Have PyTorch compile the model's blocks, in place of our own kernels: on an H200 slower and
    twice the memory an image. The first step waits for it, and losses differ by rounding."""
    recompute: bool = False
    """Keep no more of a block for its gradients than what goes into it, and compute the block
    again: far less memory an image, a third more work."""
    shard_ranks: PositiveInt | None = None
    """Under hsdp: ranks that share one copy of the state; by default those of a node."""
    hang_timeout_s: PositiveFloat = 300.0
    """A run that does not move for so long is ended, and the rank named that holds it up. Above
    every deadline_s of storage, up to which outages are ridden out."""
    start_timeout_s: PositiveFloat = 1800.0
    """The same until the first step is done, which may wait for a compiler and for NCCL."""


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
    """A save that takes longer ends the run, which its next start takes up again."""
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


class NumericsConfig(Section):
    """What is done about values that cannot be right."""

    spike_z: PositiveFloat | None = None
    """A loss or gradient norm so many sigmas above the last ones is a spike; null tolerates all.
    Median and median absolute deviation stand for mean and sigma; 10 is rare in a healthy run."""
    on_spike: Literal["warn", "skip"] = "warn"
    """skip: leave out the update, as where a gradient is not finite; for gradient norms only."""
    window: Annotated[int, Field(ge=8)] = 128
    """Updates that a value is compared with; there are no spikes before there are so many."""
    replica_check: bool = True
    """Compare what several ranks hold alike, bit by bit, before each save."""


class LoggingConfig(Section):
    """What is shown while a run goes on; metrics.jsonl is always written."""

    every_steps: PositiveInt = 10
    tensorboard: bool = False
