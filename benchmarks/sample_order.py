"""python benchmarks/sample_order.py: the same samples in the same order on any ranks, and its cost.

Every rank of 10 world sizes reads 37 uneven shards with 1 to 4 threads, from the first step and from
20 others: each global batch must have the keys and the pixels that one rank gives. Then each epoch
must hold every sample once; then what the order costs at 300 million samples, and how often ranks
read a chunk. Prints Markdown; ends with 1 where a batch differs or a sample is missed or repeated.
"""

import hashlib
import statistics
import sys
import tempfile
import time
import tracemalloc
from collections import Counter
from collections.abc import Callable, Sequence
from itertools import chain, product
from pathlib import Path

import numpy as np
from tqdm import tqdm

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # works from a bare checkout

from benchmarks.drawn_shards import drawn_shards
from mixer_dist.config import RunConfig
from mixer_dist.data.batch import Batch
from mixer_dist.data.order import SampleOrder
from mixer_dist.data.stream import Cursor
from tests.data.handmade import (
    CountingStorage,
    batches_of,
    stream_config,
    write_dataset,
)

WORLD_SIZES = (1, 2, 3, 4, 5, 6, 7, 8, 12, 24)
NUM_THREADS = (1, 2, 3, 4)
NUM_SHARDS = 37
BATCH = 48
NUM_EPOCHS = 3
NUM_RESUMES, RESUMED_STEPS = 20, 2

READING_WORLD_SIZES = (1, 2, 4, 8, 16, 32, 3, 5, 7, 12, 31)
READING_BATCH, LANES, CHUNK = 256, 32, 7  # 8 images of a lane in every batch
READING_STEPS = 40

LARGE = 300_000_000
LARGE_SHARDS = 30_000
CALL = 4096  # positions of a call to `locate`
NUM_CALLS = 300

Row = tuple[int, str, int, bytes]  # position, key, label, hash of the pixels
Batches = list[list[Row]]  # global batches


def main() -> int:
    """Print every table; the exit code."""
    with tempfile.TemporaryDirectory() as folder:
        num_wrong = compare_batches(Path(folder) / "same")
        count_reads(Path(folder) / "reads")
    measure_large_order()
    return int(num_wrong > 0)


