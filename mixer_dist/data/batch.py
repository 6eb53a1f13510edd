"""A rank's share of one global batch, as uint8 images and everything that the step needs.

n images, K classes, S pixels a side.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, fields, replace
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor


@dataclass(frozen=True)
class BadSample:
    """A sample that could not be used at its position, and which one stood in for it."""

    position: int
    sample: int
    """Its number in the dataset laid end to end."""
    shard: str
    """URL of its tar."""
    index: int
    """Its number in the tar."""
    key: str
    reason: str
    replaced_by: int = -1
    """The stand-in's number in the dataset laid end to end."""


@dataclass(frozen=True)
class Batch:
    """Images and labels of one rank for one step, filled up with images of weight 0."""

    images: Tensor
    """(n, 3, S, S) uint8."""
    labels: Tensor
    """(n,) int64, or (n, K) float32 where an image has several."""
    weights: Tensor
    """(n,) float32: 1, or 0 for filling."""
    positions: Tensor
    """(n,) int64 global positions; -1 for filling."""
    depth_masks: Tensor | None = None
    """(num_blocks, 2, n) uint8: which branches of the model each image takes."""
    mixup: float = 1.0
    """The share that an image keeps when it is mixed with its pair."""
    keys: tuple[str, ...] = ()
    digest: int = 0
    """This rank's term of the batch digest, a 64-bit word."""
    step: int = 0
    next_position: int = 0
    """The first global position after this step's global batch."""
    bad_samples: tuple[BadSample, ...] = ()

    def __len__(self) -> int:
        return len(self.images)

    def to(self, device: torch.device) -> "Batch":
        """The same batch with its tensors on a device; a GPU copies them beside earlier kernels."""
        if device.type != "cuda":
            return replace(self, **self._tensors(lambda t: t.to(device)))
        kernels, copies = torch.cuda.current_stream(device), _copy_stream(device)
        with torch.cuda.stream(copies):
            moved = self._tensors(lambda t: t.to(device, non_blocking=True))
        kernels.wait_stream(copies)
        for tensor in moved.values():
            tensor.record_stream(kernels)  # or its memory would be free for the next copy too early
        return replace(self, **moved)

    def pinned(self) -> "Batch":
        """The same batch in page-locked memory, from which a GPU copies beside the host's work."""
        return replace(self, **self._tensors(Tensor.pin_memory))

    def micro_batches(self, size: int) -> Iterator["Batch"]:
        """Consecutive parts of `size` images; n is a multiple of it."""
        for start in range(0, len(self), size):
            part = slice(start, start + size)
            masks = None if self.depth_masks is None else self.depth_masks[..., part]
            parts = {name: getattr(self, name)[part] for name in _PER_IMAGE}
            yield replace(self, **parts, depth_masks=masks)

    def _tensors(self, function: Callable[[Tensor], Tensor]) -> dict[str, Any]:
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        return {name: function(v) for name, v in values.items() if isinstance(v, Tensor)}


@lru_cache
def _copy_stream(device: torch.device) -> torch.cuda.Stream:
    return torch.cuda.Stream(device)  # type: ignore[no-untyped-call]


_PER_IMAGE = ("images", "labels", "weights", "positions")


def empty_images(num_rows: int, num_images: int, size_px: int) -> Tensor:
    """Room for images, (num_rows, 3, S, S) uint8, zeros after the first num_images.

    Stored pixel by pixel (channels last), as decoders and resizing leave them.
    """
    images = torch.empty((num_rows, size_px, size_px, 3), dtype=torch.uint8)
    images[num_images:] = 0
    return images.permute(0, 3, 1, 2)


def stack_labels(labels: Sequence[Sequence[int]], num_classes: int, num_rows: int) -> Tensor:
    """Class numbers as (num_rows,) int64; as multi-hot (num_rows, K) where one has not just one."""
    if all(len(of_image) == 1 for of_image in labels):
        single = torch.zeros(num_rows, dtype=torch.int64)
        single[: len(labels)] = torch.tensor([of_image[0] for of_image in labels])
        return single
    multi_hot = torch.zeros((num_rows, num_classes))
    for row, of_image in enumerate(labels):
        multi_hot[row, list(of_image)] = 1.0
    return multi_hot


def filled(values: NDArray[np.int64], num_rows: int, filling: int) -> Tensor:
    """Numbers (n,) as (num_rows,) int64, `filling` after the last."""
    padded = np.full(num_rows, filling, np.int64)
    padded[: len(values)] = values
    return torch.from_numpy(padded)
