"""The stream of batches: the same on any ranks and threads, and what the order alone says."""

import io
import itertools
import json
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from mixer_dist.config import RunConfig
from mixer_dist.data.augment import depth_masks, draw, mixup_lambda
from mixer_dist.data.batch import Batch
from mixer_dist.data.order import SampleOrder, Window, batch_digest, batch_positions, sample_hashes
from mixer_dist.data.randaugment import randaugment
from mixer_dist.data.run_data import resolve_order, sample_order
from mixer_dist.data.stream import Cursor, micro_batch_shape
from mixer_dist.errors import ConfigError
from tests.data.handmade import (
    DEPTH_RATES,
    CountingStorage,
    augmented,
    batches_of,
    dataset_of,
    files_of,
    good_sample,
    open_stream,
    png,
    stream_config,
    twelve,
    write_dataset,
)

SIZE_PX, BATCH, NUM_DIGITS = 16, 22, 296
WORD = 2**64


@dataclass
class Whole:
    """A global batch, put together from what the ranks hold."""

    images: torch.Tensor
    labels: list[int]
    positions: list[int]
    masks: torch.Tensor
    keys: list[str]
    digest: int
    mixup: float
    step: int
    next_position: int

    def is_same(self, other: "Whole") -> bool:
        pairs = zip(vars(self).values(), vars(other).values(), strict=True)
        return all(torch.equal(a, b) if isinstance(a, torch.Tensor) else a == b for a, b in pairs)


def whole(parts: Iterable[Batch]) -> Whole:
    """The ranks' batches of one step, joined without their filling."""
    parts = list(parts)
    real = [part.weights > 0 for part in parts]

    def joined(name: str, dim: int = 0) -> torch.Tensor:
        tensors = [getattr(part, name) for part in parts]
        return torch.cat(
            [t[..., r] if dim else t[r] for t, r in zip(tensors, real, strict=True)], dim
        )

    return Whole(
        images=joined("images"),
        labels=joined("labels").tolist(),
        positions=joined("positions").tolist(),
        masks=joined("depth_masks", 2),
        keys=[key for part in parts for key in part.keys],
        digest=sum(part.digest for part in parts) % WORD,
        mixup=parts[0].mixup,
        step=parts[0].step,
        next_position=parts[0].next_position,
    )


class Plain:
    """The test digits as tarfile and Pillow read them, and the batches that the order makes."""

    def __init__(self, folder: Path, seed: int) -> None:
        shards = json.loads((folder / "manifest.json").read_text())["shards"]
        self.samples = files_of(folder)
        self.crcs = [np.fromfile(folder / shard["index"], "<u8,<u4,<u4")["f2"] for shard in shards]
        sizes = [len(crcs) for crcs in self.crcs]
        self.begins = [0, *itertools.accumulate(sizes)]
        self.seed = seed
        self.order = SampleOrder(
            sizes, seed, chunk_samples=5, lanes=11, window=5, round_samples=BATCH
        )

    def batch(self, step: int, positions: np.ndarray) -> Whole:
        located = self.order.locate(positions)
        chosen = [self.samples[self.begins[shard] + index] for _, shard, index in located]
        decoded = [np.array(Image.open(io.BytesIO(s["png"])).convert("RGB")) for s in chosen]
        images = [
            augmented(image, SIZE_PX, self.seed, position, 0.05, flip=True)
            for image, position in zip(decoded, positions.tolist(), strict=True)
        ]
        crcs = np.array([self.crcs[shard][index] for _, shard, index in located])
        return Whole(
            images=torch.stack(images),
            labels=[int(sample["cls"]) for sample in chosen],
            positions=positions.tolist(),
            masks=depth_masks(self.seed, positions, np.array(DEPTH_RATES)),
            keys=[sample["__key__"] for sample in chosen],
            digest=batch_digest(sample_hashes(positions, located[:, 1], located[:, 2], crcs)),
            mixup=mixup_lambda(self.seed, step, 0.5),
            step=step,
            next_position=int(positions[-1]) + 1,
        )


@pytest.fixture(scope="module")
def plain(digits: Path) -> Plain:
    return Plain(digits / "test", seed=5)


@pytest.fixture(scope="module")
def digits_run(digits: Path) -> Callable[..., RunConfig]:
    """A run over the 296 test digits in two shards, with changes."""

    def make(**changes: Any) -> RunConfig:
        tree = {
            "global_batch_size": BATCH, "micro_batch_size": 4, "model__image_size": SIZE_PX,
            "augment__mixup": 0.5, "data__order": {"lanes": 11, "chunk_samples": 5},
        }  # fmt: skip
        return stream_config(str(digits / "test" / "manifest.json"), **(tree | changes))

    return make


