"""What an engine is: the model and its training state, wherever they lie on the ranks."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

from mixer_dist.checkpoint.pieces import Piece
from mixer_dist.data.batch import Batch


def do_nothing() -> None:
    """What an engine does before an update, as long as nobody wants more."""


@dataclass(frozen=True)
class StepResult:
    """What a step gave; tensors of no dimension, left on the device."""

    loss: Tensor
    """This rank's share of the batch's mean loss: their sum over ranks is the loss."""
    grad_norm: Tensor
    """Global norm before clipping."""
    update_skipped: Tensor
    """1 where the gradient was not finite and the weights stayed as they were."""


class Engine(Protocol):
    """Trains a model on all ranks; every method but `pieces` is collective."""

    before_update: Callable[[], None]
    """Called in each step when all gradients are there, before weights and moments change."""

    def train_step(self, batch: Batch, learning_rate: float) -> StepResult:
        """One update from the global batch, in micro-batches. All ranks must call this."""
        ...

    def pieces(self) -> Iterator[Piece]:
        """The ranges of the training state that this rank saves and reads, no other rank's."""
        ...

    def refresh(self, num_updates: int) -> None:
        """Bring all else up to the pieces, once they were read. All ranks must call this."""
        ...

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """The full shape of each parameter."""
        ...

    @property
    def num_updates(self) -> int:
        """Updates so far, the optimizer's own count; waits for the device."""
        ...
