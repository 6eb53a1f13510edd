"""The stream of batches: a webdataset pipeline around our own source.

1. the source names each position of this rank's slice of each batch and the sample that lies there
2. load: range reads, CRC, decode, of a crop only; a damaged sample is replaced by its neighbour
3. the user's own stages
4. augment: resize, flip, RandAugment; crop and all are decided by the position
5. collate: a Batch, with its digest
"""

import logging
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate, islice

import numpy as np
import torch
from numpy.typing import NDArray
from webdataset import DataPipeline

from mixer_dist import distributed
from mixer_dist.config import RunConfig
from mixer_dist.data.augment import (
    Draws,
    depth_masks,
    draw,
    mixup_lambda,
    random_square,
    reduction_for,
    training_crop,
    training_image,
)
from mixer_dist.data.batch import Batch, empty_images, filled, stack_labels
from mixer_dist.data.decode import EncodedImage
from mixer_dist.data.loader import Loader, Sample, worker_threads
from mixer_dist.data.manifest import Dataset
from mixer_dist.data.order import (
    OrderShape,
    Window,
    batch_digest,
    batch_positions,
    largest_slice,
    rank_slice,
    sample_hashes,
)
from mixer_dist.data.parallel import GROUP, Ahead, mapped
from mixer_dist.data.randaugment import randaugment
from mixer_dist.data.run_data import order_shape, sample_order
from mixer_dist.data.stages import Stage, check_positions, user_stage
from mixer_dist.errors import ConfigError
from mixer_dist.storage import Storage

POSITIONS_AT_ONCE = 512  # located and drawn for
SPARE_CHUNKS = 4  # beside those of the lanes

_NEEDED = ("__key__", "position", "labels", "shard", "index", "crc32", "bad_sample")  # by a batch

logger = logging.getLogger(__name__)


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


