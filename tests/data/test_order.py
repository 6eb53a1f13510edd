"""The order of samples: a bijection every epoch, the same on any ranks, pinned for ever."""

from itertools import count, islice
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mixer_dist.data.order import (
    OrderShape,
    SampleOrder,
    Window,
    batch_digest,
    batch_positions,
    default_shape,
    largest_slice,
    rank_slice,
    sample_hashes,
)

the_same_cases = settings(derandomize=True, database=None, deadline=None, max_examples=50)

SEEDS = st.integers(0, 2**64 - 1)
WORD = 2**64


def order_of(
    sizes: Any, seed: int, chunk: int, lanes: int, window: int, round_samples: int
) -> SampleOrder:
    return SampleOrder(
        sizes, seed, chunk_samples=chunk, lanes=lanes, window=window, round_samples=round_samples
    )


def places(order: SampleOrder, positions: Any) -> list[tuple[int, ...]]:
    """(epoch, shard, index in shard) of each position."""
    return [tuple(row) for row in order.locate(positions).tolist()]


@st.composite
def shapes(draw: st.DrawFn) -> dict[str, int]:
    """Chunks, lanes, windows and rounds in any relation to each other and to the data."""
    lanes = draw(st.integers(1, 20))
    return {
        "chunk_samples": draw(st.integers(1, 15)),
        "lanes": lanes,
        "window": draw(st.integers(1, 15)),
        "round_samples": lanes * draw(st.integers(1, 4)),
    }


shard_sizes = st.lists(st.integers(0, 12), min_size=1, max_size=6).filter(any)


# Every run that was ever recorded depends on these: a change that breaks them breaks each resume
# and each audit.
@pytest.mark.parametrize(
    ("arguments", "positions", "expected"),
    [
        (
            ([5, 0, 3], 0, 2, 2, 2, 4),
            range(18),
            [(0, 0, 3), (0, 0, 2), (0, 0, 4), (0, 2, 0), (0, 2, 2), (0, 2, 1), (0, 0, 1),
             (0, 0, 0), (1, 2, 1), (1, 2, 2), (1, 0, 0), (1, 0, 1), (1, 0, 2), (1, 0, 3),
             (1, 0, 4), (1, 2, 0), (2, 0, 2), (2, 0, 3)],
        ),
        (
            ([3, 4], 2**64 - 1, 2, 8, 3, 16),
            range(14),
            [(0, 0, 0), (0, 0, 1), (0, 1, 2), (0, 1, 1), (0, 0, 2), (0, 1, 0), (0, 1, 3),
             (1, 0, 2), (1, 1, 0), (1, 0, 0), (1, 0, 1), (1, 1, 1), (1, 1, 3), (1, 1, 2)],
        ),
        (
            ([10], 12345, 1, 1, 1, 1),
            range(20),
            [(0, 0, 3), (0, 0, 6), (0, 0, 9), (0, 0, 5), (0, 0, 7), (0, 0, 1), (0, 0, 0),
             (0, 0, 8), (0, 0, 2), (0, 0, 4), (1, 0, 1), (1, 0, 2), (1, 0, 4), (1, 0, 0),
             (1, 0, 6), (1, 0, 5), (1, 0, 3), (1, 0, 9), (1, 0, 8), (1, 0, 7)],
        ),
        (
            ([2564] * 117_000, 7, 40, 512, 40, 4096),
            [0, 1, 8, 4095, 4096, 299_987_999, 299_988_000, 10**12],
            [(0, 29894, 1573), (0, 29894, 1548), (0, 48573, 2130), (0, 6844, 2558),
             (0, 29894, 1578), (0, 96370, 1372), (1, 81175, 33), (3333, 69609, 1717)],
        ),
    ],
    ids=["two lanes", "more lanes than samples", "one lane", "300 million samples"],
)  # fmt: skip
def test_an_order_never_changes(arguments, positions, expected):
    assert places(order_of(*arguments), positions) == expected


@the_same_cases
@given(shard_sizes, SEEDS, shapes(), st.integers(0, 10**9))
def test_every_epoch_holds_each_sample_once(sizes, seed, shape, epoch):
    order = SampleOrder(sizes, seed, **shape)
    everything = [(s, i) for s, size in enumerate(sizes) for i in range(size)]
    first = epoch * len(everything)
    found = places(order, np.arange(first, first + len(everything)))
    assert {each[0] for each in found} == {epoch}
    assert sorted(each[1:] for each in found) == everything


