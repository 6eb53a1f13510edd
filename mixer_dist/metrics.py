"""Metrics and events of a run as JSON lines in its directory, and how they are read back.

Objects in a bucket cannot be appended to: a metrics file is written anew as a whole from time to
time, events at once.
"""

import json
import logging
import math
import re
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from mixer_dist.errors import DataError, MixerError, RefusedError, StorageError
from mixer_dist.run_dir import RunDir, attempt_numbers, read_attempt
from mixer_dist.storage import Storage, join

Line = dict[str, Any]

FLUSH_S = 30.0
ROLL_BYTES = 4 * 10**6

logger = logging.getLogger(__name__)

_METRICS_FILE = re.compile(r"^attempt-(\d+)-(\d+)\.jsonl$")


def to_json_line(line: Line) -> str:
    """One line of JSON; numbers that JSON does not know become null."""
    finite = {
        key: None if isinstance(value, float) and not math.isfinite(value) else value
        for key, value in line.items()
    }
    return json.dumps(finite, allow_nan=False) + "\n"


class RolledLines:
    """Lines in files that are written anew as a whole, and followed by the next one at 4 MB.

    They are written by a thread, so that a slow store delays nobody; one that fails is tried again
    with the next lines.
    """

    def __init__(self, storage: Storage, url_of: Callable[[int], str]) -> None:
        """`url_of` names the file of each part, counted from 0."""
        self._storage = storage
        self._url_of = url_of
        self._lines: list[str] = []
        self._part = 0
        self._num_written = 0
        self._lock = threading.Lock()
        self._thread = ThreadPoolExecutor(1, "lines")

    def add(self, line: Line) -> None:
        """Take one line."""
        self._lines.append(to_json_line(line))

    def flush(self) -> None:
        """Have all lines on storage; StorageError."""
        with self._lock:
            lines = list(self._lines)
            if len(lines) == self._num_written:
                return
            self._write("".join(lines).encode())
            self._num_written = len(lines)
            if sum(map(len, lines)) > ROLL_BYTES:
                self._part, self._num_written = self._part + 1, 0
                del self._lines[: len(lines)]

    def _write(self, data: bytes) -> None:
        try:
            self._storage.write(self._url_of(self._part), data)
        except RefusedError as error:  # the place was there when the run began
            raise StorageError(f"no longer to be written: {error}") from error

    def flush_soon(self) -> None:
        """Have the thread write; a failure is a warning."""
        self._thread.submit(self._try_to_flush)

    def close(self) -> None:
        """Write what is left, and end the thread."""
        self._thread.shutdown(cancel_futures=True)
        self._try_to_flush()  # what ends the run is more than what is not written

    def _try_to_flush(self) -> None:
        try:
            self.flush()
        except MixerError as error:
            logger.warning("not written yet: %s", error)


class MetricsLog:
    """What rank 0 measured, a line a step; on storage after at most 30 s."""

    def __init__(self, storage: Storage, run_dir: RunDir, attempt: int) -> None:
        self._lines = RolledLines(storage, lambda part: run_dir.metrics_file(attempt, part))
        self._flushed_at = time.monotonic()

    def add(self, line: Line) -> None:
        """Take one line, to be written when it is time."""
        self._lines.add(line)
        if time.monotonic() - self._flushed_at > FLUSH_S:
            self._lines.flush_soon()
            self._flushed_at = time.monotonic()

    def flush(self) -> None:
        """Have all lines on storage now."""
        self._lines.flush()

    def close(self) -> None:
        """Write what is left."""
        self._lines.close()


class EventLog:
    """What happened to one rank: start, resume, save, bad sample, finish."""

    def __init__(self, storage: Storage, run_dir: RunDir, attempt: int, rank: int) -> None:
        self._lines = RolledLines(storage, lambda part: run_dir.events_file(attempt, rank, part))
        self._rank = rank

    def write(self, event: str, **details: Any) -> None:
        """Record an event, to be written at once."""
        self.add(event, **details)
        self._lines.flush_soon()

    def add(self, event: str, **details: Any) -> None:
        """Record one of many events, to be written with the others."""
        self._lines.add({"event": event, "time": time.time(), "rank": self._rank, **details})

    def flush_soon(self) -> None:
        """Have what was added written."""
        self._lines.flush_soon()

    def close(self) -> None:
        """Write what is left."""
        self._lines.close()


def read_metrics(storage: Storage, run_dir: RunDir) -> list[Line]:
    """A run's metrics by step: of each attempt only what the next one did not do again."""
    return living_lines(
        (read_attempt(storage, run_dir, n).resumed_from, attempt_lines(storage, run_dir, n))
        for n in attempt_numbers(storage, run_dir)
    )


def living_lines(attempts: Iterable[tuple[int, Sequence[Line]]]) -> list[Line]:
    """The same of attempts in their order: the steps each resumed from, and all its lines."""
    kept: dict[int, Line] = {}
    for resumed_from, lines in attempts:
        kept = {step: line for step, line in kept.items() if step <= resumed_from}
        kept.update({line["step"]: line for line in lines})
    return [kept[step] for step in sorted(kept)]


def newest_lines(storage: Storage, run_dir: RunDir, step: int) -> Iterator[Line]:
    """The lines that led to a step, newest first; each file is read when it is come to."""
    files = metrics_files(storage, run_dir)[::-1]
    for attempt in reversed(attempt_numbers(storage, run_dir)):
        resumed_from = read_attempt(storage, run_dir, attempt).resumed_from
        for _, url in (file for file in files if file[0] == attempt and resumed_from < step):
            yield from (line for line in reversed(lines_of(storage, url)) if line["step"] <= step)
        step = min(step, resumed_from)


def read_events(
    storage: Storage, run_dir: RunDir, attempt: int, rank: int | None = None
) -> list[Line]:
    """All events of an attempt, rank by rank, or those of one rank."""
    folder = run_dir.events_folder(attempt)
    is_wanted = _events_of(rank).match
    names = [name for name in storage.names(folder) if is_wanted(name)]
    return [line for name in names for line in lines_of(storage, join(folder, name))]


def _events_of(rank: int | None) -> re.Pattern[str]:
    number = r"\d+" if rank is None else f"{rank:05d}"
    return re.compile(rf"^rank-{number}(-\d+)?\.jsonl$")


def metrics_files(storage: Storage, run_dir: RunDir) -> list[tuple[int, str]]:
    """The metrics files there are, as (attempt, URL), oldest first."""
    names = storage.names(run_dir.metrics)
    matches = [match for match in map(_METRICS_FILE.match, names) if match]
    order = sorted((int(match[1]), int(match[2]), match[0]) for match in matches)
    return [(attempt, join(run_dir.metrics, name)) for attempt, _, name in order]


def attempt_lines(storage: Storage, run_dir: RunDir, attempt: int) -> list[Line]:
    """All metrics of an attempt, also of steps that a later one did again."""
    files = metrics_files(storage, run_dir)
    return [line for number, url in files if number == attempt for line in lines_of(storage, url)]


def lines_of(storage: Storage, url: str) -> list[Line]:
    """Every line of a file; DataError where one is damaged."""
    lines = []
    for number, text in enumerate(storage.read(url).splitlines(), 1):
        try:
            lines.append(json.loads(text))
        except ValueError as error:
            raise DataError(f"{url}, line {number} is damaged: restore the file") from error
    return lines
