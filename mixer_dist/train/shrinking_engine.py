"""An engine whose micro-batches are halved when memory does not suffice for them."""

import logging
from collections.abc import Callable, Iterator

from torch import Tensor, nn

from mixer_dist import distributed
from mixer_dist.checkpoint.pieces import Piece
from mixer_dist.config import RunConfig
from mixer_dist.data.batch import Batch
from mixer_dist.data.stream import micro_batch_shape
from mixer_dist.errors import MixerError
from mixer_dist.train.build import build_engine, build_model
from mixer_dist.train.engine import Engine, StepResult, do_nothing, not_finite
from mixer_dist.train.micro_batch import (
    ALONE_S,
    LEAST,
    free_memory,
    halved,
    is_within_memory,
    leave_step,
)

logger = logging.getLogger(__name__)


class ShrinkingEngine:
    """An engine that is built anew, for smaller micro-batches, where a step runs out of memory.

    Until its update a step changes neither weights nor moments, so it can be taken again from the
    same batch, if all ranks run out of memory in it, as those of one shape do.
    """

    def __init__(self, engine: Engine, config: RunConfig) -> None:
        self.before_update: Callable[[], None] = do_nothing
        self.guard: Callable[[Tensor], Tensor] = not_finite
        self._config = config
        self._engine = self._driven(engine)
        self._is_updating = False

    def train_step(self, batch: Batch, learning_rate: float) -> StepResult:
        """One update from the global batch, in as many tries as it takes.

        All ranks must call this. MixerError where even the smallest micro-batch is too large, or a
        rank runs out of memory alone.
        """
        results: list[StepResult] = []

        def step() -> None:
            results.append(self._engine.train_step(self._needed_rows(batch), learning_rate))

        self._is_updating = False
        while not is_within_memory(step):
            leave_step(ALONE_S)
            self._shrink(batch.step + 1)
        return results[0]

    def pieces(self) -> Iterator[Piece]:
        """The ranges of the training state that this rank saves and reads, no other rank's."""
        return self._engine.pieces()

    def refresh(self, num_updates: int) -> None:
        """Bring all else up to the pieces, once they were read. All ranks must call this."""
        self._engine.refresh(num_updates)

    def close(self) -> None:
        """Let its memory go with the last reference to it; after that it cannot train."""
        self._engine.close()

    def replicas(self) -> Iterator[tuple[str, Tensor]]:
        """What other ranks hold too, bit by bit, by name; nothing where no rank does."""
        return self._engine.replicas()

    @property
    def replica_set(self) -> int:
        """The same number on all ranks that hold the same replicas."""
        return self._engine.replica_set

    @property
    def timed_module(self) -> nn.Module:
        """A large matrix product, in whose forward no rank waits for another."""
        return self._engine.timed_module

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """The full shape of each parameter."""
        return self._engine.shapes

    @property
    def num_updates(self) -> int:
        """Updates so far; waits for the device."""
        return self._engine.num_updates

    def _driven(self, engine: Engine) -> Engine:
        """The engine with our callbacks, which may be replaced at any time."""
        engine.before_update = self._begin_update
        engine.guard = lambda grad_norm: self.guard(grad_norm)
        return engine

    def _begin_update(self) -> None:
        self._is_updating = True
        self.before_update()

    def _needed_rows(self, batch: Batch) -> Batch:
        """Without filling that was right for larger micro-batches."""
        size, grad_accum_steps = micro_batch_shape(self._config, distributed.world_size())
        return next(batch.micro_batches(size * grad_accum_steps))

    def _shrink(self, step: int) -> None:
        """Halve the micro-batches, and carry the state over to an engine for these."""
        size, _ = micro_batch_shape(self._config, distributed.world_size())
        if self._is_updating or size == LEAST:
            raise MixerError(
                f"step {step} ran out of memory with micro-batches of {size} images; the same "
                "command goes on from the newest checkpoint: give it more ranks, or an engine that "
                "shares the training state among more of them"
            )
        self._config = self._config.model_copy(update={"micro_batch_size": halved(size)})
        self.before_update()  # a save may still be copying from what is dropped now
        state = [piece.tensor.to("cpu", copy=True) for piece in self._engine.pieces()]
        num_updates = self._engine.num_updates
        self._engine.close()
        del self._engine
        free_memory()
        self._engine = self._driven(build_engine(self._config, build_model(self._config)))
        for piece, value in zip(self._engine.pieces(), state, strict=True):
            piece.tensor.copy_(value)
        self._engine.refresh(num_updates)
        size, grad_accum_steps = micro_batch_shape(self._config, distributed.world_size())
        logger.warning(
            "Step %d ran out of memory: it is taken again in micro-batches of %d images, %d of "
            "them (grad_accum_steps).", step, size, grad_accum_steps,
        )  # fmt: skip
