"""Hashed randomness: the same for ever, uniform, and unrelated between what it is drawn for."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mixer_dist.data.randomness import Purpose, mix, permute, uniforms, words

the_same_cases = settings(derandomize=True, database=None, deadline=None, max_examples=50)

SEEDS = st.integers(0, 2**64 - 1)
POSITIONS = st.lists(st.integers(-1, 2**62), min_size=1, max_size=8)
PURPOSES = st.sampled_from(Purpose)
NUM_DRAWN = 20_000
# Four standard errors of a correlation between NUM_DRAWN independent pairs.
UNRELATED = 4 / NUM_DRAWN**0.5


def test_mix_gives_the_published_splitmix64_sequence():
    steps = np.arange(1, 5, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)
    published = [0xE220A8397B1DCDAF, 0x6E789E6AA1B965F4, 0x06C45D188009454F, 0xF88BB8A8724C81EC]
    assert mix(steps).tolist() == published


def test_negative_integers_wrap():
    assert words([-1, 0, 5]).tolist() == [2**64 - 1, 0, 5]


# Every run that was ever recorded depends on these.
@pytest.mark.parametrize(
    ("seed", "counters", "purpose", "expected"),
    [
        (0, [0, 1], Purpose.CROP, [[0.7406578119398666, 0.2046119002947585, 0.4609940007646953],
                                   [0.09814363697193562, 0.12782618304240545, 0.8460043279156438]]),
        (2**64 - 1, [10**12, -1], Purpose.DEPTH, [[0.3371427762432945, 0.4484611681297176],
                                                  [0.46189709897345776, 0.27862854697275574]]),
    ],
)  # fmt: skip
def test_draws_never_change(seed, counters, purpose, expected):
    assert uniforms(seed, counters, purpose, len(expected[0])).tolist() == expected


def test_purposes_keep_their_numbers():
    assert {purpose.name: purpose.value for purpose in Purpose} == {
        "CROP": 1, "FLIP": 2, "DEPTH": 3, "MIXUP": 4, "RANDAUGMENT": 5,
    }  # fmt: skip


@the_same_cases
@given(SEEDS, POSITIONS, PURPOSES, st.integers(1, 20), st.integers(1, 20))
def test_a_draw_depends_only_on_seed_counter_purpose_and_its_own_number(
    seed, positions, purpose, fewer, more
):
    drawn = uniforms(seed, positions, purpose, fewer + more)
    assert drawn.shape == (len(positions), fewer + more)
    assert (drawn >= 0).all() and (drawn < 1).all()
    assert (uniforms(seed, positions, purpose, fewer) == drawn[:, :fewer]).all()
    assert (uniforms(seed, [positions[-1]], purpose, fewer + more) == drawn[-1]).all()


def test_draws_are_uniform():
    drawn = uniforms(7, np.arange(NUM_DRAWN), Purpose.CROP, 4)
    assert np.abs(drawn.mean(0) - 1 / 2).max() < 4 * (1 / 12 / NUM_DRAWN) ** 0.5
    assert np.abs(drawn.var(0) - 1 / 12).max() < 4 * (1 / 180 / NUM_DRAWN) ** 0.5
    tenths = np.stack([np.histogram(column, 10, (0, 1))[0] for column in drawn.T])
    assert np.abs(tenths / NUM_DRAWN - 0.1).max() < 4 * (0.09 / NUM_DRAWN) ** 0.5


def test_draws_for_other_purposes_numbers_and_seeds_are_unrelated():
    columns = [
        uniforms(seed, np.arange(NUM_DRAWN), purpose, 3)
        for seed in (0, 1, 2**63)
        for purpose in Purpose
    ]
    related = np.corrcoef(np.concatenate(columns, axis=1), rowvar=False) - np.eye(45)
    assert np.abs(related).max() < UNRELATED * 1.2  # the largest of 990


@pytest.mark.parametrize("distance", [1, 2, 64, 4096, 2**32])
def test_draws_at_neighbouring_positions_are_unrelated(distance):
    positions = np.arange(NUM_DRAWN)
    here = uniforms(0, positions, Purpose.FLIP, 1)[:, 0]
    there = uniforms(0, positions + distance, Purpose.FLIP, 1)[:, 0]
    assert abs(np.corrcoef(here, there)[0, 1]) < UNRELATED


@pytest.mark.parametrize(
    ("size", "bound", "key", "expected"),
    [
        (10, 10, 5, [2, 4, 0, 1, 3, 5, 7, 6, 8, 9]),
        (7, 16, 2**64 - 1, [6, 5, 4, 1, 0, 3, 2]),
    ],
)
def test_permutations_never_change(size, bound, key, expected):
    assert permute(np.arange(size), size, bound, words(key)).tolist() == expected


@the_same_cases
@given(st.lists(st.integers(1, 70), min_size=1, max_size=5), st.integers(0, 200), SEEDS)
def test_each_key_permutes_its_own_range(sizes, room, seed):
    """Ranges of several sizes and keys in one call, as windows at the end of lanes are."""
    values = np.concatenate([np.arange(size) for size in sizes])
    limits = np.repeat(sizes, sizes)
    keys = mix(words(seed) + np.repeat(np.arange(len(sizes)), sizes).astype(np.uint64))
    permuted = permute(values, limits, max(sizes) + room, keys)
    for part in np.split(permuted, np.cumsum(sizes)[:-1]):
        assert sorted(part.tolist()) == list(range(len(part)))


@pytest.mark.parametrize("size", [16, 40])
def test_every_value_comes_to_every_place_alike(size):
    """Not so below ten values, where four Feistel rounds favour some places by up to a third."""
    num_keys = 400 * size
    keys = np.repeat(mix(np.arange(num_keys, dtype=np.uint64)), size)
    permuted = permute(np.tile(np.arange(size), num_keys), size, size, keys).reshape(-1, size)
    counts = np.stack([np.bincount(column, minlength=size) for column in permuted.T])
    assert np.abs(counts - 400).max() < 5 * 400**0.5


def test_a_range_larger_than_32_bits_is_permuted_within_itself():
    size = 2**40 + 3
    values = np.concatenate([np.arange(2000), np.arange(size - 2000, size)])
    permuted = permute(values, size, size, words(9))
    assert len(np.unique(permuted)) == len(values)
    assert permuted.min() >= 0 and permuted.max() < size
    assert abs(permuted.mean() / size - 0.5) < 0.03
