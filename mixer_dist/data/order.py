"""The order of samples: a pure function from a global position to a sample, the same on any ranks.

An epoch is the data shards laid end to end and cut into chunks of neighbours. A keyed bijection
orders the chunks; the sequence is cut into lanes; positions are dealt to lanes in rounds that run
on across epochs, so that a rank keeps whole lanes; within a lane a small window is shuffled. Each
sample comes exactly once an epoch, nothing is padded or dropped, and resuming costs nothing.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from mixer_dist.data.randomness import mix, permute, words

Positions = NDArray[np.int64]

MAX_LANES = 512
CHUNK_BYTES = 4 * 2**20


@dataclass(frozen=True)
class OrderShape:
    """What fixes an order beside the shards and the seed; recorded at a run's first start."""

    round_samples: int
    lanes: int
    chunk_samples: int
    window: int


def default_shape(
    round_samples: int, num_samples: int, num_bytes: int, lanes: int | None = None
) -> OrderShape:
    """The shape for a dataset: one lane a rank can own, one range read of about 4 MiB a chunk."""
    lanes = lanes or largest_divisor(round_samples, MAX_LANES)
    mean_bytes = max(1, num_bytes // max(1, num_samples))
    chunk = max(1, min(CHUNK_BYTES // mean_bytes, num_samples // (4 * lanes)))
    return OrderShape(round_samples, lanes, chunk, window=chunk)


def largest_divisor(number: int, limit: int) -> int:
    """The largest divisor of `number` that is at most `limit`."""
    return next(d for d in range(min(number, limit), 0, -1) if number % d == 0)


class SampleOrder:
    """Where each global position lies: (epoch, shard, index in the shard)."""

    def __init__(
        self,
        shard_sizes: Sequence[int] | NDArray[np.int64],
        seed: int,
        *,
        chunk_samples: int,
        lanes: int,
        window: int,
        round_samples: int,
    ) -> None:
        _check_shape(shard_sizes, seed, chunk_samples, lanes, window, round_samples)
        self.ends = np.cumsum(np.asarray(shard_sizes, np.int64))
        self.begins = np.concatenate([[0], self.ends])
        self.num_samples = int(self.ends[-1])
        self.chunk_samples = int(chunk_samples)
        self._seed = np.uint64(seed)
        self._window = int(window)
        self._round = int(round_samples)
        self._slots = self._round // int(lanes)  # that a lane owns in every round
        self._num_full_chunks = self.num_samples // self.chunk_samples

    def locate(self, positions: ArrayLike) -> NDArray[np.int64]:
        """Global positions (n,) to (epoch, shard, index in shard), shape (n, 3)."""
        epochs, samples = self.samples(positions)
        shards = np.searchsorted(self.ends, samples, "right")
        return np.stack([epochs, shards, samples - self.begins[shards]], axis=1)

    def samples(self, positions: ArrayLike) -> tuple[Positions, Positions]:
        """Global positions (n,) to epochs (n,) and places in the shards laid end to end (n,)."""
        positions = np.asarray(positions, np.int64)
        epochs = positions // self.num_samples
        lanes = positions % self._round // self._slots
        with np.errstate(over="ignore"):
            keys = mix(self._seed + mix(words(epochs)))
        along = self._place_in_sequence(positions, epochs, lanes, keys)
        chunks, offsets = np.divmod(along, self.chunk_samples)
        whole = chunks < self._num_full_chunks  # the last, short chunk stays in its place
        full = self._num_full_chunks
        chunks[whole] = permute(chunks[whole], full, full, keys[whole])
        return epochs, chunks * self.chunk_samples + offsets

    def _place_in_sequence(
        self, positions: Positions, epochs: Positions, lanes: Positions, keys: NDArray[np.uint64]
    ) -> Positions:
        """Where a position falls in its epoch's sequence of chunks, the lane's window shuffled."""
        first, last = epochs * self.num_samples, (epochs + 1) * self.num_samples
        before = self._in_lane(first, lanes)
        along = self._in_lane(positions, lanes) - before
        lane_size = self._in_lane(last, lanes) - before
        base = along // self._window * self._window
        inside = np.minimum(self._window, lane_size - base)
        with np.errstate(over="ignore"):
            window_keys = mix(keys + words(lanes * 2**32 + base))
        along = base + permute(along - base, inside, self._window, window_keys)
        return self._in_lanes_below(last, lanes) - self._in_lanes_below(first, lanes) + along

    def _in_lane(self, positions: Positions, lanes: Positions) -> Positions:
        """How many positions before these belong to the lane."""
        rounds, slots = np.divmod(positions, self._round)
        return rounds * self._slots + np.clip(slots - lanes * self._slots, 0, self._slots)

    def _in_lanes_below(self, positions: Positions, lanes: Positions) -> Positions:
        """How many positions before these belong to lanes with a smaller number."""
        rounds, slots = np.divmod(positions, self._round)
        edge = lanes * self._slots
        return rounds * edge + np.minimum(slots, edge)


def _check_shape(
    shard_sizes: Sequence[int] | NDArray[np.int64],
    seed: int,
    chunk_samples: int,
    lanes: int,
    window: int,
    round_samples: int,
) -> None:
    if len(shard_sizes) == 0 or min(shard_sizes) < 0 or sum(map(int, shard_sizes)) == 0:
        raise ValueError("expected shard sizes of at least one sample in all, none negative")
    if min(chunk_samples, lanes, window, round_samples) < 1 or not 0 <= seed < 2**64:
        raise ValueError(
            "expected chunk_samples, lanes, window, round_samples of at least 1 and a seed in "
            f"[0, 2^64), got {chunk_samples}, {lanes}, {window}, {round_samples} and {seed}"
        )
    if round_samples % lanes:
        raise ValueError(f"lanes ({lanes}) must divide round_samples ({round_samples})")


@dataclass(frozen=True)
class Window:
    """Positions [start, stop) that are never read."""

    start: int
    stop: int


def batch_positions(position: int, size: int, skipped: Sequence[Window] = ()) -> Positions:
    """The next `size` positions from `position` that lie in no skipped window, ascending."""
    found: list[Positions] = []
    for window in sorted(skipped, key=lambda w: w.start):
        if size == 0 or window.stop <= position:
            continue
        run = np.arange(position, position + min(size, max(0, window.start - position)))
        found.append(run)
        size -= len(run)
        if size:
            position = window.stop
    found.append(np.arange(position, position + size))
    return np.concatenate(found).astype(np.int64)


def position_after(position: int, count: int, skipped: Sequence[Window] = ()) -> int:
    """The position to be read next, once `count` were read from `position` on."""
    for window in sorted(skipped, key=lambda w: w.start):
        if window.stop <= position:
            continue
        before = max(0, window.start - position)
        if count < before:
            break
        count, position = count - before, window.stop
    return position + count


def rank_slice(rank: int, world_size: int, global_batch_size: int) -> slice:
    """The batch indices of a rank: whole pairs, for any world size up to half the batch."""
    edges = [2 * (r * global_batch_size // (2 * world_size)) for r in (rank, rank + 1)]
    return slice(*edges)


def largest_slice(world_size: int, global_batch_size: int) -> int:
    """The most images that any rank takes of one batch."""
    slices = (rank_slice(rank, world_size, global_batch_size) for rank in range(world_size))
    return max(int(s.stop - s.start) for s in slices)


def sample_hashes(
    positions: Positions, shards: Positions, indices: Positions, crc32s: ArrayLike
) -> NDArray[np.uint64]:
    """A hash of what was read where, for each sample (n,)."""
    hashes = mix(words(positions))
    with np.errstate(over="ignore"):
        for part in (words(shards), words(indices), words(crc32s)):
            hashes = mix(hashes + part)
    return hashes


def batch_digest(hashes: NDArray[np.uint64]) -> int:
    """The sum of samples' hashes modulo 2^64: the same however a batch is dealt to ranks."""
    return int(np.add.reduce(hashes, dtype=np.uint64))
