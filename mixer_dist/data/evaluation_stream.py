"""A finite stream: every image of a dataset once, in storage order, none replaced.

The dataset is cut into batches before they are dealt to ranks, so that no image meets others than
it would on one rank: what is computed from it does not depend on the number of ranks.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice

import numpy as np
import torch

from mixer_dist import distributed
from mixer_dist.config import RunConfig
from mixer_dist.data.augment import resized_as_evaluated
from mixer_dist.data.batch import Batch, empty_images, filled, stack_labels
from mixer_dist.data.decode import decode_image
from mixer_dist.data.loader import Loader, Sample, worker_threads
from mixer_dist.data.manifest import Dataset
from mixer_dist.data.order import CHUNK_BYTES
from mixer_dist.data.parallel import mapped
from mixer_dist.storage import Storage

ANY_CLASS = 2**31  # where a manifest does not name its classes


@dataclass(frozen=True)
class EvaluationShare:
    """Which batches of the whole dataset a rank takes: consecutive ones, as even as can be."""

    rank: int
    world_size: int
    num_rows: int
    """Images of a batch."""

    def batches(self, num_samples: int) -> range:
        """The rank's batches, by number."""
        total = -(-num_samples // self.num_rows)
        edges = (r * total // self.world_size for r in (self.rank, self.rank + 1))
        return range(*edges)

    def num_rounds(self, num_samples: int) -> int:
        """Batches that every rank yields, empty ones included, for the sake of collectives."""
        return -(-num_samples // (self.num_rows * self.world_size))


def evaluation_stream(
    config: RunConfig,
    dataset: Dataset,
    storage: Storage,
    *,
    resize_px: int,
    share: EvaluationShare,
) -> Iterator[Batch]:
    """This rank's batches: each image of the dataset on one rank, filling has weight 0."""
    crop_px, num_rows = config.model.image_size, share.num_rows

    def decode(sample: Sample) -> Sample:
        image = decode_image(sample["data"])
        return sample | {"pixels": resized_as_evaluated(image, resize_px, crop_px)}

    mean_bytes = max(1, dataset.num_bytes // dataset.num_samples)
    chunk_samples = max(1, CHUNK_BYTES // mean_bytes)
    loader = Loader(
        storage,
        dataset,
        chunk_samples=chunk_samples,
        capacity_bytes=4 * CHUNK_BYTES + 2 * num_rows * mean_bytes,
        num_classes=len(dataset.classes) if dataset.classes else ANY_CLASS,
        decode=decode,
    )
    mine = share.batches(dataset.num_samples)
    first, last = (min(n * num_rows, dataset.num_samples) for n in (mine.start, mine.stop))

    def places() -> Iterator[Sample]:
        for sample in range(first, last):
            if sample == first or sample % chunk_samples == 0:
                loader.prefetch(sample)
            yield {"position": sample, "sample": sample}

    workers = worker_threads(config.data.num_threads or distributed.num_cores())
    try:
        rows = mapped(loader.load, workers, num_rows)(places())
        for start in range(first, last, num_rows):
            part = list(islice(rows, min(num_rows, last - start)))
            yield _evaluation_batch(part, start, num_rows, crop_px, dataset.classes)
        for _ in range(share.num_rounds(dataset.num_samples) - len(mine)):
            yield _evaluation_batch([], last, num_rows, crop_px, dataset.classes)
    finally:
        loader.stop()
        workers.shutdown(wait=True, cancel_futures=True)
        loader.close()


def _evaluation_batch(
    rows: Sequence[Sample],
    first: int,
    num_rows: int,
    crop_px: int,
    classes: Sequence[str] | None,
) -> Batch:
    positions = filled(np.arange(first, first + len(rows)), num_rows, -1)
    largest = max((label for row in rows for label in row["labels"]), default=0)
    num_classes = len(classes) if classes else largest + 1
    images = empty_images(num_rows, len(rows), crop_px)
    for row, image in zip(rows, images, strict=False):
        image.copy_(row["pixels"])
    return Batch(
        images=images,
        labels=stack_labels([row["labels"] for row in rows], num_classes, num_rows),
        weights=(positions >= 0).to(torch.float32),
        positions=positions,
        keys=tuple(row["__key__"] for row in rows),
    )
