"""How a run is doing, in five parts: where it stands, speed, checkpoint, health, alive or not.

Times are in seconds since 1970; what nobody knows yet is None.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from math import fsum
from statistics import median
from typing import Literal

from mixer_dist.goodput import goodput
from mixer_dist.metrics import FLUSH_S, Line
from mixer_dist.operations.recent import Recent

TREND_STEPS = 100  # of which a median is compared with that of as many before
LATE = 3  # times the usual time between two records

State = Literal["starting", "training", "silent", "preempted", "failed", "finished"]


@dataclass(frozen=True)
class Position:
    """Where the run stands."""

    step: int
    total_steps: int
    loss: float | None
    """Median of the last trend_steps steps."""
    loss_before: float | None
    """Median of as many steps before those."""
    trend_steps: int


@dataclass(frozen=True)
class Speed:
    """How fast the last attempt is, after its first step."""

    images_per_s: float | None
    data_wait_share: float | None
    end: float | None
    """When the last step is done at this speed, while it trains."""


@dataclass(frozen=True)
class Saved:
    """The newest committed checkpoint."""

    url: str
    step: int
    age_s: float
    steps_since: int


@dataclass(frozen=True)
class Health:
    """What went wrong, and what it cost."""

    attempt: int
    num_restarts: int
    num_skipped_updates: int
    num_bad_samples: int
    """Up to the newest checkpoint."""
    num_failed_saves: int
    """Since the last that did not fail, of the attempts looked at."""
    stragglers: tuple[str, ...]
    """Ranks that the last attempt found slow."""
    goodput: float | None
    """The productive share of goodput_s, which is the wall time of the attempts looked at."""
    goodput_s: float
    is_whole_run: bool
    """Whether these are all attempts."""


@dataclass(frozen=True)
class Life:
    """Whether anybody trains."""

    state: State
    reason: str | None
    """Of a failure, or the signal that asked it to stop."""
    age_s: float | None
    """Of the last record."""
    cadence_s: float
    """Between two records, as far as a reader of the run directory sees them."""


@dataclass(frozen=True)
class Status:
    """A run at one moment."""

    run_dir: str
    time: float
    position: Position
    speed: Speed
    checkpoint: Saved | None
    health: Health
    life: Life


def status_of(recent: Recent, now: float) -> Status:
    """What a run's newest records come to."""
    lines = recent.lines
    saved_step = recent.committed.checkpoint.manifest.step if recent.committed else 0
    step = max(saved_step, recent.attempt.resumed_from, lines[-1]["step"] if lines else 0)
    life = _life(recent, lines, step, now)
    return Status(
        run_dir=recent.url,
        time=now,
        position=_position(recent, lines, step),
        speed=_speed(recent, step, now if life.state == "training" else None),
        checkpoint=_saved(recent, step, now),
        health=_health(recent, lines, life, now),
        life=life,
    )


def _position(recent: Recent, lines: list[Line], step: int) -> Position:
    losses = [line["loss"] for line in lines[-2 * TREND_STEPS :] if line["loss"] is not None]
    half = len(losses) // 2
    return Position(
        step=step,
        total_steps=recent.attempt.config.total_steps,
        loss=median(losses[half:]) if losses else None,
        loss_before=median(losses[:half]) if half else None,
        trend_steps=len(losses) - half,
    )


def _speed(recent: Recent, step: int, now: float | None) -> Speed:
    """`now` is None where nobody trains."""
    config = recent.attempt.config
    # The first step compiles; where there is no other yet, it has to do.
    lines = recent.records[-1].lines[1:][-TREND_STEPS:] or recent.records[-1].lines
    if not lines:
        return Speed(None, None, None)
    seconds = [line["global_batch_size"] / line["images_per_s"] for line in lines]
    images_per_s = sum(line["global_batch_size"] for line in lines) / fsum(seconds)
    waits = [s * line["data_wait_share"] for s, line in zip(seconds, lines, strict=True)]
    left_s = (config.total_steps - step) * config.global_batch_size / images_per_s
    end = None if now is None else now + left_s
    return Speed(images_per_s, fsum(waits) / fsum(seconds), end)


def _saved(recent: Recent, step: int, now: float) -> Saved | None:
    if not recent.committed:
        return None
    checkpoint = recent.committed.checkpoint
    age_s = max(0.0, now - recent.committed.time)  # clocks may differ
    return Saved(checkpoint.url, checkpoint.manifest.step, age_s, step - checkpoint.manifest.step)


def _health(recent: Recent, lines: list[Line], life: Life, now: float) -> Health:
    is_down = life.state in ("silent", "preempted", "failed")
    spent = goodput(recent.records, end=now if is_down else None)
    manifest = recent.committed.checkpoint.manifest if recent.committed else None
    return Health(
        attempt=recent.attempt.attempt,
        num_restarts=recent.num_attempts - 1,
        num_skipped_updates=_num_skipped(recent, lines),
        num_bad_samples=manifest.num_bad_samples if manifest else 0,
        num_failed_saves=_num_failed_saves(recent),
        stragglers=_stragglers(recent),
        goodput=spent.share,
        goodput_s=spent.wall_s,
        is_whole_run=recent.is_whole,
    )


def _num_skipped(recent: Recent, lines: list[Line]) -> int:
    """As the optimizer counted them up to the checkpoint, and as recorded since."""
    if not recent.committed:
        return sum(line["update_skipped"] for line in lines)
    state = recent.committed.checkpoint.manifest.state
    since = sum(line["update_skipped"] for line in lines if line["step"] > state.step)
    return state.step - state.num_updates + int(since)


def _num_failed_saves(recent: Recent) -> int:
    kinds = [event["event"] for event in recent.events]
    since_last = kinds[::-1].index("save") if "save" in kinds else len(kinds)
    return kinds[len(kinds) - since_last :].count("save_failed")


def _stragglers(recent: Recent) -> tuple[str, ...]:
    events = [e for e in recent.records[-1].events if e["event"] == "straggler"]
    return tuple(dict.fromkeys(f"rank {e['slow_rank']} ({e['host']})" for e in events))


def _life(recent: Recent, lines: list[Line], step: int, now: float) -> Life:
    cadence_s = max(FLUSH_S, _interval_s(lines))
    state, reason = _state(recent, step, LATE * cadence_s, now)
    last = recent.last_record
    return Life(state, reason, None if last is None else max(0.0, now - last), cadence_s)


def _state(recent: Recent, step: int, late_s: float, now: float) -> tuple[State, str | None]:
    """What the last event says; else whether anything was heard of the last attempt lately."""
    if step >= recent.attempt.config.total_steps and _kind_of_last(recent.events) == "finish":
        return "finished", None
    last = recent.records[-1]
    if _kind_of_last(last.events) == "preempt":
        return "preempted", last.events[-1]["signal"] or None  # another rank may have got it
    if _kind_of_last(last.events) in ("fail", "abort"):
        return "failed", last.events[-1]["reason"]
    heard = max(recent.started, recent.last_record or 0.0)
    start_up_s = recent.attempt.config.engine.start_timeout_s
    if now - heard > (late_s if last.lines else start_up_s):
        return "silent", None
    return ("training" if last.lines else "starting"), None


def _kind_of_last(events: Sequence[Line]) -> str | None:
    return events[-1]["event"] if events else None


def _interval_s(lines: list[Line]) -> float:
    """Seconds between the last two reports."""
    times = list(dict.fromkeys(line["time"] for line in lines))
    return float(times[-1] - times[-2]) if len(times) > 1 else 0.0