def _capacity_bytes(
    shape: OrderShape, config: RunConfig, share: Share, dataset: Dataset, num_pending: int
) -> int:
    """What a rank keeps of shards, so that it reads no chunk twice.

    Of each of its lanes two steps, the one at hand and the one read ahead, with the rest of the
    window and of the chunk in which they end; and the samples that are pending in its threads.
    """
    num_lanes = min(shape.lanes, -(-shape.lanes // share.world_size) + 1)
    of_step = -(-config.global_batch_size // shape.lanes)
    of_lane = 2 * of_step + shape.window + shape.chunk_samples
    num_samples = num_lanes * of_lane + SPARE_CHUNKS * shape.chunk_samples + num_pending
    return round(num_samples * dataset.num_bytes / dataset.num_samples)


def micro_batch_shape(config: RunConfig, world_size: int) -> tuple[int, int]:
    """(images of a micro-batch, grad_accum_steps): the same on every rank; ConfigError.

    As few micro-batches as `micro_batch_size` allows, and these as small as they can then be, so
    that little of them is filling.
    """
    most_ranks = config.global_batch_size // 2
    if world_size > most_ranks:
        raise ConfigError(
            f"{world_size} ranks cannot share a global_batch_size of {config.global_batch_size}: "
            f"at most {most_ranks} ranks, as each takes whole pairs of images"
        )
    slice_size = largest_slice(world_size, config.global_batch_size)
    given = config.micro_batch_size
    grad_accum_steps = 1 if given == "auto" else -(-slice_size // given)
    return -(-slice_size // (2 * grad_accum_steps)) * 2, grad_accum_steps


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
        self._images: deque[torch.Tensor] = deque()  # of the batches under way, in their order
        shape = order_shape(config, dataset)
        self._num_threads = config.data.num_threads or distributed.num_cores()
        self._depth = 2 * GROUP * self._num_threads
        capacity_bytes = _capacity_bytes(shape, config, share, dataset, self._depth + GROUP)
        self._loader = Loader(
            storage,
            dataset,
            chunk_samples=shape.chunk_samples,
            capacity_bytes=capacity_bytes,
            num_classes=config.model.num_classes,
            decode=self._decode,
        )
        self._workers = worker_threads(self._num_threads)
        logger.info(_memory_line(shape, capacity_bytes, config, share))
        self._batches = Ahead(self._pipeline(), config.data.prefetch_batches)

    def __enter__(self) -> "TrainStream":
        return self

    def __exit__(self, *_: object) -> None:
        self._loader.stop()
        self._batches.close()
        self._workers.shutdown(wait=True, cancel_futures=True)
        self._loader.close()

    def __iter__(self) -> Iterator[Batch]:
        return self._batches

    def _pipeline(self) -> DataPipeline:
        load, augment = self._loader.load_or_replace, self._augment
        stages = [user_stage(name) for name in self._config.data.stages]
        if not stages:  # one task an image costs less than two
            return DataPipeline(
                self._source, self._mapped(lambda sample: augment(load(sample))), self._collate
            )
        return DataPipeline(
            self._source, self._mapped(load), *stages, self._mapped(augment), self._collate
        )

    def _mapped(self, function: Callable[[Sample], Sample]) -> Stage:
        return mapped(function, self._workers, self._depth)

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
        """The samples of this rank's slices; the chunks of the next step are read meanwhile."""
        ahead = self._located()
        due = next(ahead, None)
        while due:
            drawn, samples = due
            due = next(ahead, None)
            images = empty_images(self._share.num_rows, len(drawn), self._config.model.image_size)
            self._images.append(images)
            for draws, sample, row in zip(drawn, samples, images, strict=False):
                yield {
                    "__key__": "", "position": draws.position, "sample": sample, "draws": draws,
                    "row": row,
                }  # fmt: skip

    def _located(self) -> Iterator[tuple[list[Draws], list[int]]]:
        """Each step's draws and samples of this rank, whose chunks are asked for.

        Of several steps at once, since a NumPy call costs as much for one image as for a hundred.
        """
        operations = self._config.augment.randaugment
        num_layers = operations.layers if operations else 0
        steps = (self._mine(positions) for _, positions in self._steps())
        while block := list(islice(steps, 1 + POSITIONS_AT_ONCE // self._share.num_rows)):
            positions = np.concatenate(block)
            samples = self._order.samples(positions)[1].tolist()
            drawn = draw(self._config.seed, positions, num_layers)
            for start, size in zip(
                accumulate(map(len, block), initial=0), map(len, block), strict=False
            ):
                of_step = slice(start, start + size)
                self._prefetch(samples[of_step])
                yield drawn[of_step], samples[of_step]

    def _prefetch(self, samples: Sequence[int]) -> None:
        for chunk in sorted({sample // self._order.chunk_samples for sample in samples}):
            self._loader.prefetch(chunk * self._order.chunk_samples)

    def _decode(self, sample: Sample) -> Sample:
        encoded, augment = EncodedImage(sample["data"]), self._config.augment
        size_px, draws = self._config.model.image_size, sample["draws"]
        if augment.resize:
            crop = random_square(*encoded.size, draws, size_px / augment.resize)
        else:
            crop = training_crop(*encoded.size, draws, augment.min_crop_area)
        reduction = reduction_for(crop, size_px)
        return sample | {"image": encoded.decode_crop(crop, reduction)}

    def _augment(self, sample: Sample) -> Sample:
        augment, draws = self._config.augment, sample["draws"]
        is_flipped = augment.flip and draws.is_flipped
        pixels = training_image(sample["image"], self._config.model.image_size, flip=is_flipped)
        if augment.randaugment:
            pixels = randaugment(pixels, augment.randaugment.magnitude, draws.operations)
        sample["row"].copy_(pixels)  # here, where they are at hand, not when the batch is made
        return {name: sample[name] for name in _NEEDED}  # bytes and whole image go at once

    def _collate(self, samples: Iterable[Sample]) -> Iterator[Batch]:
        stream = iter(samples)
        for step, positions in self._steps():
            mine = self._mine(positions)
            rows = list(islice(stream, len(mine)))
            check_positions(rows, mine, self._config.data.stages)
            batch = self._batch(step, rows, mine, int(positions[-1]) + 1)
            yield batch.pinned() if distributed.device().type == "cuda" else batch

    def _batch(
        self, step: int, rows: Sequence[Sample], mine: NDArray[np.int64], next_position: int
    ) -> Batch:
        num_rows = self._share.num_rows
        positions = filled(mine, num_rows, -1)
        return Batch(
            images=self._images.popleft(),
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
            bad_samples=tuple(row["bad_sample"] for row in rows if row["bad_sample"]),
        )

    def _masks(self, positions: NDArray[np.int64]) -> torch.Tensor | None:
        if not self._depth_rates.any():
            return None
        return depth_masks(self._config.seed, positions, self._depth_rates)


def _memory_line(shape: OrderShape, capacity_bytes: int, config: RunConfig, share: Share) -> str:
    batch_bytes = share.num_rows * 3 * config.model.image_size**2
    num_batches = config.data.prefetch_batches + 2  # one waits for room, one is being made
    return (
        f"Data: {shape.lanes} lanes, chunks of {shape.chunk_samples} samples; a rank keeps up to "
        f"{capacity_bytes / 1e6:,.0f} MB of shards and {num_batches} batches of "
        f"{batch_bytes / 1e6:,.0f} MB ahead of the step."
    )


def _digest(rows: Sequence[Sample], positions: NDArray[np.int64]) -> int:
    columns = (np.array([row[name] for row in rows]) for name in ("shard", "index", "crc32"))
    return batch_digest(sample_hashes(positions, *columns))
