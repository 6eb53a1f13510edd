"""Metrics and events of a run as JSON lines in its directory, and how they are read back.

Objects in a bucket cannot be appended to: a metrics file is written anew as a whole from time to
time, events at once.
"""

import json
import math
import re
import time
from dataclasses import dataclass, field
from typing import Any

from mixer_dist.run_dir import RunDir, attempt_numbers, read_attempt
from mixer_dist.storage import Storage, join

Line = dict[str, Any]

FLUSH_S = 30.0
ROLL_BYTES = 4 * 10**6

_METRICS_FILE = re.compile(r"^attempt-(\d+)-\d+\.jsonl$")


def to_json_line(line: Line) -> str:
    """One line of JSON; numbers that JSON does not know become null."""
    finite = {
        key: None if isinstance(value, float) and not math.isfinite(value) else value
        for key, value in line.items()
    }
    return json.dumps(finite, allow_nan=False) + "\n"


@dataclass
class MetricsLog:
    """What rank 0 measured, a line a step; rewritten every 30 s, and rolled at 4 MB."""

    storage: Storage
    run_dir: RunDir
    attempt: int
    _lines: list[str] = field(default_factory=list)
    _part: int = 0
    _flushed_at: float = field(default_factory=time.monotonic)

    def add(self, line: Line) -> None:
        """Take one line, to be written when it is time."""
        self._lines.append(to_json_line(line))
        if time.monotonic() - self._flushed_at > FLUSH_S:
            self.flush()

    def flush(self) -> None:
        """Write all lines of the current file now."""
        if self._lines:
            url = self.run_dir.metrics_file(self.attempt, self._part)
            self.storage.write(url, "".join(self._lines).encode())
        self._flushed_at = time.monotonic()
        if sum(map(len, self._lines)) > ROLL_BYTES:
            self._part, self._lines = self._part + 1, []


@dataclass
class EventLog:
    """What happened to one rank: start, resume, save, bad sample, finish; written at once."""

    storage: Storage
    run_dir: RunDir
    attempt: int
    rank: int
    _lines: list[str] = field(default_factory=list)

    def write(self, event: str, **details: Any) -> None:
        """Record an event now."""
        line = {"event": event, "time": time.time(), "rank": self.rank, **details}
        self._lines.append(to_json_line(line))
        url = self.run_dir.events_file(self.attempt, self.rank)
        self.storage.write(url, "".join(self._lines).encode())


def read_metrics(storage: Storage, run_dir: RunDir) -> list[Line]:
    """A run's metrics by step: of each attempt only what the next one did not do again."""
    numbers = attempt_numbers(storage, run_dir)
    resumed_from = {n: read_attempt(storage, run_dir, n).resumed_from for n in numbers}
    kept: dict[int, Line] = {}
    for attempt in numbers:
        kept = {step: line for step, line in kept.items() if step <= resumed_from[attempt]}
        kept.update({line["step"]: line for line in _attempt_lines(storage, run_dir, attempt)})
    return [kept[step] for step in sorted(kept)]


def _attempt_lines(storage: Storage, run_dir: RunDir, attempt: int) -> list[Line]:
    lines: list[Line] = []
    for name in storage.names(run_dir.metrics):
        match = _METRICS_FILE.match(name)
        if match and int(match[1]) == attempt:
            text = storage.read(join(run_dir.metrics, name)).decode()
            lines += [json.loads(line) for line in text.splitlines()]
    return lines
