"""Frozen features of a whole dataset: what linear evaluations are computed from."""

from collections.abc import Iterator

import numpy as np
import torch
from numpy.typing import NDArray
from tqdm import tqdm

from mixer_dist import distributed
from mixer_dist.config import EvaluationConfig, RunConfig
from mixer_dist.data.batch import Batch
from mixer_dist.data.evaluation_stream import EvaluationShare, evaluation_stream
from mixer_dist.data.manifest import Dataset
from mixer_dist.errors import DataError
from mixer_dist.models.mixer import MlpMixer
from mixer_dist.storage import Storage
from mixer_dist.train.objective import normalized

BATCH_IMAGES = 128
RESIZE_RATIO = 8 / 7  # the official 256 to 224


def dataset_features(
    model: MlpMixer, config: RunConfig, task: EvaluationConfig, dataset: Dataset, storage: Storage
) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Pre-logits (N, C) and labels (N,) of every image, in storage order. All ranks must call."""
    size = config.model.image_size
    batches = evaluation_stream(
        config,
        dataset,
        storage,
        resize_px=task.resize or round(size * RESIZE_RATIO),
        share=EvaluationShare(distributed.rank(), distributed.world_size(), BATCH_IMAGES),
    )
    found = list(_batch_features(model, batches, dataset.num_samples))
    features, labels = (np.concatenate(column) for column in zip(*found, strict=True))
    return distributed.gather_rows(features), distributed.gather_rows(labels)


def _batch_features(
    model: MlpMixer, batches: Iterator[Batch], num_samples: int
) -> Iterator[tuple[NDArray[np.float32], NDArray[np.int64]]]:
    device = distributed.device()
    mine = -(-num_samples // distributed.world_size())
    is_quiet = None if distributed.is_main() else True
    with torch.inference_mode(), tqdm(total=mine, unit="img", disable=is_quiet) as bar:
        for batch in batches:
            if batch.labels.ndim != 1:
                raise DataError("a few-shot task needs one label an image, found several")
            real = batch.weights > 0
            pixels = normalized(batch.images.to(device), torch.float32)
            values = model.features(pixels).cpu()[real]
            bar.update(len(values))
            yield values.numpy(), batch.labels[real].numpy()
