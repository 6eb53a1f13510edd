"""What an engine is: the model and its training state, wherever they lie on the ranks."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor, nn

from mixer_dist.checkpoint.pieces import Piece
from mixer_dist.data.batch import Batch


def do_nothing() -> None:
    """What an engine does before an update, as long as nobody wants more."""


def not_finite(grad_norm: Tensor) -> Tensor:
    """1 where the norm is not finite, else 0: the guard of a run that tolerates spikes."""
    return (~torch.isfinite(grad_norm)).to(torch.float32)


@dataclass(frozen=True)
class StepResult:
    """What a step gave; tensors of no dimension, left on the device."""

    loss: Tensor
    """This rank's share of the batch's mean loss: their sum over ranks is the loss."""
    grad_norm: Tensor
    """Global norm before clipping."""
    update_skipped: Tensor
    """1 where the weights stayed as they were."""


class Engine(Protocol):
    """Trains a model on all ranks; every method but `pieces` is collective."""

    before_update: Callable[[], None]
    """Called in each step when all gradients are there, before weights and moments change."""
    guard: Callable[[Tensor], Tensor]
    """Called in each step with the global norm of the gradient, on the device: 1 where the update
    is to be skipped, else 0. Where the norm is not finite, it is skipped without asking."""

    def train_step(self, batch: Batch, learning_rate: float) -> StepResult:
        """One update from the global batch, in micro-batches. All ranks must call this."""
        ...

    def pieces(self) -> Iterator[Piece]:
        """The ranges of the training state that this rank saves and reads, no other rank's."""
        ...

    def refresh(self, num_updates: int) -> None:
        """Bring all else up to the pieces, once they were read. All ranks must call this."""
        ...

    def close(self) -> None:
        """Let its memory go with the last reference to it; after that it cannot train."""
        ...

    def replicas(self) -> Iterator[tuple[str, Tensor]]:
        """What other ranks hold too, bit by bit, by name; nothing where no rank does."""
        ...

    @property
    def replica_set(self) -> int:
        """The same number on all ranks that hold the same replicas."""
        ...

    @property
    def timed_module(self) -> nn.Module:
        """A large matrix product, in whose forward no rank waits for another."""
        ...

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """The full shape of each parameter."""
        ...

    @property
    def num_updates(self) -> int:
        """Updates so far, the optimizer's own count; waits for the device."""
        ...
