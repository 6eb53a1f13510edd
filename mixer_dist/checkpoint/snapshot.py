"""A host copy of a rank's pieces, in memory that every save uses again."""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch
from torch import Tensor

from mixer_dist.checkpoint.pieces import Piece

NUM_THREADS = 4


class Snapshot:
    """Room for a copy of certain pieces; claimed now, since the first touch costs the most."""

    def __init__(self, pieces: Sequence[Piece]) -> None:
        self._is_of_gpu = any(piece.tensor.is_cuda for piece in pieces)
        sizes = [piece.stop - piece.start for piece in pieces]
        memory = _pinned(sum(sizes)) if self._is_of_gpu else _in_huge_pages(sum(sizes))
        self._views: list[Tensor] = list(torch.split(memory.zero_(), sizes))

    def take(self, pieces: Sequence[Piece]) -> list[Piece]:
        """The pieces as they are now, whatever becomes of their memory afterwards."""
        pairs = [(v, piece.tensor) for v, piece in zip(self._views, pieces, strict=True)]
        (_copy_from_gpu if self._is_of_gpu else _copy_in_threads)(pairs)
        return [
            piece._replace(tensor=view) for view, piece in zip(self._views, pieces, strict=True)
        ]


def _pinned(num_elements: int) -> Tensor:
    return torch.empty(num_elements, pin_memory=True)


def _in_huge_pages(num_elements: int) -> Tensor:
    """NumPy asks the kernel for them, torch does not; a copy into them takes less time."""
    return torch.from_numpy(np.empty(num_elements, np.float32))


def _copy_from_gpu(pairs: Sequence[tuple[Tensor, Tensor]]) -> None:
    for view, tensor in pairs:
        view.copy_(tensor, non_blocking=True)
    torch.cuda.synchronize()


def _copy_in_threads(pairs: Sequence[tuple[Tensor, Tensor]]) -> None:
    """In threads of our own: torch's wait for each other at every piece, which takes far longer."""

    def copy(first: int) -> None:
        for view, tensor in pairs[first::NUM_THREADS]:
            np.copyto(view.numpy(), tensor.numpy())

    with ThreadPoolExecutor(NUM_THREADS) as executor:
        list(executor.map(copy, range(NUM_THREADS)))
