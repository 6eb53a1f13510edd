"""A finite stream: every image of a dataset once, in storage order, none replaced."""

from collections.abc import Iterator, Sequence
from itertools import islice

import numpy as np
import torch

from mixer_dist import distributed
from mixer_dist.config import RunConfig
from mixer_dist.data.augment import resized_as_evaluated
from mixer_dist.data.batch import Batch, filled, stack_images, stack_labels
from mixer_dist.data.loader import Loader, Sample, worker_threads
from mixer_dist.data.manifest import Dataset
from mixer_dist.data.order import CHUNK_BYTES
from mixer_dist.data.parallel import mapped
from mixer_dist.storage import Storage

ANY_CLASS = 2**31  # where a manifest does not name its classes


def evaluation_stream(
    config: RunConfig,
    dataset: Dataset,
    storage: Storage,
    *,
    resize_px: int,
    num_rows: int,
) -> Iterator[Batch]:
    """Every image once, in storage order, as batches of num_rows; the last one filled up."""
    mean_bytes = max(1, dataset.num_bytes // dataset.num_samples)
    chunk_samples = max(1, CHUNK_BYTES // mean_bytes)
    num_chunks = 4 + num_rows // chunk_samples
    num_classes = len(dataset.classes) if dataset.classes else ANY_CLASS
    loader = Loader(storage, dataset, chunk_samples, num_chunks, num_classes)
    workers = worker_threads(config.data.num_threads or distributed.num_cores())

    def load(sample: Sample) -> Sample:
        loaded = loader.load(sample)
        crop_px = config.model.image_size
        return loaded | {"pixels": resized_as_evaluated(loaded["image"], resize_px, crop_px)}

    def places() -> Iterator[Sample]:
        for sample in range(dataset.num_samples):
            if sample % chunk_samples == 0:
                loader.prefetch(sample)
            yield {"position": sample, "sample": sample}

    try:
        rows = mapped(load, workers, num_rows)(places())
        for first in range(0, dataset.num_samples, num_rows):
            wanted = min(num_rows, dataset.num_samples - first)
            part = list(islice(rows, wanted))
            yield _evaluation_batch(part, first, num_rows, dataset.classes)
    finally:
        workers.shutdown(wait=True, cancel_futures=True)
        loader.close()


def _evaluation_batch(
    rows: Sequence[Sample], first: int, num_rows: int, classes: Sequence[str] | None
) -> Batch:
    positions = filled(np.arange(first, first + len(rows)), num_rows, -1)
    largest = max((label for row in rows for label in row["labels"]), default=0)
    num_classes = len(classes) if classes else largest + 1
    return Batch(
        images=stack_images([row["pixels"] for row in rows], num_rows),
        labels=stack_labels([row["labels"] for row in rows], num_classes, num_rows),
        weights=(positions >= 0).to(torch.float32),
        positions=positions,
        keys=tuple(row["__key__"] for row in rows),
    )
