"""A host copy of a rank's pieces, in memory that every save uses again.

The copy is made beside the next forward and backward, which read the weights and change nothing;
only the update after them has to wait for it.
"""

from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Protocol

import torch
from torch import Tensor

from mixer_dist.checkpoint.pieces import Piece

NUM_THREADS = 4

Pairs = Sequence[tuple[Tensor, Tensor]]
"""Where to, and what."""


class Copy(Protocol):
    """A copy under way."""

    def settle(self) -> None:
        """Have whatever is computed from now on come after it."""
        ...

    def finish(self) -> None:
        """Wait until it can be read."""
        ...


class Snapshot:
    """Room for a copy of certain pieces; claimed now, since the first touch costs the most."""

    def __init__(self, pieces: Sequence[Piece]) -> None:
        is_on_gpu = any(piece.tensor.is_cuda for piece in pieces)
        sizes = [piece.stop - piece.start for piece in pieces]
        memory = torch.zeros(sum(sizes), pin_memory=is_on_gpu)
        self._views: list[Tensor] = list(torch.split(memory, sizes))
        self._copied: list[Piece] = []
        self._copy: Copy | None = None

    def begin(self, pieces: Sequence[Piece]) -> None:
        """Copy the pieces as they are now; they may not change before `settle`."""
        self._copied = [
            piece._replace(tensor=view) for view, piece in zip(self._views, pieces, strict=True)
        ]
        pairs = [(v, piece.tensor) for v, piece in zip(self._views, pieces, strict=True)]
        is_on_gpu = any(tensor.is_cuda for _, tensor in pairs)
        self._copy = StreamCopy(pairs) if is_on_gpu else ThreadCopy(pairs)

    def settle(self) -> None:
        """To be called before the pieces change."""
        if self._copy:
            self._copy.settle()

    def copied(self) -> list[Piece]:
        """The pieces as they were, once they are copied."""
        if self._copy:
            self._copy.finish()
        return self._copied


class ThreadCopy:
    """On the host, in threads of our own: torch's meet at every piece, which takes long."""

    def __init__(self, pairs: Pairs) -> None:
        with_each = [pairs[number::NUM_THREADS] for number in range(NUM_THREADS)]
        executor = ThreadPoolExecutor(NUM_THREADS, "snapshot")
        self._parts: list[Future[None]] = [executor.submit(_copy, part) for part in with_each]
        executor.shutdown(wait=False)

    def settle(self) -> None:
        """Wait for it."""
        for part in self._parts:
            part.result()

    finish = settle


class StreamCopy:
    """From a GPU, on a stream of its own: the host waits for it only to read it."""

    def __init__(self, pairs: Pairs) -> None:
        stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            _copy(pairs)
        self._done = stream.record_event()

    def settle(self) -> None:
        """Have whatever the GPU is given from now on come after it."""
        torch.cuda.current_stream().wait_event(self._done)

    def finish(self) -> None:
        """Wait until it can be read."""
        self._done.synchronize()


def _copy(pairs: Pairs) -> None:
    for view, tensor in pairs:
        view.copy_(tensor, non_blocking=True)
