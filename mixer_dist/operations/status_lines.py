"""A run's status in five lines."""

from datetime import datetime

from mixer_dist.checkpoint.listing import age
from mixer_dist.operations.status import Health, Life, Position, Saved, Speed, Status

LEVEL_SHARE = 0.002  # of the loss, within which it neither falls nor rises


def status_lines(status: Status) -> list[str]:
    """Where it stands, speed, checkpoint, health, alive or not."""
    parts = {
        "step": _position(status.position),
        "speed": _speed(status.speed, status.time),
        "saved": _saved(status.checkpoint),
        "health": _health(status.health),
        "state": _life(status.life),
    }
    return [f"{name:<8}{text}" for name, text in parts.items()]


def _position(position: Position) -> str:
    share = position.step / position.total_steps
    return f"{position.step:,} of {position.total_steps:,} ({share:.1%}), {_loss(position)}"


def _loss(position: Position) -> str:
    if position.loss is None:
        return "no loss yet"
    now, before = position.loss, position.loss_before
    if before is None:
        return f"loss {now:.4g}"
    is_level = abs(now - before) <= LEVEL_SHARE * abs(before)
    trend = "level" if is_level else "falling" if now < before else "rising"
    steps = f"{position.trend_steps:,} steps"
    return f"loss {now:.4g} and {trend}: median of {steps}, {before:.4g} in those before"


def _speed(speed: Speed, now: float) -> str:
    if speed.images_per_s is None:
        return "not known before the first step"
    text = f"{speed.images_per_s:,.0f} images/s, {speed.data_wait_share:.0%} of it waiting for data"
    if speed.end is None:
        return text
    return f"{text}; done in {age(speed.end - now)}, on {_local_time(speed.end)}"


def _saved(saved: Saved | None) -> str:
    if saved is None:
        return "no checkpoint yet"
    return f"step {saved.step:,}, {age(saved.age_s)} ago, {saved.steps_since:,} steps since"


def _health(health: Health) -> str:
    parts = [
        _plural(health.num_restarts, "restart"),
        _goodput(health),
        f"{_plural(health.num_skipped_updates, 'update')} skipped",
        _plural(health.num_bad_samples, "damaged sample"),
        f"stragglers: {', '.join(health.stragglers)}" if health.stragglers else "no straggler",
    ]
    if health.num_failed_saves:
        parts.insert(0, f"{_plural(health.num_failed_saves, 'save')} FAILED since the last")
    return ", ".join(parts)


def _goodput(health: Health) -> str:
    if health.goodput is None:
        return "no goodput yet"
    which = "" if health.is_whole_run else "the last "
    return f"goodput {health.goodput:.1%} of {which}{age(health.goodput_s)}"


def _life(life: Life) -> str:
    heard = "nothing on record" if life.age_s is None else f"last record {age(life.age_s)} ago"
    every = f"one comes every {age(life.cadence_s)}"
    by = f" by {life.reason}" if life.reason else ""
    sentences = {
        "starting": f"starting; {heard}, the first step is not done",
        "training": f"training; {heard}, {every}",
        "silent": f"nobody trains, it seems: {heard}, {every}. Hung, killed or waiting for nodes",
        "preempted": f"stopped on request{by}; {heard}. The same command goes on",
        "failed": f"failed: {life.reason}; {heard}",
        "finished": f"finished; {heard}",
    }
    return sentences[life.state]


def _plural(count: int, noun: str) -> str:
    return f"{count:,} {noun}{'' if count == 1 else 's'}"


def _local_time(seconds: float) -> str:
    """Such as `Wed 25 Nov 2026, 14:10 CET`, in this machine's zone."""
    return f"{datetime.fromtimestamp(seconds).astimezone():%a %d %b %Y, %H:%M %Z}"
