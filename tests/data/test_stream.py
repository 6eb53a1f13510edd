"""The stream of batches: the same on any ranks and threads, and what the order alone says."""

import io
import itertools
import json
import tarfile
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from mixer_dist.config import RunConfig
from mixer_dist.data.augment import depth_masks, mixup_lambda, resized_as_evaluated, training_image
from mixer_dist.data.batch import BadSample, Batch
from mixer_dist.data.evaluation_stream import evaluation_stream
from mixer_dist.data.manifest import Dataset, load_dataset
from mixer_dist.data.order import SampleOrder, Window, batch_positions, sample_digest
from mixer_dist.data.stream import (
    Cursor,
    Share,
    TrainStream,
    micro_batch_shape,
    resolve_order,
    sample_order,
)
from mixer_dist.errors import ConfigError, DataError
from mixer_dist.storage import Storage
from tests.data.handmade import (
    CountingStorage,
    flip_byte,
    good_sample,
    png,
    stream_config,
    write_dataset,
)

SIZE_PX, BATCH, NUM_DIGITS = 16, 22, 296
RATES = [0.0, 0.3, 0.6]
WORD = 2**64

Samples = Iterable[dict[str, Any]]


def dataset_of(config: RunConfig) -> Dataset:
    return load_dataset(Storage(), [(e.manifest, e.repeats) for e in config.data.train])


def open_stream(
    config: RunConfig,
    cursor: Cursor | None = None,
    *,
    rank: int = 0,
    world_size: int = 1,
    storage: Storage | None = None,
) -> TrainStream:
    size, accumulation = micro_batch_shape(config, world_size)
    share = Share(rank, world_size, size * accumulation)
    dataset = dataset_of(config)
    return TrainStream(config, dataset, storage or Storage(), cursor or Cursor(), share, RATES)


def batches_of(config: RunConfig, num_batches: int, *args: Any, **kwargs: Any) -> list[Batch]:
    with open_stream(config, *args, **kwargs) as stream:
        return list(itertools.islice(stream, num_batches))


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
        pairs = [(value, vars(other)[name]) for name, value in vars(self).items()]
        return all(
            torch.equal(a, b) if isinstance(a, torch.Tensor) else a == b for a, b in pairs
        )  # fmt: skip


def whole(parts: Iterable[Batch]) -> Whole:
    """The ranks' batches of one step without the filling."""
    parts = list(parts)
    real = [part.weights > 0 for part in parts]
    chained = itertools.chain.from_iterable
    return Whole(
        images=torch.cat([part.images[r] for part, r in zip(parts, real, strict=True)]),
        labels=torch.cat([part.labels[r] for part, r in zip(parts, real, strict=True)]).tolist(),
        positions=list(
            chained(part.positions[r].tolist() for part, r in zip(parts, real, strict=True))
        ),
        masks=torch.cat([part.depth_masks[..., r] for part, r in zip(parts, real, strict=True)], 2),
        keys=list(chained(part.keys for part in parts)),
        digest=sum(part.digest for part in parts) % WORD,
        mixup=parts[0].mixup,
        step=parts[0].step,
        next_position=parts[0].next_position,
    )


