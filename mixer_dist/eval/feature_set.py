"""The features of a dataset's images, read in blocks: what evaluation tasks are computed from.

N images, n of a block, C channels, K classes.
"""

from bisect import bisect_right
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from mixer_dist.data.evaluation_stream import EvaluationShare
from mixer_dist.errors import DataError

BLOCK_IMAGES = 1024

Features = NDArray[np.floating[Any]]
Labels = NDArray[np.int64]


@dataclass(frozen=True)
class LabelLists:
    """The labels of images that may have several, or none."""

    values: Labels
    """Those of all images, end to end."""
    counts: Labels
    """How many each image has, (N,)."""

    def single(self) -> Labels:
        """One label an image, (N,); DataError."""
        if odd := int((self.counts != 1).sum()):
            raise DataError(
                f"expected one label an image, but {odd} of {len(self.counts)} images have "
                "several or none: only upstream tasks take them"
            )
        return self.values

    def targets(self, start: int, stop: int, num_classes: int) -> NDArray[np.float32]:
        """Ones at the labels of images [start, stop), (stop - start, K)."""
        counts = self.counts[start:stop]
        first = int(self.counts[:start].sum())
        values = self.values[first : first + int(counts.sum())]
        found = np.zeros((len(counts), num_classes), np.float32)
        found[np.repeat(np.arange(len(counts)), counts), values] = 1
        return found


@dataclass(frozen=True)
class FeaturePart:
    """Consecutive images, whose features are read when they are needed."""

    num_images: int
    read: Callable[[], Features]


class FeatureSet:
    """Pre-logits (N, C) of images in storage order, in memory a part at a time."""

    def __init__(
        self, parts: Sequence[FeaturePart], labels: LabelLists, classes: Sequence[str] | None = None
    ) -> None:
        self.labels = labels
        self.classes = classes
        self._parts = parts
        self._firsts = list(accumulate((part.num_images for part in parts), initial=0))
        self._last: tuple[int, Features] = (-1, np.empty((0, 0), np.float32))

    def __len__(self) -> int:
        return self._firsts[-1]

    @property
    def num_features(self) -> int:
        return int(self._part(0).shape[1])

    def class_name(self, label: int) -> str:
        """As messages say it."""
        return self.classes[label] if self.classes else f"class {label}"

    def blocks(self, rank: int = 0, world_size: int = 1) -> Iterator[tuple[slice, Features]]:
        """A rank's share of blocks: which images, and their features (n, C).

        The blocks are the same however many ranks there are, and however the parts were cut.
        """
        for number in EvaluationShare(rank, world_size, BLOCK_IMAGES).batches(len(self)):
            block = slice(number * BLOCK_IMAGES, min((number + 1) * BLOCK_IMAGES, len(self)))
            yield block, self._rows(block.start, block.stop)

    def take(self, images: Labels) -> Features:
        """The features of some images, ascending; parts without any are not read."""
        edges = np.searchsorted(images, self._firsts)
        found = [
            self._part(number)[images[begin:end] - self._firsts[number]]
            for number, (begin, end) in enumerate(pairwise(edges))
            if end > begin
        ]
        return np.concatenate(found)

    def _rows(self, start: int, stop: int) -> Features:
        numbers = range(bisect_right(self._firsts, start) - 1, len(self._parts))
        found = [
            self._part(number)[max(start - first, 0) : stop - first]
            for number, first in zip(numbers, self._firsts[numbers.start :], strict=False)
            if first < stop
        ]
        return found[0] if len(found) == 1 else np.concatenate(found)

    def _part(self, number: int) -> Features:
        if self._last[0] != number:
            self._last = number, self._parts[number].read()
        return self._last[1]


def in_memory(
    features: ArrayLike, labels: ArrayLike, classes: Sequence[str] | None = None
) -> FeatureSet:
    """Features (N, C) that are there already, with one label an image (N,)."""
    rows = np.asarray(features)
    values = np.asarray(labels, np.int64)
    lists = LabelLists(values, np.ones(len(values), np.int64))
    return FeatureSet([FeaturePart(len(rows), lambda: rows)], lists, classes)
