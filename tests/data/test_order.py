"""The order of samples: a bijection every epoch, the same on any ranks, pinned for ever."""

from collections.abc import Iterator
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
    batch_positions,
    default_shape,
    largest_divisor,
    largest_slice,
    rank_slice,
    sample_digest,
)

always_the_same = settings(derandomize=True, database=None, deadline=None, max_examples=60)
few = settings(always_the_same, max_examples=25)

SEEDS = st.integers(0, 2**64 - 1)


def places(order: SampleOrder, positions: Any) -> list[tuple[int, ...]]:
    return [tuple(row) for row in order.locate(positions).tolist()]


@st.composite
def orders(draw: st.DrawFn) -> SampleOrder:
    """Small orders: empty shards, more lanes than samples, windows and chunks of any size."""
    sizes = draw(st.lists(st.integers(0, 12), min_size=1, max_size=6).filter(any))
    lanes = draw(st.integers(1, 20))
    return SampleOrder(
        sizes,
        draw(SEEDS),
        chunk_samples=draw(st.integers(1, 15)),
        lanes=lanes,
        window=draw(st.integers(1, 15)),
        round_samples=lanes * draw(st.integers(1, 4)),
    )


# Every run ever recorded depends on these: a change that breaks them breaks resuming and audits.
KNOWN = [
    (
        ([5, 0, 3], 0, 2, 2, 2, 4),
        range(18),
        [],
    ),
    (
        ([3, 4], 2**64 - 1, 2, 8, 3, 16),
        range(14),
        [],
    ),
    (
        ([10], 12345, 1, 1, 1, 1),
        range(20),
        [],
    ),
    (
        ([2564] * 117_000, 7, 40, 512, 40, 4096),
        [0, 1, 8, 4095, 4096, 299_987_999, 299_988_000, 10**12],
        [],
    ),
]


def order_of(config: tuple[Any, ...]) -> SampleOrder:
    sizes, seed, chunk, lanes, window, round_samples = config
    return SampleOrder(
        sizes, seed, chunk_samples=chunk, lanes=lanes, window=window, round_samples=round_samples
    )
