"""The stream of batches: a webdataset pipeline around our own source.

1. the source names each position of this rank's slice of each batch and the sample that lies there
2. load: range reads, CRC, decode; a damaged sample is replaced by its neighbour
3. the user's own stages
4. augment: crop, flip and resize, each decided by the position
5. collate: a Batch, with its digest
"""

import importlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from itertools import islice

import numpy as np
import torch
from numpy.typing import NDArray
from webdataset import DataPipeline

from mixer_dist import distributed
from mixer_dist.config import OrderConfig, RunConfig
from mixer_dist.data.augment import depth_masks, mixup_lambda, training_image
from mixer_dist.data.batch import Batch, filled, stack_images, stack_labels
from mixer_dist.data.loader import Loader, Sample, worker_threads
from mixer_dist.data.manifest import Dataset
from mixer_dist.data.order import (
    OrderShape,
    SampleOrder,
    Window,
    batch_positions,
    default_shape,
    largest_slice,
    rank_slice,
    sample_digest,
)
from mixer_dist.data.parallel import Ahead, mapped
from mixer_dist.errors import ConfigError, DataError
from mixer_dist.storage import Storage

Stage = Callable[[Iterable[Sample]], Iterator[Sample]]


@dataclass(frozen=True)
class Cursor:
    """Where a run stands in its data."""

    step: int = 0
    position: int = 0
    skipped: tuple[Window, ...] = ()


@dataclass(frozen=True)
class Share:
    """Which rank's slice of each batch, and how many images its Batch holds with the filling."""

    rank: int
    world_size: int
    num_rows: int


def resolve_order(config: RunConfig, dataset: Dataset) -> OrderConfig:
    """The order's shape with every default filled in."""
    given = config.data.order
    size = given.round_samples or config.global_batch_size
    defaults = default_shape(size, dataset.num_samples, dataset.num_bytes, given.lanes)
    shape = {name: getattr(given, name) or value for name, value in asdict(defaults).items()}
    if given.chunk_samples and not given.window:
        shape["window"] = given.chunk_samples
    return OrderConfig(**shape)


def sample_order(config: RunConfig, dataset: Dataset) -> SampleOrder:
    """The run's order of samples; ConfigError where its shape cannot be."""
    shape = _order_shape(config, dataset)
    try:
        return SampleOrder(dataset.shard_sizes, config.seed, **asdict(shape))
    except ValueError as error:
        raise ConfigError(f"data.order: {error}") from None


def _order_shape(config: RunConfig, dataset: Dataset) -> OrderShape:
    return OrderShape(**resolve_order(config, dataset).model_dump())


