"""Frozen features of a whole dataset, computed by all ranks unless they are cached.

n images of a batch, C channels.
"""

import secrets
from collections.abc import Iterator
from contextlib import closing

import numpy as np
import torch

from mixer_dist import distributed
from mixer_dist.config import RunConfig, Task
from mixer_dist.data.batch import Batch
from mixer_dist.data.evaluation_stream import EvaluationShare, evaluation_stream
from mixer_dist.data.manifest import Dataset
from mixer_dist.errors import NumericsError
from mixer_dist.eval.feature_cache import FeatureEntry, FeatureFolder, FeatureKey, StoredFile
from mixer_dist.eval.feature_parts import PartWriter
from mixer_dist.eval.feature_set import Features, FeatureSet, Labels
from mixer_dist.eval.feature_turn import found_or_ours
from mixer_dist.eval.subject import Subject
from mixer_dist.models.mixer import MlpMixer
from mixer_dist.progress import Progress
from mixer_dist.run_dir import RunDir
from mixer_dist.storage import Storage
from mixer_dist.train.objective import normalized

BATCH_IMAGES = 128
RESIZE_RATIO = 8 / 7  # the official 256 to 224


def dataset_features(
    subject: Subject, config: RunConfig, task: Task, dataset: Dataset, storage: Storage
) -> FeatureSet:
    """Pre-logits and labels of every image, in storage order. All ranks must call this."""
    key = FeatureKey(
        model=subject.sha256,
        dataset=dataset.fingerprint,
        resize_px=task.resize or round(config.model.image_size * RESIZE_RATIO),
        crop_px=config.model.image_size,
    )
    folder = FeatureFolder(storage, RunDir(config.run_dir), key)
    with found_or_ours(folder, config.pool.lease_s) as found:
        entry = found or _compute(folder, subject, config, dataset)
    return folder.open(entry, dataset.classes)


def _compute(
    folder: FeatureFolder, subject: Subject, config: RunConfig, dataset: Dataset
) -> FeatureEntry:
    """Each rank writes the features of its images, rank 0 commits them. All ranks must call."""
    batches = evaluation_stream(
        config,
        dataset,
        folder.storage,
        resize_px=folder.key.resize_px,
        share=EvaluationShare(distributed.rank(), distributed.world_size(), BATCH_IMAGES),
    )
    model = subject.model()
    writer = PartWriter(folder, distributed.share(secrets.token_hex(4)))
    of_ranks = distributed.on_all(lambda: writer.write(_batch_features(model, batches, dataset)))
    _check_finite(sum(num_bad for num_bad, _ in of_ranks), dataset, subject, writer)
    parts = [StoredFile.model_validate(part) for _, parts in of_ranks for part in parts]
    labels = {name: distributed.gather_rows(rows) for name, rows in writer.labels().items()}
    committed = distributed.on_main(lambda: writer.commit(parts, labels).model_dump(mode="json"))
    return FeatureEntry.model_validate(committed)


def _check_finite(num_bad: int, dataset: Dataset, subject: Subject, writer: PartWriter) -> None:
    if num_bad:
        writer.discard()
        distributed.fail_together(
            NumericsError(
                f"the features of {num_bad} of {dataset.num_samples} images are not finite: "
                f"{subject.checkpoint} cannot be judged; evaluate an earlier one"
            )
        )


def _batch_features(
    model: MlpMixer, batches: Iterator[Batch], dataset: Dataset
) -> Iterator[tuple[Features, Labels, Labels]]:
    """Of each batch the features (n, C), the labels end to end, and how many each image has."""
    mine = -(-dataset.num_samples // distributed.world_size())
    progress = Progress(mine, is_shown=distributed.is_main())
    with torch.inference_mode(), closing(progress):
        for batch in batches:
            real = batch.weights > 0
            if not real.any():
                continue
            pixels = normalized(batch.images.to(distributed.device()), torch.float32)
            features = model.features(pixels).cpu()[real].numpy()
            yield features, *_label_lists(batch.labels[real])
            progress.add(len(features))
            progress.show_line()


def _label_lists(labels: torch.Tensor) -> tuple[Labels, Labels]:
    """Labels (n,) or multi-hot (n, K) end to end, and how many each image has."""
    if labels.ndim == 1:
        return labels.numpy(), np.ones(len(labels), np.int64)
    images, values = labels.nonzero(as_tuple=True)
    return values.numpy(), np.bincount(images.numpy(), minlength=len(labels))
