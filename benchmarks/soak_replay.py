"""A run's segments between incidents, each trained again by one process from its checkpoint."""

import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from benchmarks.soak_site import Site
from mixer_dist import cli
from mixer_dist.checkpoint.catalog import read_checkpoint
from mixer_dist.config import load_config
from mixer_dist.metrics import Line, read_events, read_metrics
from mixer_dist.run_dir import Attempt, RunDir, attempt_numbers, read_attempt
from mixer_dist.storage import Storage, join
from tests import ranks as rank_processes

STOPPED = (0, 75)
TIMEOUT_S = 1800.0  # of a segment; the last one is long


class Segment(NamedTuple):
    """What of an attempt counts: the steps that no later one did again."""

    attempt: int
    first: int
    """The step that it resumed from."""
    last: int
    world_size: int


class Replay(NamedTuple):
    """A segment, and how far its losses are from the recorded ones."""

    segment: Segment
    distance: float
    """Largest relative difference."""


def segments(storage: Storage, run_dir: RunDir, total_steps: int) -> Iterator[Segment]:
    """All steps of a run, attempt by attempt."""
    attempts = [read_attempt(storage, run_dir, n) for n in attempt_numbers(storage, run_dir)]
    ends = [*(attempt.resumed_from for attempt in attempts[1:]), total_steps]
    for number, attempt in enumerate(attempts):
        last = min(ends[number:])
        if last > attempt.resumed_from:
            yield Segment(
                attempt.attempt, attempt.resumed_from, last, _world_size(storage, run_dir, attempt)
            )


def _world_size(storage: Storage, run_dir: RunDir, attempt: Attempt) -> int:
    events = read_events(storage, run_dir, attempt.attempt)
    return next(e["world_size"] for e in events if e["event"] in ("start", "resume"))


def replay(site: Site, found: Sequence[Segment]) -> list[Replay]:
    """Train each segment anew."""
    rank_processes.TIMEOUT_S = TIMEOUT_S
    ranks, storage = rank_processes.Ranks(), site.storage
    lines = {line["step"]: line for line in read_metrics(storage, site.run_dir)}
    replays = []
    for segment in found:
        [others] = ranks.run(1, train_again, site.config, segment)
        replays.append(Replay(segment, distance(segment, lines, others)))
    return replays


def train_again(config: Path, segment: Segment) -> list[Line]:
    """The metrics of a segment, by one process that begins with the same checkpoint."""
    loaded = load_config(config)
    storage, run_dir = Storage(loaded.storage), RunDir(loaded.run_dir)
    scratch = RunDir(str(config.parent / "replays" / f"{segment.attempt:04d}"))
    copy_checkpoint(storage, run_dir, scratch, segment.first)
    arguments = [str(config), f"run_dir={scratch.url}", "--until", str(segment.last)]
    code = cli.main(["pretrain", *arguments])
    assert code in STOPPED, code
    return read_metrics(Storage(), scratch)


def copy_checkpoint(storage: Storage, run_dir: RunDir, scratch: RunDir, step: int) -> None:
    """A checkpoint, with the attempt that wrote it, into another run; nothing where step is 0."""
    if not step:
        return
    local, source, target = Storage(), run_dir.checkpoint(step), scratch.checkpoint(step)
    for name in storage.names(source):
        local.write(join(target, name), storage.read(join(source, name)))
    number = read_checkpoint(storage, source).manifest.attempt
    local.write(scratch.attempt_file(number), storage.read(run_dir.attempt_file(number)))


def distance(segment: Segment, lines: dict[int, Line], others: Sequence[Line]) -> float:
    """Largest of a replay's losses; infinite where a step is missing or read other samples."""
    if [other["step"] for other in others] != list(range(segment.first + 1, segment.last + 1)):
        return math.inf
    pairs = [(lines[other["step"]], other) for other in others]
    if any(line["batch_digest"] != other["batch_digest"] for line, other in pairs):
        return math.inf
    return max(abs(line["loss"] - other["loss"]) / line["loss"] for line, other in pairs)