def compare_batches(folder: Path) -> int:
    """The tables of equal batches and of whole epochs; how many batches and samples are wrong."""
    sizes = np.random.default_rng(1).integers(1, 40, NUM_SHARDS)
    sizes[NUM_SHARDS // 2] = 0
    manifest = make_shards(folder, sizes)
    num_samples = int(sizes.sum())
    num_steps = -(-NUM_EPOCHS * num_samples // BATCH)
    starts = np.random.default_rng(2).integers(1, num_steps - RESUMED_STEPS, NUM_RESUMES).tolist()

    def read(world_size: int, num_threads: int, first: int, stop: int) -> Batches:
        order = {"lanes": 24, "chunk_samples": 7}
        config = run_of(manifest, BATCH, stop, order, num_threads)
        return global_batches(config, Cursor(first, first * BATCH), world_size)

    expected = read(1, 1, 0, num_steps)
    print(
        f"{num_samples:,} samples in {NUM_SHARDS} shards of 0 to {max(sizes)}, batches of {BATCH}"
    )
    print("\n| ranks | batches compared | different | samples read | missed | repeated |")
    print("|---|---|---|---|---|---|")
    return sum(
        compare_world(read, world_size, expected, starts, num_samples)
        for world_size in tqdm(WORLD_SIZES, disable=None)
    )


def compare_world(
    read: Callable[..., Batches],
    world_size: int,
    expected: Batches,
    starts: Sequence[int],
    num_samples: int,
) -> int:
    """Its line of the table; how many batches and samples are wrong."""
    ranges = [(0, len(expected)), *((start, start + RESUMED_STEPS) for start in starts)]
    compared = different = missed = repeated = 0
    for num_threads, (first, stop) in product(NUM_THREADS, ranges):
        found = read(world_size, num_threads, first, stop)
        pairs = zip(found, expected[first:stop], strict=True)
        different += sum(one != other for one, other in pairs)
        compared += len(found)
        if (first, stop) == ranges[0]:
            errors = epoch_errors(found, num_samples)
            missed, repeated = missed + errors[0], repeated + errors[1]
    num_read = len(NUM_THREADS) * NUM_EPOCHS * num_samples
    print(f"| {world_size} | {compared:,} | {different} | {num_read:,} | {missed} | {repeated} |")
    return different + missed + repeated


def epoch_errors(batches: Batches, num_samples: int) -> tuple[int, int]:
    """(samples missed, samples repeated) over the whole epochs."""
    keys = [key for _, key, _, _ in chain.from_iterable(batches)]
    epochs = (keys[n * num_samples :][:num_samples] for n in range(NUM_EPOCHS))
    counts = [Counter(epoch) for epoch in epochs]
    missed = sum(num_samples - len(count) for count in counts)
    return missed, sum(count.total() - len(count) for count in counts)


def global_batches(config: RunConfig, cursor: Cursor, world_size: int) -> Batches:
    """What all ranks together read from a cursor to the end of the run."""
    num_steps = config.total_steps - cursor.step
    ranks = [
        batches_of(config, num_steps, cursor, rank=rank, world_size=world_size)
        for rank in range(world_size)
    ]
    return [list(chain.from_iterable(map(rows_of, parts))) for parts in zip(*ranks, strict=True)]


def rows_of(batch: Batch) -> list[Row]:
    """A rank's images without their filling."""
    hashes = [hashlib.sha256(image.numpy().tobytes()).digest() for image in batch.images]
    columns = batch.positions.tolist(), batch.keys, batch.labels.tolist(), hashes
    return list(zip(*columns, strict=False))  # keys end where the filling begins


def count_reads(folder: Path) -> None:
    """The table of range requests over one epoch."""
    num_samples = READING_STEPS * READING_BATCH
    cuts = np.random.default_rng(3).choice(np.arange(1, num_samples), NUM_SHARDS - 1, replace=False)
    sizes = np.diff([0, *sorted(cuts), num_samples])
    manifest = make_shards(folder, sizes)
    order = {"lanes": LANES, "chunk_samples": CHUNK}
    config = run_of(manifest, READING_BATCH, READING_STEPS, order)
    num_pieces = len({*range(0, num_samples, CHUNK), *np.cumsum(sizes)[:-1]})
    print(f"\nAn epoch of {num_samples:,} samples in batches of {READING_BATCH}, {LANES} lanes and "
          f"chunks of {CHUNK}, which the shards' borders cut into {num_pieces:,} ranges")  # fmt: skip
    print("\n| ranks | range requests | of the fewest possible | index requests, most of a rank |")
    print("|---|---|---|---|")
    for world_size in tqdm(READING_WORLD_SIZES, disable=None):
        storages = [counted_epoch(config, rank, world_size) for rank in range(world_size)]
        num_ranges = sum(len(storage.ranges) for storage in storages)
        num_indexes = max(len(storage.reads) for storage in storages)
        kind = "" if LANES % world_size else ", a divisor of the lanes"
        print(f"| {world_size}{kind} | {num_ranges:,} | {num_ranges / num_pieces:.3f} "
              f"| {num_indexes} |")  # fmt: skip


def counted_epoch(config: RunConfig, rank: int, world_size: int) -> CountingStorage:
    """What a rank asked for, having read the whole run."""
    storage = CountingStorage()
    batches_of(config, config.total_steps, rank=rank, world_size=world_size, storage=storage)
    return storage


def make_shards(folder: Path, sizes: np.ndarray) -> str:
    """Shards of these many samples; the manifest's path."""
    folder.mkdir()
    return write_dataset(folder, drawn_shards(sizes.tolist()))


def run_of(
    manifest: str, batch: int, total_steps: int, order: dict[str, int], num_threads: int = 1
) -> RunConfig:
    """A run over some shards."""
    return stream_config(
        manifest, global_batch_size=batch, micro_batch_size=batch, total_steps=total_steps,
        data__order=order, data__num_threads=num_threads,
    )  # fmt: skip


def measure_large_order() -> None:
    """Set-up, memory and time of an order of 300 million samples."""
    sizes = [LARGE // LARGE_SHARDS] * LARGE_SHARDS
    tracemalloc.start()
    order = large_order(sizes)
    kept_bytes = tracemalloc.get_traced_memory()[0]
    order.locate(np.arange(CALL))
    peak_bytes = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    set_up_s = min(seconds(lambda: large_order(sizes)) for _ in range(5))
    calls = np.random.default_rng(4).integers(0, 3 * LARGE, NUM_CALLS)
    spent_s = [seconds(lambda g=g: order.locate(np.arange(g, g + CALL))) for g in calls.tolist()]
    each_ns = statistics.median(spent_s) / CALL * 1e9
    print(f"\n{LARGE:,} samples in {LARGE_SHARDS:,} shards: set up in {set_up_s * 1e3:.1f} ms, "
          f"{kept_bytes / 1e6:.2f} MB kept, {peak_bytes / 1e6:.2f} MB at most with a call of "
          f"{CALL}; {each_ns:.0f} ns a position (median of {NUM_CALLS} calls)")  # fmt: skip


def large_order(sizes: Sequence[int]) -> SampleOrder:
    """In the shape that 4,096 images a step and 100 KB a sample give."""
    return SampleOrder(sizes, 7, chunk_samples=41, lanes=512, window=41, round_samples=4096)


def seconds(work: Callable[[], object]) -> float:
    """Of this thread's CPU."""
    began_s = time.thread_time()
    work()
    return time.thread_time() - began_s


if __name__ == "__main__":
    sys.exit(main())