def _chunks_in_use(shape: OrderShape, world_size: int) -> int:
    """Chunks that a rank reads from at a time: what it keeps, so that none is read twice."""
    lanes = -(-shape.lanes // world_size) + 1
    of_lane = -(-shape.window // shape.chunk_samples) + 2  # a window's, and where the next begins
    return lanes * of_lane + 4


def micro_batch_shape(config: RunConfig, world_size: int) -> tuple[int, int]:
    """(images of a micro-batch, grad_accum_steps): the same on every rank; ConfigError."""
    most_ranks = config.global_batch_size // 2
    if world_size > most_ranks:
        raise ConfigError(
            f"{world_size} ranks cannot share a global_batch_size of {config.global_batch_size}: "
            f"at most {most_ranks} ranks, as each takes whole pairs of images"
        )
    slice_size = largest_slice(world_size, config.global_batch_size)
    size = min(config.micro_batch_size, slice_size)
    return size, -(-slice_size // size)


class TrainStream:
    """This rank's batches from a cursor on, prepared ahead in threads; use it in a `with`."""

    def __init__(
        self,
        config: RunConfig,
        dataset: Dataset,
        storage: Storage,
        cursor: Cursor,
        share: Share,
        depth_rates: Sequence[float],
    ) -> None:
        self._config = config
        self._cursor = cursor
        self._share = share
        self._depth_rates = np.asarray(depth_rates)
        self._order = sample_order(config, dataset)
        shape = _order_shape(config, dataset)
        self._loader = Loader(
            storage,
            dataset,
            shape.chunk_samples,
            _chunks_in_use(shape, share.world_size),
            config.model.num_classes,
        )
        num_threads = config.data.num_threads or distributed.num_cores()
        self._workers = worker_threads(num_threads)
        self._batches = Ahead(self._pipeline(), config.data.prefetch_batches)

    def __enter__(self) -> "TrainStream":
        return self

    def __exit__(self, *_: object) -> None:
        self._batches.close()
        self._workers.shutdown(wait=True, cancel_futures=True)
        self._loader.close()

    def __iter__(self) -> Iterator[Batch]:
        return self._batches

    def _pipeline(self) -> DataPipeline:
        depth = max(1, self._share.num_rows)
        return DataPipeline(
            self._source,
            mapped(self._loader.load_or_replace, self._workers, depth),
            *[user_stage(name) for name in self._config.data.stages],
            mapped(self._augment, self._workers, depth),
            self._collate,
        )

    def _steps(self) -> Iterator[tuple[int, NDArray[np.int64]]]:
        """Each step with its global batch's positions."""
        position = self._cursor.position
        for step in range(self._cursor.step, self._config.total_steps):
            size = self._config.global_batch_size
            positions = batch_positions(position, size, self._cursor.skipped)
            yield step, positions
            position = int(positions[-1]) + 1

    def _mine(self, positions: NDArray[np.int64]) -> NDArray[np.int64]:
        return positions[rank_slice(self._share.rank, self._share.world_size, len(positions))]

    def _source(self) -> Iterator[Sample]:
        for _, positions in self._steps():
            mine = self._mine(positions)
            samples = self._order.samples(mine)[1]
            for sample in np.unique(samples // self._order.chunk_samples):
                self._loader.prefetch(int(sample) * self._order.chunk_samples)
            for position, sample in zip(mine.tolist(), samples.tolist(), strict=True):
                yield {"__key__": "", "position": position, "sample": sample}

    def _augment(self, sample: Sample) -> Sample:
        augment = self._config.augment
        sample["pixels"] = training_image(
            sample["image"],
            self._config.model.image_size,
            self._config.seed,
            sample["position"],
            min_crop_area=augment.min_crop_area,
            flip=augment.flip,
        )
        return sample

    def _collate(self, samples: Iterable[Sample]) -> Iterator[Batch]:
        stream = iter(samples)
        for step, positions in self._steps():
            mine = self._mine(positions)
            rows = list(islice(stream, len(mine)))
            _check_positions(rows, mine, self._config.data.stages)
            batch = self._batch(step, rows, mine, int(positions[-1]) + 1)
            yield batch.pinned() if distributed.device().type == "cuda" else batch

    def _batch(
        self, step: int, rows: Sequence[Sample], mine: NDArray[np.int64], next_position: int
    ) -> Batch:
        num_rows = self._share.num_rows
        positions = filled(mine, num_rows, -1)
        return Batch(
            images=stack_images([row["pixels"] for row in rows], num_rows),
            labels=stack_labels(
                [row["labels"] for row in rows], self._config.model.num_classes, num_rows
            ),
            weights=(positions >= 0).to(torch.float32),
            positions=positions,
            depth_masks=self._masks(positions.numpy()),
            mixup=mixup_lambda(self._config.seed, step, self._config.augment.mixup),
            keys=tuple(row["__key__"] for row in rows),
            digest=_digest(rows, mine),
            step=step,
            next_position=next_position,
            bad_samples=tuple(bad for row in rows for bad in row["bad_samples"]),
        )

    def _masks(self, positions: NDArray[np.int64]) -> torch.Tensor | None:
        if not self._depth_rates.any():
            return None
        return depth_masks(self._config.seed, positions, self._depth_rates)


def user_stage(name: str) -> Stage:
    """The pipeline stage behind a dotted name; ConfigError where there is none."""
    module, _, attribute = name.rpartition(".")
    try:
        stage: Stage = getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError, ValueError) as error:
        raise ConfigError(f"data.stages: cannot import {name!r} ({error})") from None
    return stage


def _digest(rows: Sequence[Sample], positions: NDArray[np.int64]) -> int:
    columns = (np.array([row[name] for row in rows]) for name in ("shard", "index", "crc32"))
    return sample_digest(positions, *columns)


def _check_positions(
    rows: Sequence[Sample], expected: NDArray[np.int64], stages: Sequence[str]
) -> None:
    found = [row["position"] for row in rows]
    if found != expected.tolist():
        raise DataError(
            f"data.stages ({', '.join(stages)}) must give each sample back once and in order: "
            f"expected positions {expected[:3].tolist()}…, got {found[:3]}…"
        )
