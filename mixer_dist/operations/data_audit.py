"""Proof that a run read what it should: every step's digest computed anew, and no image read.

Configuration, manifests, indexes and the record of damaged samples say which samples a step must
have used; the run's metrics hold the digest of those that it did use.
"""

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import accumulate
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from mixer_dist.checkpoint.catalog import list_checkpoints
from mixer_dist.data.manifest import Dataset, load_index
from mixer_dist.data.order import Window, batch_positions, sample_hashes
from mixer_dist.data.run_data import sample_order, training_data
from mixer_dist.errors import DataError, MissingError
from mixer_dist.metrics import Line, attempt_lines, read_events
from mixer_dist.run_dir import Attempt, RunDir, attempt_numbers, read_attempt
from mixer_dist.storage import Storage

BLOCK_POSITIONS = 2**20  # looked up at a time
NUM_READERS = 8

Positions = NDArray[np.int64]


@dataclass(frozen=True)
class Record:
    """What a step's line in the metrics says of its data."""

    position: int
    """The first global position after the step; -1 where nothing is said."""
    digest: str


NOT_THERE = Record(-1, "no record")


@dataclass(frozen=True)
class Difference:
    """The first step whose record is not what it must be."""

    step: int
    attempt: int
    expected: Record
    found: Record


@dataclass
class Audit:
    """What was found."""

    total_steps: int
    """Of the run when it is done."""
    num_steps: int = 0
    """Steps whose record is right, up to the first difference."""
    attempts: list[int] = field(default_factory=list)
    """Those of whose steps some count."""
    difference: Difference | None = None
    substitutions: list[dict[str, Any]] = field(default_factory=list)
    """`bad_sample` events of the steps that count."""
    skipped: tuple[tuple[int, int], ...] = ()
    """Windows [start, stop) of positions that were left out by hand."""
    changes: list[dict[str, Any]] = field(default_factory=list)
    """Values that were changed on the way: step, key, old and new."""
    position: int = 0
    """The first global position after these steps."""


def audit(run_dir: RunDir) -> Audit:
    """Check each step that counts, attempt by attempt, up to the first difference.

    Each goes on at the position that the one before came to, whatever its own record says.

    MissingError where there is no run; DataError where its data are no longer what they were.
    """
    storage = Storage()
    numbers = attempt_numbers(storage, run_dir)
    if not numbers:
        raise MissingError(f"no run at {run_dir.url}: it has no attempts/")
    attempts = _reached_as_now([read_attempt(storage, run_dir, number) for number in numbers])
    _check_complete(run_dir, attempts)
    found = Audit(total_steps=attempts[-1].config.total_steps)
    saved_step = _newest_saved_step(storage, run_dir)
    for attempt, last_step in zip(attempts, _last_steps(attempts), strict=True):
        if found.difference or (last_step is not None and last_step <= attempt.resumed_from):
            continue  # a later attempt did all its steps again
        found.attempts.append(attempt.attempt)
        found.skipped = attempt.skipped
        found.changes = [change.model_dump() for change in attempt.changes]
        _audit_attempt(found, storage, run_dir, attempt, last_step, saved_step)
    return found


def _reached_as_now(attempts: Sequence[Attempt]) -> list[Attempt]:
    """By the newest attempt's storage: a server may have another address than it had once."""
    now = {"storage": attempts[-1].config.storage}
    return [a.model_copy(update={"config": a.config.model_copy(update=now)}) for a in attempts]


def _check_complete(run_dir: RunDir, attempts: Sequence[Attempt]) -> None:
    """Steps of an attempt that is no longer on record cannot be audited; DataError."""
    numbers = [attempt.attempt for attempt in attempts]
    if missing := sorted({*range(1, numbers[-1] + 1)} - {*numbers}):
        raise DataError(f"{run_dir.attempt_file(missing[0])} is missing: restore the file")


def _newest_saved_step(storage: Storage, run_dir: RunDir) -> int:
    """Up to where checkpoints prove that the run has come; 0 where there is none."""
    checkpoints, _ = list_checkpoints(storage, run_dir)
    return max((checkpoint.manifest.step for checkpoint in checkpoints), default=0)


def _last_steps(attempts: Sequence[Attempt]) -> list[int | None]:
    """The last step of each attempt that counts; of the last one, all do."""
    resumed_from = [attempt.resumed_from for attempt in attempts[1:]]
    earliest_after = list(accumulate(reversed(resumed_from), min))
    return [*reversed(earliest_after), None]


def _audit_attempt(
    found: Audit,
    storage: Storage,
    run_dir: RunDir,
    attempt: Attempt,
    last_step: int | None,
    saved_step: int,
) -> None:
    events = read_events(storage, run_dir, attempt.attempt)
    replaced = {e["position"]: e for e in events if e["event"] == "bad_sample"}
    lines = {line["step"]: line for line in attempt_lines(storage, run_dir, attempt.attempt)}
    stop = last_step if last_step is not None else max([saved_step, *lines])
    steps = range(attempt.resumed_from + 1, stop + 1)
    name = f"attempt {attempt.attempt}"
    expected = Ledger(attempt, replaced).records(found.position, len(steps))
    for step, record in zip(tqdm(steps, name, unit=" steps", disable=None), expected, strict=True):
        recorded = _record(lines.get(step))
        if record != recorded:
            found.difference = Difference(step, attempt.attempt, record, recorded)
            break
        found.num_steps += 1
        found.position = record.position
    found.substitutions += [replaced[p] for p in sorted(replaced) if p < found.position]


