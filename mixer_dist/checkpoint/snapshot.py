"""A host copy of a rank's pieces, in memory that every save uses again."""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import torch
from torch import Tensor

from mixer_dist.checkpoint.pieces import Piece

NUM_THREADS = 4


class Snapshot:
    """Room for a copy of certain pieces; claimed now, since the first touch costs the most."""

    def __init__(self, pieces: Sequence[Piece]) -> None:
        is_on_gpu = any(piece.tensor.is_cuda for piece in pieces)
        sizes = [piece.stop - piece.start for piece in pieces]
        self._memory = torch.zeros(sum(sizes), pin_memory=is_on_gpu)
        self._views: list[Tensor] = list(torch.split(self._memory, sizes))

    def take(self, pieces: Sequence[Piece]) -> list[Piece]:
        """The pieces as they are now, whatever becomes of their memory afterwards."""
        pairs = [(v, piece.tensor) for v, piece in zip(self._views, pieces, strict=True)]
        if self._memory.is_pinned():
            _copy(pairs)
            torch.cuda.synchronize()
        else:  # torch's own threads meet at every piece, which takes long on a busy machine
            with ThreadPoolExecutor(NUM_THREADS) as executor:
                list(executor.map(_copy, [pairs[n::NUM_THREADS] for n in range(NUM_THREADS)]))
        return [
            piece._replace(tensor=view) for view, piece in zip(self._views, pieces, strict=True)
        ]


def _copy(pairs: Sequence[tuple[Tensor, Tensor]]) -> None:
    for view, tensor in pairs:
        view.copy_(tensor, non_blocking=True)
