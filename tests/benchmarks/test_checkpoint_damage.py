"""Damage to a checkpoint is named before it is read: benchmarks/checkpoint_damage.py, in short."""

import json
import random
from typing import Any
from unittest.mock import ANY

import pytest

from benchmarks.checkpoint_damage import (
    BEFORE,
    WHOLE,
    Counts,
    all_subjects,
    damage_and_restore,
    missed,
)
from benchmarks.checkpoint_restores import NAMED, OTHER, outcome_of
from benchmarks.file_damage import flipped
from mixer_dist.checkpoint import catalog, load
from mixer_dist.checkpoint.layout import MANIFEST_NAME

NUM_DAMAGES = 150


@pytest.fixture(scope="module")
def subjects(ranks, tmp_path_factory):
    return all_subjects(tmp_path_factory.mktemp("checkpoints"), ranks)


def test_damage_is_named_before_the_checkpoint_is_read(subjects):
    counts = damage_and_restore(subjects[BEFORE], range(NUM_DAMAGES))
    assert not missed(BEFORE, counts)
    assert counts.total() == NUM_DAMAGES


def test_every_bit_of_the_manifest_counts(subjects):
    files, rng = subjects[BEFORE].files, random.Random(0)
    for bit in rng.sample(range(8 * len(files[MANIFEST_NAME])), NUM_DAMAGES):
        changed = files | {MANIFEST_NAME: flipped(files[MANIFEST_NAME], bit)}
        assert outcome_of(subjects[BEFORE], changed)[0] == NAMED, bit


def test_damage_after_the_check_is_found_in_pieces_that_are_read_whole(subjects):
    counts = damage_and_restore(subjects[WHOLE], range(NUM_DAMAGES))
    assert not missed(WHOLE, counts)
    assert number_of(counts, NAMED) > NUM_DAMAGES / 3


def number_of(counts: Counts, outcome: str) -> int:
    return sum(number for (_, found), number in counts.items() if found == outcome)


def unchecked(data: bytes) -> dict[str, Any]:
    return {key: value for key, value in json.loads(data).items() if key != "sha256"}


@pytest.mark.parametrize(
    ("name", "module", "function", "without"),
    [
        (BEFORE, catalog, "unsealed", unchecked),
        (WHOLE, load, "crc32", lambda _: ANY),
    ],
)
def test_it_would_be_seen_without_the_check(subjects, monkeypatch, name, module, function, without):
    monkeypatch.setattr(module, function, without)
    counts = damage_and_restore(subjects[name], range(NUM_DAMAGES))
    assert missed(name, counts)
    assert number_of(counts, OTHER) > 0