def _record(line: Line | None) -> Record:
    return Record(line["position"], line["batch_digest"]) if line else NOT_THERE


class Ledger:
    """What each step of an attempt must have read."""

    def __init__(self, attempt: Attempt, replaced: dict[int, Line]) -> None:
        self._config = attempt.config
        self._attempt = attempt
        self._storage = Storage(attempt.config.storage)
        self._dataset = _unchanged_data(attempt, self._storage)
        self._order = sample_order(attempt.config, self._dataset)
        self._bad_positions = np.array(sorted(replaced), np.int64)
        self._stand_ins = np.array([replaced[p]["replaced_by"] for p in sorted(replaced)], np.int64)
        self._crc32s = _Crc32s(self._storage, self._dataset, self._order.begins)

    def records(self, position: int, num_steps: int) -> Iterator[Record]:
        """The records of the attempt's steps, the first of which goes on at a position."""
        size = self._config.global_batch_size
        skipped = [Window(*window) for window in self._attempt.skipped]
        at_once = max(1, BLOCK_POSITIONS // size)
        for first in range(0, num_steps, at_once):
            count = min(at_once, num_steps - first)
            positions = batch_positions(position, count * size, skipped)
            digests = self._hashes(positions).reshape(count, size).sum(1, dtype=np.uint64)
            ends = positions.reshape(count, size)[:, -1] + 1
            for end, digest in zip(ends.tolist(), digests.tolist(), strict=True):
                yield Record(end, f"{digest:016x}")
            position = int(ends[-1])

    def _hashes(self, positions: Positions) -> NDArray[np.uint64]:
        samples = self._order.samples(positions)[1]
        is_bad = np.isin(positions, self._bad_positions)
        samples[is_bad] = self._stand_ins[np.searchsorted(self._bad_positions, positions[is_bad])]
        shards = np.searchsorted(self._order.ends, samples, "right")
        indices = samples - self._order.begins[shards]
        return sample_hashes(positions, shards, indices, self._crc32s.of(samples, shards))


class _Crc32s:
    """Each sample's CRC-32; an index is read when the first sample of its shard is asked for."""

    def __init__(self, storage: Storage, dataset: Dataset, begins: Positions) -> None:
        self._storage = storage
        self._dataset = dataset
        self._begins = begins
        self._values = np.zeros(dataset.num_samples, np.uint32)
        self._is_read = np.zeros(len(dataset.parts), bool)

    def of(self, samples: Positions, shards: Positions) -> NDArray[np.uint32]:
        wanted = np.unique(shards)
        with ThreadPoolExecutor(NUM_READERS) as readers:
            list(readers.map(self._read, wanted[~self._is_read[wanted]].tolist()))
        self._is_read[wanted] = True
        return self._values[samples]

    def _read(self, shard: int) -> None:
        index = load_index(self._storage, self._dataset.parts[shard])
        begin = int(self._begins[shard])
        self._values[begin : begin + len(index)] = index["crc32"]


def _unchanged_data(attempt: Attempt, storage: Storage) -> Dataset:
    dataset = training_data(attempt.config, storage)
    if dataset.fingerprint != attempt.dataset:
        raise DataError(
            f"the data of attempt {attempt.attempt} have changed since (fingerprint "
            f"{dataset.fingerprint[:12]}…, then {attempt.dataset[:12]}…): restore the manifests"
        )
    return dataset


def audit_lines(found: Audit) -> list[str]:
    """The result in sentences."""
    attempts = ", ".join(map(str, found.attempts))
    return [
        f"attempts {attempts}: {found.num_steps:,} of {found.total_steps:,} steps are right",
        *(
            f"left out by hand: positions {start:,} to {stop - 1:,}"
            for start, stop in found.skipped
        ),
        *(
            "changed after step {step:,}: {key}: {old} -> {new}".format(**change)
            for change in found.changes
        ),
        *(_substitution_line(event) for event in found.substitutions),
        f"{len(found.substitutions):,} damaged samples were replaced.",
    ]


def _substitution_line(event: dict[str, Any]) -> str:
    return (
        f"replaced at position {event['position']:,}: {event['shard']}, sample {event['index']}, "
        f"{event['key'] or 'key unknown'}: {event['reason']}; by number {event['replaced_by']:,}"
    )


def difference_line(difference: Difference) -> str:
    """The first wrong step, in words."""
    if difference.found == NOT_THERE:
        return (
            f"step {difference.step} (attempt {difference.attempt}) has no line in metrics/: "
            "nobody can tell what it read"
        )
    return (
        f"step {difference.step} (attempt {difference.attempt}) is the first that did not read "
        f"what it should: batch_digest {difference.found.digest} up to position "
        f"{difference.found.position}, expected {difference.expected.digest} up to "
        f"{difference.expected.position}"
    )