@pytest.mark.parametrize(
    ("world_size", "num_threads", "micro_batch_size"),
    [(1, 1, 4), (1, 3, 22), (2, 2, 6), (3, 3, 2), (3, 1, 20), (11, 1, 2)],
)
def test_ranks_together_read_what_the_order_says(
    digits_run, plain, world_size, num_threads, micro_batch_size
):
    num_steps = 15 if world_size < 11 else 3  # 15 steps reach into the second epoch
    config = digits_run(data__num_threads=num_threads, micro_batch_size=micro_batch_size)
    ranks = [
        batches_of(config, num_steps, rank=rank, world_size=world_size)
        for rank in range(world_size)
    ]
    for step, parts in enumerate(zip(*ranks, strict=True)):
        positions = np.arange(step * BATCH, (step + 1) * BATCH)
        assert whole(parts).is_same(plain.batch(step, positions))


def test_filling_is_black_has_no_weight_and_comes_last(digits_run):
    """Three ranks take 6, 8 and 8 of 22 images; every rank runs two micro-batches of 4."""
    config = digits_run(micro_batch_size=4)
    for rank, num_real in enumerate((6, 8, 8)):
        [batch] = batches_of(config, 1, rank=rank, world_size=3)
        assert len(batch) == 8 and batch.depth_masks.shape == (3, 2, 8)
        assert batch.weights.tolist() == [1.0] * num_real + [0.0] * (8 - num_real)
        assert (batch.positions[num_real:] == -1).all() and (batch.positions[:num_real] >= 0).all()
        assert not batch.images[num_real:].any() and batch.images[:num_real].any((1, 2, 3)).all()
        assert len(batch.keys) == num_real
        halves = list(batch.micro_batches(4))
        assert torch.equal(torch.cat([half.images for half in halves]), batch.images)
        assert torch.equal(torch.cat([half.depth_masks for half in halves], 2), batch.depth_masks)


def test_an_epoch_holds_every_sample_once_and_may_end_inside_a_batch(digits_run):
    batches = batches_of(digits_run(augment__mixup=0.0), 14)  # 14 · 22 = 296 + 12
    keys = [key for batch in batches for key in batch.keys]
    assert len(set(keys[:NUM_DIGITS])) == NUM_DIGITS
    assert [batch.next_position for batch in batches] == [BATCH * n for n in range(1, 15)]
    assert {batch.mixup for batch in batches} == {1.0}


@pytest.mark.parametrize("skipped", [(), (Window(100, 122), Window(110, 150), Window(190, 191))])
def test_reading_goes_on_anywhere(digits_run, plain, skipped):
    """From a step, a position and skipped windows alone, at another number of ranks."""
    position = 3 * BATCH
    unbroken = []
    for step in range(3, 9):
        positions = batch_positions(position, BATCH, skipped)
        unbroken.append(plain.batch(step, positions))
        position = int(positions[-1]) + 1
    for stop in (0, 2, 5):
        before = unbroken[stop - 1] if stop else None
        cursor = Cursor(3 + stop, before.next_position if before else 3 * BATCH, skipped)
        ranks = [
            batches_of(digits_run(), 6 - stop, cursor, rank=rank, world_size=2) for rank in (0, 1)
        ]
        found = [whole(parts) for parts in zip(*ranks, strict=True)]
        assert all(a.is_same(b) for a, b in zip(found, unbroken[stop:], strict=True))


def test_a_stream_ends_with_the_run(digits_run):
    with open_stream(digits_run(total_steps=5), Cursor(3, 3 * BATCH)) as stream:
        assert [batch.step for batch in stream] == [3, 4]
        assert next(iter(stream), None) is None


def test_repeats_and_several_datasets_lie_end_to_end(tmp_path):
    first = write_dataset(tmp_path / "a", [[good_sample(n) for n in range(5)]])
    second = write_dataset(tmp_path / "b", [[good_sample(n) for n in range(100, 107)]])
    config = stream_config(first, second)
    entries = [config.data.train[0].model_copy(update={"repeats": 3}), config.data.train[1]]
    data = config.data.model_copy(update={"train": tuple(entries)})
    batches = batches_of(config.model_copy(update={"data": data}), 4)  # 24 of 22 samples
    keys = sorted(key for batch in batches for key in batch.keys[: 22 - batch.step * 6])
    assert keys == sorted(
        [f"s{n:03}" for n in range(5)] * 3 + [f"s{n:03}" for n in range(100, 107)]
    )


