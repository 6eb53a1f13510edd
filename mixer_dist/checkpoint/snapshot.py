"""A host copy of a rank's pieces, in memory that every save uses again."""

from collections.abc import Sequence

import torch
from torch import Tensor

from mixer_dist.checkpoint.pieces import Piece


class Snapshot:
    """Room for a copy of certain pieces; claimed now, since the first touch costs the most."""

    def __init__(self, pieces: Sequence[Piece]) -> None:
        is_on_gpu = any(piece.tensor.is_cuda for piece in pieces)
        sizes = [piece.stop - piece.start for piece in pieces]
        self._memory = torch.zeros(sum(sizes), pin_memory=is_on_gpu)
        self._views: list[Tensor] = list(torch.split(self._memory, sizes))

    def take(self, pieces: Sequence[Piece]) -> list[Piece]:
        """The pieces as they are now, whatever becomes of their memory afterwards."""
        for view, piece in zip(self._views, pieces, strict=True):
            view.copy_(piece.tensor, non_blocking=True)
        if self._memory.is_pinned():
            torch.cuda.synchronize()
        return [
            piece._replace(tensor=view) for view, piece in zip(self._views, pieces, strict=True)
        ]
