"""Garbage is collected at the same steps on all ranks, since each waits for the slowest."""

import gc
from types import TracebackType

EVERY_STEPS = 100


class GarbageCollection:
    """Python's collector, which else runs on each rank when it happens to; use it in a `with`."""

    def __enter__(self) -> "GarbageCollection":
        gc.collect()
        gc.freeze()  # what start-up has left lives as long as the run
        gc.disable()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        gc.enable()
        gc.unfreeze()

    def step_done(self, step: int) -> None:
        """Collect, where it is time."""
        if step % EVERY_STEPS == 0:
            gc.collect()