class Plain:
    """The test digits as tarfile and Pillow read them, and the batches that the order makes."""

    def __init__(self, folder: Path, seed: int) -> None:
        shards = json.loads((folder / "manifest.json").read_text())["shards"]
        self.samples = [self._read(folder / shard["name"]) for shard in shards]
        self.crcs = [np.fromfile(folder / shard["index"], "<u8,<u4,<u4")["f2"] for shard in shards]
        sizes = [len(samples) for samples in self.samples]
        self.seed = seed
        self.order = SampleOrder(
            sizes, seed, chunk_samples=5, lanes=11, window=5, round_samples=BATCH
        )

    @staticmethod
    def _read(path: Path) -> list[tuple[str, np.ndarray, int]]:
        with tarfile.open(path) as tar:
            content = {member.name: tar.extractfile(member).read() for member in tar}
        keys = dict.fromkeys(name.rpartition(".")[0] for name in content)
        images = [Image.open(io.BytesIO(content[f"{key}.png"])).convert("RGB") for key in keys]
        labels = [int(content[f"{key}.cls"]) for key in keys]
        return [(k, np.array(i), n) for k, i, n in zip(keys, images, labels, strict=True)]

    def batch(self, step: int, positions: np.ndarray) -> Whole:
        located = self.order.locate(positions)
        chosen = [self.samples[shard][index] for _, shard, index in located]
        images = [
            training_image(image, SIZE_PX, self.seed, int(position), min_crop_area=0.05, flip=True)
            for (_, image, _), position in zip(chosen, positions, strict=True)
        ]
        crcs = np.array([self.crcs[shard][index] for _, shard, index in located])
        return Whole(
            images=torch.stack(images),
            labels=[label for _, _, label in chosen],
            positions=positions.tolist(),
            masks=depth_masks(self.seed, positions, np.array(RATES)),
            keys=[key for key, _, _ in chosen],
            digest=sample_digest(positions, located[:, 1], located[:, 2], crcs),
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
    """Three ranks take 6, 8 and 8 of 22 images; every rank runs two micro-batches of 6."""
    config = digits_run(micro_batch_size=6)
    for rank, num_real in enumerate((6, 8, 8)):
        [batch] = batches_of(config, 1, rank=rank, world_size=3)
        assert len(batch) == 12 and batch.depth_masks.shape == (3, 2, 12)
        assert batch.weights.tolist() == [1.0] * num_real + [0.0] * (12 - num_real)
        assert (batch.positions[num_real:] == -1).all() and (batch.positions[:num_real] >= 0).all()
        assert not batch.images[num_real:].any() and batch.images[:num_real].any((1, 2, 3)).all()
        assert len(batch.keys) == num_real
        halves = list(batch.micro_batches(6))
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


# Damage: twelve samples in shards of 5, 3 and 4, read in chunks of 4.

PLACES = [(0, i) for i in range(5)] + [(1, i) for i in range(3)] + [(2, i) for i in range(4)]


def twelve(folder: Path, damaged: dict[int, dict[str, bytes]]) -> str:
    samples = [(f"s{n:03}", damaged.get(n, good_sample(n)[1])) for n in range(12)]
    return write_dataset(folder, [samples[:5], samples[5:8], samples[8:]])


def check_replaced(folder: Path, manifest: str, number: int, by: int, key: str, reason: str):
    """Everything about the one bad sample, in the epoch that holds it once."""
    config = stream_config(manifest, augment__flip=False, augment__min_crop_area=1.0)
    batches = batches_of(config, 2)
    samples = sample_order(config, dataset_of(config)).samples(np.arange(12))[1].tolist()
    position = samples.index(number)
    used = [by if n == number else n for n in samples]
    assert [key for batch in batches for key in batch.keys] == [f"s{n:03}" for n in used]
    assert torch.cat([batch.images for batch in batches])[:, 0, 0, 0].tolist() == used
    [bad] = [bad for batch in batches for bad in batch.bad_samples]
    shard = str(folder / f"shard-{PLACES[number][0]:06d}.tar")
    assert bad == BadSample(position, shard, key, reason, PLACES[number][1], PLACES[by][1])
    crcs = [np.fromfile(folder / f"shard-{s:06d}.idx", "<u8,<u4,<u4")["f2"] for s in range(3)]
    columns = np.array([(*PLACES[n], crcs[PLACES[n][0]][PLACES[n][1]]) for n in used]).T
    total = sum(batch.digest for batch in batches) % WORD
    assert total == sample_digest(np.arange(12), *columns)


@pytest.mark.parametrize(("number", "by"), [(0, 1), (2, 3), (3, 0), (6, 7), (7, 4), (11, 8)])
def test_a_flipped_byte_is_replaced_by_the_next_sample_of_its_chunk(tmp_path, number, by):
    manifest = twelve(tmp_path, {})
    shard, index = PLACES[number]
    begins = np.fromfile(tmp_path / f"shard-{shard:06d}.idx", "<u8,<u4,<u4")["f0"]
    flip_byte(tmp_path / f"shard-{shard:06d}.tar", int(begins[index]) + 600)
    check_replaced(tmp_path, manifest, number, by, "", "CRC wrong in 3 reads")


@pytest.mark.parametrize(
    ("members", "key", "reason"),
    [
        (
            {"jpg": b"<html>404</html>", "cls": b"1"},
            "s005",
            "not decodable: neither JPEG, PNG nor WebP",
        ),
        ({"png": png(5)}, "s005", "no label: expected a number in .cls or labels in .json"),
        (
            {"png": png(5), "cls": b"1", "pyd": b"\x80\x04N."},
            "",
            "s005.pyd: a member of type .pyd is never read",
        ),
    ],
)
def test_a_sample_that_cannot_be_used_is_replaced_with_its_reason(tmp_path, members, key, reason):
    check_replaced(tmp_path, twelve(tmp_path, {5: members}), 5, 6, key, reason)


def test_a_replaced_image_keeps_the_crop_of_its_position(tmp_path):
    """So that the good samples around a bad one see the same pixels as ever."""
    text = {"jpg": b"text", "cls": b"1"}
    rich = np.random.default_rng(0).integers(0, 256, (40, 40, 3), np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(rich).save(buffer, "PNG")
    both = {"png": buffer.getvalue(), "cls": b"1"}
    good = stream_config(twelve(tmp_path / "good", {6: both, 7: both}))
    holed = stream_config(twelve(tmp_path / "holed", {6: text, 7: both}))
    for a, b in zip(batches_of(good, 2), batches_of(holed, 2), strict=True):
        assert torch.equal(a.images, b.images) and torch.equal(a.depth_masks, b.depth_masks)


def test_a_whole_chunk_of_damage_stops_the_run(tmp_path):
    text = {"jpg": b"text", "cls": b"1"}
    manifest = twelve(tmp_path, {8: text, 9: text, 10: text, 11: text})
    with pytest.raises(DataError, match=r"no sample of a whole chunk .*shard-000002\.tar"):
        batches_of(stream_config(manifest), 2)


def test_a_label_out_of_range_stops_the_run(tmp_path):
    manifest = twelve(tmp_path, {5: {"png": png(5), "cls": b"10"}})
    with pytest.raises(DataError, match=r"s005: label 10 is not in 0\.\.9; set model.num_classes"):
        batches_of(stream_config(manifest), 2)


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


def test_a_missing_shard_stops_the_run(tmp_path):
    manifest = twelve(tmp_path, {})
    (tmp_path / "shard-000001.tar").unlink()
    with pytest.raises(DataError, match="shard-000001"):
        batches_of(stream_config(manifest), 2)


# The user's own stages, by dotted name.


def inverted(samples: Samples) -> Iterator[dict[str, Any]]:
    for sample in samples:
        yield sample | {"image": 255 - sample["image"]}


def dropping(samples: Samples) -> Iterator[dict[str, Any]]:
    return (sample for sample in samples if sample["position"] != 8)


def doubling(samples: Samples) -> Iterator[dict[str, Any]]:
    return (sample for sample in samples for _ in range(1 + (sample["position"] == 8)))


def swapping(samples: Samples) -> Iterator[dict[str, Any]]:
    samples = iter(samples)
    for first, second in zip(samples, samples, strict=True):
        yield from (second, first) if first["position"] == 8 else (first, second)


def test_a_stage_of_the_user_sees_decoded_samples(tmp_path):
    manifest = twelve(tmp_path, {})
    [plain] = batches_of(stream_config(manifest), 1)
    stages = {"data__stages": [f"{__name__}.inverted"]}
    [changed] = batches_of(stream_config(manifest, **stages), 1)
    assert torch.equal(changed.images, 255 - plain.images) and changed.digest == plain.digest
    twice = {"data__stages": [f"{__name__}.inverted"] * 2}
    [restored] = batches_of(stream_config(manifest, **twice), 1)
    assert torch.equal(restored.images, plain.images)


@pytest.mark.parametrize("stage", ["dropping", "doubling", "swapping"])
def test_a_stage_that_changes_which_samples_come_stops_the_run(tmp_path, stage):
    config = stream_config(twelve(tmp_path, {}), data__stages=[f"{__name__}.{stage}"])
    with open_stream(config) as stream:
        assert next(iter(stream)).positions.tolist() == [0, 1, 2, 3, 4, 5]
        with pytest.raises(DataError, match=rf"{stage}.* must give each sample back once"):
            next(iter(stream))
        with pytest.raises(DataError):  # asked again, it says so again
            next(iter(stream))


@pytest.mark.parametrize("name", ["nowhere.stage", f"{__name__}.nothing", "plain", ""])
def test_a_stage_that_is_not_there_is_refused(tmp_path, name):
    config = stream_config(twelve(tmp_path, {}), data__stages=[name])
    with pytest.raises(ConfigError, match=r"data\.stages: cannot import"):
        open_stream(config)


# The shape of the order, and of the batch.


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
    [(1, 22, (22, 1)), (1, 4, (4, 6)), (3, 4, (4, 2)), (3, 6, (6, 2)),
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


# Evaluation: everything once, nothing replaced.


def evaluation(config: RunConfig, manifest: str, num_rows: int, resize_px: int = 18):
    dataset = load_dataset(Storage(), [(manifest, 1)])
    return evaluation_stream(config, dataset, Storage(), resize_px=resize_px, num_rows=num_rows)


def test_evaluation_reads_every_image_once_in_storage_order(digits, digits_run, plain):
    config = digits_run()
    batches = list(evaluation(config, config.data.train[0].manifest, num_rows=64))
    samples = list(itertools.chain.from_iterable(plain.samples))
    assert [len(batch) for batch in batches] == [64] * 5
    assert torch.cat([batch.weights for batch in batches]).tolist() == [1.0] * 296 + [0.0] * 24
    real = torch.cat([batch.positions for batch in batches])
    assert real.tolist() == [*range(296), *[-1] * 24]
    images = torch.cat([batch.images for batch in batches])
    for found, (_, image, _) in zip(images, samples, strict=False):
        assert torch.equal(found, resized_as_evaluated(image, 18, SIZE_PX))
    assert not images[296:].any()
    labels = torch.cat([batch.labels for batch in batches])[:296]
    assert labels.tolist() == [label for _, _, label in samples]
    assert [key for batch in batches for key in batch.keys] == [key for key, _, _ in samples]


@pytest.mark.parametrize("kind", ["byte", "text"])
def test_evaluation_names_the_damaged_image_and_ends(tmp_path, kind):
    manifest = twelve(tmp_path, {6: {"jpg": b"text", "cls": b"1"}} if kind == "text" else {})
    if kind == "byte":
        begins = np.fromfile(tmp_path / "shard-000001.idx", "<u8,<u4,<u4")["f0"]
        flip_byte(tmp_path / "shard-000001.tar", int(begins[1]) + 600)
    before = set(threading.enumerate())
    batches = evaluation(stream_config(manifest), manifest, num_rows=4, resize_px=8)
    assert next(batches).keys == ("s000", "s001", "s002", "s003")
    with pytest.raises(DataError, match=r"damaged: .*shard-000001\.tar, sample 1, ") as caught:
        next(batches)
    assert ("s006" in str(caught.value)) == (kind == "text")
    del caught
    assert set(threading.enumerate()) == before


def test_evaluation_of_several_labels_without_named_classes_takes_little_memory(tmp_path):
    several = {"png": png(5), "json": b'{"labels": [3, 7]}'}
    manifest = twelve(tmp_path, {5: several})
    [batch] = evaluation(stream_config(manifest), manifest, num_rows=12, resize_px=8)
    assert batch.labels.shape == (12, 8) and batch.labels[5].tolist() == [0, 0, 0, 1, 0, 0, 0, 1]


def test_a_stopped_evaluation_leaves_no_thread(tmp_path):
    manifest = twelve(tmp_path, {})
    before = set(threading.enumerate())
    batches = evaluation(stream_config(manifest), manifest, num_rows=2, resize_px=8)
    next(batches)
    batches.close()
    assert set(threading.enumerate()) == before


# Closing: in any state, at once, leaving nothing behind.


class SlowStorage(Storage):
    """Takes a moment for each read, so that closing finds reads under way."""

    def read_range(self, url: str, start: int, stop: int) -> bytes:
        time.sleep(0.002)
        return super().read_range(url, start, stop)


@pytest.mark.timeout(120)
@pytest.mark.parametrize("num_taken", [0, 1, 3])
def test_closing_in_the_middle_leaves_no_thread(tmp_path, num_taken):
    config = stream_config(twelve(tmp_path, {}), data__prefetch_batches=1 + num_taken)
    before = set(threading.enumerate())
    for turn in range(15):
        with open_stream(config, storage=SlowStorage()) as stream:
            taken = list(itertools.islice(stream, num_taken))
            time.sleep(0.001 * (turn % 5))
        assert len(taken) == num_taken
        assert set(threading.enumerate()) == before
        assert next(iter(stream), None) is None  # and does not wait for what never comes


@pytest.mark.timeout(120)
def test_closing_after_an_error_leaves_no_thread(tmp_path):
    manifest = twelve(tmp_path, {})
    (tmp_path / "shard-000001.tar").unlink()
    before = set(threading.enumerate())
    for turn in range(15):
        with open_stream(stream_config(manifest), storage=SlowStorage()) as stream:
            if turn % 3 == 0:
                time.sleep(0.02)  # nobody asks, so nobody hears of the error
            elif turn % 3 == 1:
                with pytest.raises(DataError):
                    list(stream)
        assert set(threading.enumerate()) == before


@pytest.mark.timeout(120)
def test_an_error_of_the_training_step_closes_the_stream(tmp_path):
    config = stream_config(twelve(tmp_path, {}))
    before = set(threading.enumerate())
    with pytest.raises(RuntimeError, match="out of memory"), open_stream(config) as stream:
        next(iter(stream))
        raise RuntimeError("out of memory")
    assert set(threading.enumerate()) == before
