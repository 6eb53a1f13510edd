"""A run's data as a whole: attempts at other ranks and batch sizes, and windows never read."""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from mixer_dist.data.order import (
    Positions,
    SampleOrder,
    Window,
    batch_digest,
    batch_positions,
    rank_slice,
    sample_hashes,
)

the_same_cases = settings(derandomize=True, database=None, deadline=None, max_examples=60)


@dataclass(frozen=True)
class Attempt:
    """A start of a run, which ends with a checkpoint."""

    global_batch_size: int
    world_size: int
    num_steps: int


@st.composite
def attempts(draw: st.DrawFn) -> Attempt:
    num_pairs = draw(st.integers(1, 12))
    world_size = draw(st.integers(1, num_pairs))
    return Attempt(2 * num_pairs, world_size, num_steps=draw(st.integers(1, 4)))


@st.composite
def orders(draw: st.DrawFn) -> SampleOrder:
    """Whose rounds need not be a batch of any attempt."""
    lanes = draw(st.integers(1, 9))
    return SampleOrder(
        draw(st.lists(st.integers(0, 12), min_size=1, max_size=6).filter(any)),
        draw(st.integers(0, 2**64 - 1)),
        chunk_samples=draw(st.integers(1, 9)),
        lanes=lanes,
        window=draw(st.integers(1, 9)),
        round_samples=lanes * draw(st.integers(1, 4)),
    )


runs = st.lists(attempts(), min_size=1, max_size=4)
windows = st.lists(
    st.builds(
        lambda start, size: Window(start, start + size), st.integers(0, 90), st.integers(0, 20)
    ),
    max_size=3,
)


def steps_of(run: Sequence[Attempt], skipped: Sequence[Window]) -> Iterator[list[Positions]]:
    """Each step's positions, rank by rank; an attempt knows of those before just a position."""
    position = 0
    for attempt in run:
        size = attempt.global_batch_size
        for _ in range(attempt.num_steps):
            positions = batch_positions(position, size, skipped)
            ranks = range(attempt.world_size)
            yield [positions[rank_slice(rank, attempt.world_size, size)] for rank in ranks]
            position = int(positions[-1]) + 1


def digest(order: SampleOrder, positions: Positions) -> int:
    """A rank's term, each sample's CRC made up from its place."""
    _, shards, indices = order.locate(positions).T
    return batch_digest(sample_hashes(positions, shards, indices, 1000 * shards + indices))


@the_same_cases
@given(orders(), runs, windows)
def test_a_run_reads_each_sample_once_an_epoch_but_for_what_is_skipped(order, run, skipped):
    read = np.concatenate([share for shares in steps_of(run, skipped) for share in shares])
    num_epochs = -(-(int(read[-1]) + 1) // order.num_samples)
    later = np.arange(read[-1] + 1, num_epochs * order.num_samples)
    passed = [p for p in range(read[-1]) if any(w.start <= p < w.stop for w in skipped)]
    found = order.locate(np.concatenate([read, later, np.array(passed, np.int64)]))
    counts = Counter(map(tuple, found.tolist()))
    assert set(counts.values()) == {1}
    assert len(counts) == num_epochs * order.num_samples


@the_same_cases
@given(orders(), runs, windows)
def test_attempts_and_ranks_leave_no_trace_in_what_a_step_reads(order, run, skipped):
    """One rank that runs through at the same batch sizes has the same samples and digests."""
    sizes = [attempt.global_batch_size for attempt in run for _ in range(attempt.num_steps)]
    unbroken = batch_positions(0, sum(sizes), skipped)
    batches = np.split(unbroken, np.cumsum(sizes)[:-1])
    for shares, batch in zip(steps_of(run, skipped), batches, strict=True):
        assert np.concatenate(shares).tolist() == batch.tolist()
        assert sum(digest(order, share) for share in shares) % 2**64 == digest(order, batch)


@the_same_cases
@given(runs, windows)
def test_images_that_mixup_mixes_stay_on_one_rank(run, skipped):
    for shares in steps_of(run, skipped):
        batch = np.concatenate(shares)
        for share in shares:
            indices = np.searchsorted(batch, share)
            assert set(indices) == set(indices ^ 1)


@the_same_cases
@given(
    st.integers(1, 60), st.integers(1, 4), st.integers(1, 4), st.integers(1, 3), st.integers(0, 9)
)
def test_a_rank_keeps_its_lanes_in_every_epoch(size, world_size, lanes_of_rank, pairs, epoch):
    """Its share of all batches of an epoch is the same stretch of whole lanes' samples."""
    lanes = world_size * lanes_of_rank
    batch = 2 * pairs * lanes
    order = SampleOrder(
        [size], 1, chunk_samples=1, lanes=lanes, window=size, round_samples=batch
    )  # chunks of one sample: only the lanes decide what lies together
    positions = np.arange(epoch * size, (epoch + 1) * size)
    along = order._place_in_sequence(
        positions, positions // size, positions % batch // (2 * pairs), np.zeros(size, np.uint64)
    )
    share = rank_slice(1 % world_size, world_size, batch)
    index = positions % batch
    mine = np.sort(along[(share.start <= index) & (index < share.stop)])
    assert mine.tolist() == list(range(mine[0], mine[0] + len(mine))) if len(mine) else True