@the_same_cases
@given(shard_sizes, SEEDS, shapes())
def test_a_place_depends_on_nothing_but_its_position(sizes, seed, shape):
    positions = np.arange(3 * sum(sizes))
    together = places(SampleOrder(sizes, seed, **shape), positions)
    alone = [places(SampleOrder(np.array(sizes), seed, **shape), [p])[0] for p in positions[::7]]
    assert together[::7] == alone
    backwards = places(SampleOrder([np.int32(n) for n in sizes], seed, **shape), positions[::-1])
    assert backwards[::-1] == together


@the_same_cases
@given(SEEDS, shapes())
def test_epochs_and_seeds_are_shuffled_each_in_its_own_way(seed, shape):
    num_samples = 9 * shape["chunk_samples"]  # nine chunks have 362,880 orders
    positions = np.arange(4 * num_samples)
    samples = SampleOrder([num_samples], seed, **shape).samples(positions)[1]
    other = SampleOrder([num_samples], (seed + 1) % WORD, **shape).samples(positions)[1]
    epochs = [tuple(part) for part in np.split(np.concatenate([samples, other]), 8)]
    assert len(set(epochs)) == 8


def test_a_sample_can_come_at_any_time_of_an_epoch():
    """Whole chunks move anywhere, and the window breaks up what lay side by side."""
    order = order_of([4000], 3, 10, 8, 10, 32)
    samples = order.samples(np.arange(4000))[1]
    assert abs(np.corrcoef(np.arange(4000), samples)[0, 1]) < 0.1
    of_lane = samples.reshape(-1, 8, 4).transpose(1, 0, 2).reshape(8, -1)
    assert (np.diff(of_lane, axis=1) == 1).mean() < 0.25  # unshuffled windows would give 0.9


@pytest.mark.parametrize(
    ("change", "word"),
    [
        ({"shard_sizes": []}, "at least one sample"),
        ({"shard_sizes": [0, 0]}, "at least one sample"),
        ({"shard_sizes": [5, -1]}, "none negative"),
        ({"lanes": 3}, "must divide"),
        ({"lanes": 0}, "at least 1"),
        ({"window": 0}, "at least 1"),
        ({"chunk_samples": 0}, "at least 1"),
        ({"round_samples": 0}, "at least 1"),
        ({"seed": -1}, "seed"),
        ({"seed": 2**64}, "seed"),
    ],
)
def test_an_order_that_cannot_be_is_refused(change, word):
    arguments = {"shard_sizes": [9], "seed": 0, "chunk_samples": 2, "lanes": 2, "window": 2}
    with pytest.raises(ValueError, match=word):
        SampleOrder(**(arguments | {"round_samples": 4} | change))


