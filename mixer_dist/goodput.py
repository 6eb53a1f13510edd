"""Where a run's wall time went: a pure function of what its attempts have recorded.

Every second from the start of the first process to the end counts once, under one kind. What an
attempt did after its last record, when it was killed, counts as down: up to 30 s and one logging
interval.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby, pairwise
from typing import Literal

from mixer_dist.metrics import Line

Kind = Literal["productive", "data_wait", "checkpoint", "lost", "start_up", "down"]

KINDS: dict[Kind, str] = {
    "productive": "training: steps that count",
    "data_wait": "waiting for data",
    "checkpoint": "standing still for a checkpoint",
    "lost": "work lost: steps done again, or whose update was skipped",
    "start_up": "starting: from the first process to the end of an attempt's first step",
    "down": "between attempts: in the queue, or failed and not started again yet",
}
NO_LIMIT = float("inf")


@dataclass(frozen=True)
class AttemptRecord:
    """What one attempt has left."""

    attempt: int
    resumed_from: int
    events: Sequence[Line] = ()
    """Those of rank 0."""
    lines: Sequence[Line] = ()
    """All metrics, also of steps that a later attempt did again."""


@dataclass(frozen=True)
class Span:
    """A stretch of wall time, in seconds since 1970, and what its seconds were used for."""

    start: float
    stop: float
    attempt: int | None
    """None between two attempts."""
    seconds: Mapping[Kind, float]
    """By kind; they add up to the length of the span."""

    def within(self, start: float, stop: float) -> "Span":
        """The part of it that lies in [start, stop], in the same proportions."""
        start, stop = max(self.start, start), min(self.stop, stop)
        share = max(0.0, stop - start) / (self.stop - self.start)
        seconds = {kind: share * value for kind, value in self.seconds.items()}
        return Span(start, stop, self.attempt, seconds)


@dataclass(frozen=True)
class Goodput:
    """The whole of it."""

    spans: tuple[Span, ...]
    """They follow one another without a gap."""
    num_lost_steps: int
    """Steps on record that were done again."""

    @property
    def wall_s(self) -> float:
        return self.spans[-1].stop - self.spans[0].start if self.spans else 0.0

    @property
    def seconds(self) -> dict[Kind, float]:
        """How long each kind took, over all spans."""
        return {kind: sum(span.seconds.get(kind, 0.0) for span in self.spans) for kind in KINDS}

    @property
    def share(self) -> float | None:
        """The productive share of the wall time; None before there is any."""
        return self.seconds["productive"] / self.wall_s if self.wall_s else None


def goodput(attempts: Sequence[AttemptRecord], end: float | None = None) -> Goodput:
    """Account for the time up to the last record, or to `end` where nobody has trained since."""
    heard = [record for record in attempts if record.events or record.lines]
    last_steps = _last_steps(heard)
    limits = [*map(_begin, heard[1:]), end or NO_LIMIT]
    spans: list[Span] = []
    for record, last_step, limit in zip(heard, last_steps, limits[: len(heard)], strict=True):
        spans += _down(spans, _begin(record))
        earliest = spans[-1].stop if spans else _begin(record)
        # One that another has superseded may write on for a while.
        parts = (span.within(earliest, limit) for span in _attempt_spans(record, last_step))
        spans += [part for part in parts if part.stop > part.start]
    spans += _down(spans, end)
    pairs = zip(heard, last_steps, strict=True)
    num_lost_steps = sum(_is_redone(line, last) for record, last in pairs for line in record.lines)
    return Goodput(tuple(spans), num_lost_steps)


def _last_steps(attempts: Sequence[AttemptRecord]) -> list[int | None]:
    """The last step of each that counts: up to where any later one went back; of the last, all."""
    resumed_from = [record.resumed_from for record in attempts]
    return [min(resumed_from[i:], default=None) for i in range(1, len(attempts) + 1)]


def _down(spans: Sequence[Span], until: float | None) -> list[Span]:
    """The time since the last span, in which nobody trained."""
    if until is None or not spans or until <= spans[-1].stop:
        return []
    return [_span(spans[-1].stop, until, None, "down")]


def _begin(record: AttemptRecord) -> float:
    """When its first process began; else the first time that is known."""
    times: list[float] = [event.get("began") or event["time"] for event in record.events]
    times += [line["time"] for line in record.lines]
    return min(times)


def _attempt_spans(record: AttemptRecord, last_step: int | None) -> Iterator[Span]:
    """The time of an attempt, whose steps after `last_step` were done again by a later one."""
    stalls = {e["step"]: e["stall_s"] for e in record.events if e["event"] == "save"}
    reports = [list(lines) for _, lines in groupby(record.lines, key=lambda line: line["time"])]
    first, last = _begin(record), max([e["time"] for e in record.events], default=0.0)
    started = reports[0][0]["time"] if reports else last
    if started > first:
        yield _span(first, started, record.attempt, "start_up")
    for before, lines in pairwise(reports):
        start, stop = before[0]["time"], lines[0]["time"]
        stall_s = stalls.get(before[-1]["step"], 0.0)
        if stop > start:
            seconds = _training_seconds(stop - start, lines, stall_s, last_step)
            yield Span(start, stop, record.attempt, seconds)
    if reports and last > (stop := reports[-1][0]["time"]):
        yield _span(stop, last, record.attempt, _kind_of_the_rest(record, last_step))


def _training_seconds(
    wall_s: float, lines: Sequence[Line], stall_s: float, last_step: int | None
) -> dict[Kind, float]:
    """What the steps of one report took their time for."""
    num_lost = sum(_is_redone(line, last_step) or line["update_skipped"] for line in lines)
    good = 1 - num_lost / len(lines)
    stall_s = min(stall_s, wall_s)
    wait_s = min(lines[0]["data_wait_share"] * wall_s, wall_s - stall_s)
    return {
        "productive": good * (wall_s - stall_s - wait_s),
        "data_wait": good * wait_s,
        "checkpoint": good * stall_s,
        "lost": (1 - good) * wall_s,
    }


def _kind_of_the_rest(record: AttemptRecord, last_step: int | None) -> Kind:
    """What an attempt did between its last metrics and its last event."""
    if {"finish", "preempt"} & {event["event"] for event in record.events}:
        return "checkpoint"  # the last save is waited for
    return "productive" if last_step is None else "lost"


def _is_redone(line: Line, last_step: int | None) -> bool:
    return last_step is not None and line["step"] > last_step


def _span(start: float, stop: float, attempt: int | None, kind: Kind) -> Span:
    return Span(start, stop, attempt, {kind: stop - start})