@pytest.mark.parametrize(
    "order",
    [
        {"lanes": 11, "chunk_samples": 5},
        {"lanes": 2, "chunk_samples": 5, "window": 50},
        {"lanes": 1, "chunk_samples": 74},
        {"lanes": 2, "chunk_samples": 3},  # of which a step uses up four in each lane
    ],
)
def test_chunks_are_read_once_but_for_those_that_two_lanes_share(digits_run, order):
    storage = CountingStorage()
    config = digits_run(total_steps=13, data__order=order)  # 286 of 296 samples
    assert len(batches_of(config, 99, storage=storage)) == 13
    num_chunks = -(-NUM_DIGITS // order["chunk_samples"])
    num_borders = order["lanes"] - 1  # of lanes, each at another time of the epoch
    assert len(storage.ranges) <= num_chunks + 1 + num_borders  # one chunk lies in both shards
    assert len(storage.ranges) - len(set(storage.ranges)) <= num_borders


def test_several_labels_become_multi_hot(tmp_path):
    several = {"png": png(5), "json": b'{"labels": [3, 7]}'}
    [batch, other] = batches_of(stream_config(twelve(tmp_path, {5: several, 9: several})), 2)
    for each in (batch, other):
        expected = torch.zeros(6, 10)
        for row, key in enumerate(each.keys):
            expected[row, [3, 7] if key in ("s005", "s009") else [0]] = 1
        assert each.labels.dtype == torch.float32 or each.labels.ndim == 1
        found = each.labels if each.labels.ndim == 2 else torch.eye(10)[each.labels]
        assert torch.equal(found, expected)


def test_an_order_is_resolved_once_and_for_all(tmp_path):
    config = stream_config(twelve(tmp_path, {}), data__order={})
    resolved = resolve_order(config, dataset_of(config))
    assert resolved.model_dump() == {
        "round_samples": 6, "lanes": 6, "chunk_samples": 1, "window": 1,
    }  # fmt: skip
    recorded = config.model_copy(
        update={
            "global_batch_size": 10,
            "data": config.data.model_copy(update={"order": resolved}),
        }
    )
    assert resolve_order(recorded, dataset_of(config)) == resolved


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({"chunk_samples": 9}, (22, 22, 9, 9)),
        ({"window": 9}, (22, 22, 3, 9)),
        ({"lanes": 2}, (22, 2, 37, 37)),  # 296 // (4 · 2)
        ({"round_samples": 30}, (30, 30, 2, 2)),
    ],
)
def test_what_is_given_of_an_order_decides_the_rest(digits_run, given, expected):
    config = digits_run(data__order=given)
    order = resolve_order(config, dataset_of(config))
    assert tuple(order.model_dump().values()) == expected


def test_an_order_that_cannot_be_is_refused(digits_run):
    config = digits_run(data__order={"lanes": 4})
    with pytest.raises(ConfigError, match=r"data\.order: lanes \(4\) must divide .* \(22\)"):
        sample_order(config, dataset_of(config))


@pytest.mark.parametrize(
    ("world_size", "micro_batch_size", "expected"),
    [(1, 22, (22, 1)), (1, 4, (4, 6)), (3, 4, (4, 2)), (3, 6, (4, 2)),
     (3, 22, (8, 1)), (11, 8, (2, 1))],
)  # fmt: skip
def test_accumulation_follows_from_the_largest_slice(
    digits_run, world_size, micro_batch_size, expected
):
    config = digits_run(micro_batch_size=micro_batch_size)
    assert micro_batch_shape(config, world_size) == expected


def test_more_ranks_than_pairs_are_refused(digits_run):
    with pytest.raises(ConfigError, match="at most 11 ranks"):
        micro_batch_shape(digits_run(), 12)


def test_randaugment_is_applied_after_the_other_changes(digits_run):
    """To each image by its own position, whoever reads it."""
    layers = {"layers": 2, "magnitude": 15}
    plain, changed = (
        batches_of(digits_run(augment__randaugment=each), 2) for each in (None, layers)
    )
    for before, after in zip(plain, changed, strict=True):
        drawn = draw(5, before.positions[:BATCH].numpy(), num_layers=2)
        expected = [
            randaugment(image, 15, draws.operations)
            for image, draws in zip(before.images, drawn, strict=False)
        ]
        assert torch.equal(after.images[:BATCH], torch.stack(expected))
        assert not torch.equal(after.images, before.images)