@pytest.mark.parametrize(
    ("world_size", "most_reads_a_chunk"),
    [(1, 1.0), (2, 1.02), (4, 1.03), (8, 1.07), (16, 1.15), (7, 1.25), (5, 1.25)],
)
def test_ranks_keep_whole_lanes_and_read_few_chunks_twice(world_size, most_reads_a_chunk):
    """Neighbouring lanes share the chunk at their border, which the ranks then both read."""
    batch, num_chunks, num_epochs = 64, 125, 3
    order = order_of([700, 0, 800], 1, 12, 32, 12, batch)
    epochs, samples = order.samples(np.arange(num_epochs * 1500))
    index = np.arange(len(samples)) % batch
    reads = 0
    for rank in range(world_size):
        mine = rank_slice(rank, world_size, batch)
        is_mine = (mine.start <= index) & (index < mine.stop)
        reads += len(np.unique(epochs[is_mine] * num_chunks + samples[is_mine] // 12))
    assert reads <= most_reads_a_chunk * num_epochs * num_chunks


def test_a_chunk_is_used_up_soon_after_it_was_read():
    """What bounds a rank's memory: within a lane a chunk's samples lie in two windows at most."""
    order = order_of([1500], 1, 12, 4, 12, 32)
    positions = np.arange(1500)
    chunks, lanes = order.samples(positions)[1] // 12, positions % 32 // 8
    for chunk in range(1500 // 12):
        of_chunk = np.unique(lanes[chunks == chunk])
        assert len(of_chunk) <= 2  # at a border of two lanes
        for lane in of_chunk:
            along = np.flatnonzero(chunks[lanes == lane] == chunk)
            assert np.ptp(along) < 2 * 12


@the_same_cases
@given(st.integers(1, 200), st.data())
def test_ranks_share_a_batch_in_whole_pairs(num_pairs, data):
    batch = 2 * num_pairs
    world_size = data.draw(st.integers(1, num_pairs))
    slices = [rank_slice(rank, world_size, batch) for rank in range(world_size)]
    edges = [0, *(mine.stop for mine in slices)]
    assert edges == [*(mine.start for mine in slices), batch]
    sizes = np.diff(edges)
    assert (sizes % 2 == 0).all() and sizes.min() >= 2 and np.ptp(sizes) <= 2
    assert largest_slice(world_size, batch) == sizes.max()
    assert edges == [2 * (rank * batch // (2 * world_size)) for rank in range(world_size + 1)]


windows = st.lists(
    st.tuples(st.integers(0, 60), st.integers(0, 15)).map(lambda w: Window(w[0], w[0] + w[1])),
    max_size=5,
)


@the_same_cases
@given(st.integers(0, 70), st.integers(0, 40), windows)
def test_skipped_windows_are_stepped_over_and_nothing_else(position, size, skipped):
    allowed = (p for p in count(position) if not any(w.start <= p < w.stop for w in skipped))
    assert batch_positions(position, size, skipped).tolist() == list(islice(allowed, size))


@the_same_cases
@given(st.integers(0, 70), st.integers(1, 20), st.integers(1, 20), windows)
def test_reading_on_after_a_batch_gives_what_an_unbroken_reader_gets(position, a, b, skipped):
    first = batch_positions(position, a, skipped)
    then = batch_positions(int(first[-1]) + 1, b, skipped)
    assert [*first, *then] == batch_positions(position, a + b, skipped).tolist()


@pytest.mark.parametrize(
    ("round_samples", "num_samples", "num_bytes", "expected"),
    [
        (4096, 300_000_000, 300_000_000 * 100_000, OrderShape(4096, 512, 41, 41)),
        (4096, 1_281_167, 1_281_167 * 112_000, OrderShape(4096, 512, 37, 37)),
        (128, 50_000, 50_000 * 3072, OrderShape(128, 128, 97, 97)),  # 50,000 // (4 · 128)
        (128, 1501, 1501 * 2560, OrderShape(128, 128, 2, 2)),
        (1022, 10**9, 10**9 * 2**20, OrderShape(1022, 511, 4, 4)),
        (1042, 10**9, 10**9 * 2**23, OrderShape(1042, 2, 1, 1)),  # 1042 = 2 · 521
        (20, 7, 70, OrderShape(20, 20, 1, 1)),
        (20, 7, 0, OrderShape(20, 20, 1, 1)),
    ],
)
def test_defaults_read_about_4_mib_at_once_and_give_a_lane_four_chunks(
    round_samples, num_samples, num_bytes, expected
):
    assert default_shape(round_samples, num_samples, num_bytes) == expected


def test_chosen_lanes_bound_the_default_chunk():
    assert default_shape(128, 50_000, 50_000, lanes=4) == OrderShape(128, 4, 3125, 3125)


def plain_digest(rows: list[tuple[int, ...]]) -> int:
    """The sum of h(h(h(h(position) + shard) + index) + crc32), in Python's own integers."""

    def finalise(word: int) -> int:
        word = (word ^ (word >> 30)) * 0xBF58476D1CE4E5B9 % WORD
        word = (word ^ (word >> 27)) * 0x94D049BB133111EB % WORD
        return word ^ (word >> 31)

    total = 0
    for row in rows:
        word = 0
        for part in row:
            word = finalise((word + part) % WORD)
        total += word
    return total % WORD


def digest(rows: list[tuple[int, ...]]) -> int:
    columns = (np.array(column) for column in zip(*rows, strict=True))
    return batch_digest(sample_hashes(*columns))


READ = [(10**12, 116_999, 2563, 2**32 - 1), (5, 3, 0, 12345)]


def test_a_digest_never_changes():
    assert digest(READ) == 0x6C69248933EC50FA
    assert digest([(0, 0, 0, 0)]) == 0


rows_read = st.lists(
    st.tuples(
        st.integers(0, 2**50), st.integers(0, 2**20), st.integers(0, 2**20), st.integers(0, 2**32)
    ),
    min_size=1,
    max_size=12,
)


@the_same_cases
@given(rows_read, st.randoms(use_true_random=False), st.integers(1, 11))
def test_a_digest_is_a_sum_over_samples_however_ranks_share_them(rows, random, cut):
    assert digest(rows) == plain_digest(rows)
    shuffled = random.sample(rows, len(rows))
    parts = [part for part in (shuffled[:cut], shuffled[cut:]) if part]
    assert sum(map(digest, parts)) % WORD == digest(rows)


@pytest.mark.parametrize("column", range(4))
def test_a_digest_tells_every_difference(column):
    changed = [list(row) for row in READ]
    changed[1][column] += 1
    assert digest([tuple(row) for row in changed]) != digest(READ)


def test_a_digest_tells_which_sample_stood_at_which_position():
    (p, *a), (q, *b) = READ
    assert digest([(p, *b), (q, *a)]) != digest(READ)
