"""A message that repeats is shown a few times a minute, and never an error less."""

import logging
from collections.abc import Iterator
from itertools import pairwise

import pytest

from mixer_dist import logs
from mixer_dist.logs import RateLimit, start_logging

logger = logging.getLogger("mixer_dist.tests")


class Clock:
    """Time that passes when it is told to."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture(autouse=True)
def unchanged_logging() -> Iterator[None]:
    package = logging.getLogger("mixer_dist")
    before = package.handlers, package.level, package.propagate
    yield
    package.handlers, package.level, package.propagate = before


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    """What limits go by."""
    made = Clock()
    monkeypatch.setattr(logs, "RateLimit", lambda: RateLimit(per_minute=3, clock=made))
    return made


def shown(capsys: pytest.CaptureFixture[str]) -> list[str]:
    """Lines without their time."""
    return [line.partition(" ")[2] for line in capsys.readouterr().out.splitlines()]


def test_a_repeated_message_is_limited_whatever_its_arguments(clock, capsys):
    start_logging()
    for number in range(10):
        logger.warning("shard %d is slow", number)
    logger.warning("another message")
    assert shown(capsys) == [
        "shard 0 is slow",
        "shard 1 is slow",
        "shard 2 is slow (further such lines are left out for a minute)",
        "another message",
    ]


def test_what_was_left_out_is_counted_when_the_minute_is_over(clock, capsys):
    start_logging()
    for number in range(10):
        logger.info("shard %d", number)
    clock.now += 59
    logger.info("shard %d", 10)
    clock.now += 1
    logger.info("shard %d", 11)
    clock.now += 60
    logger.info("shard %d", 12)
    assert shown(capsys)[3:] == ["shard 11 (8 such lines were left out)", "shard 12"]


def test_errors_are_never_left_out(clock, capsys):
    start_logging()
    for number in range(100):
        logger.error("save %d failed", number)
        logger.critical("lost %d", number)
    assert len(shown(capsys)) == 200


def test_step_lines_of_a_fast_run_all_show(clock, capsys):
    start_logging()
    for step in range(50):
        logger.info(f"step {step}")
    assert len(shown(capsys)) == 50


def test_secrets_are_left_out_of_limited_lines_too(clock, capsys):
    start_logging()
    for _ in range(5):
        logger.warning("cannot open %s", "https://user:secret@host/")
    lines = shown(capsys)
    assert len(lines) == 3
    assert not any("secret" in line for line in lines)


def test_messages_that_differ_do_not_fill_the_memory():
    clock = Clock()
    limit = RateLimit(per_minute=3, clock=clock)
    sizes = []
    for step in range(1000):
        clock.now += 1
        record = logging.LogRecord("m", logging.INFO, "f", 1, f"step {step}", (), None)
        assert limit.filter(record)
        sizes.append(len(limit._windows))
    assert max(sizes) <= 61
    assert all(after <= before + 1 for before, after in pairwise(sizes))
