"""Logging: rank 0 on standard output, the other ranks only when something is wrong."""

import logging
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass

from mixer_dist import distributed
from mixer_dist.errors import redacted

PER_MINUTE = 10
WINDOW_S = 60.0


def start_logging(*, output_is_data: bool = False) -> None:
    """Log from now on, each line with its time and, off rank 0, its rank.

    Where standard output is data, such as JSON, all lines go to standard error.
    """
    rank = distributed.rank()
    where = f"[rank {rank}] " if rank else ""
    handler = logging.StreamHandler(sys.stderr if rank or output_is_data else sys.stdout)
    handler.setFormatter(logging.Formatter(f"%(asctime)s {where}%(message)s", "%H:%M:%S"))
    handler.addFilter(RateLimit())
    handler.addFilter(_redact)
    logger = logging.getLogger("mixer_dist")
    logger.handlers = [handler]
    logger.setLevel(logging.WARNING if rank else logging.INFO)
    logger.propagate = False


@dataclass
class _Window:
    """A minute of one message."""

    began: float
    num: int = 0


class RateLimit(logging.Filter):
    """Passes a message, whatever its arguments are, a few times a minute; errors always."""

    def __init__(
        self, per_minute: int = PER_MINUTE, clock: Callable[[], float] = time.monotonic
    ) -> None:
        super().__init__()
        self._per_minute = per_minute
        self._clock = clock
        self._windows: dict[str, _Window] = {}
        self._lock = threading.Lock()

    def filter(self, record: logging.LogRecord) -> bool:
        """Whether it is shown; the last of its minute and the next one say what is missing."""
        if record.levelno >= logging.ERROR:
            return True
        with self._lock:
            num_before, num = self._count(str(record.msg))
        notes = [f" ({num_before:,} such lines were left out)"] if num_before else []
        if num == self._per_minute:
            notes.append(" (further such lines are left out for a minute)")
        if notes:
            record.msg, record.args = record.getMessage() + "".join(notes), ()
        return num <= self._per_minute

    def _count(self, message: str) -> tuple[int, int]:
        """How many were left out in a minute that is over now, and the number in this one."""
        now, num_before = self._clock(), 0
        window = self._windows.get(message)
        if window is None or now - window.began >= WINDOW_S:
            num_before = self._num_left_out(window)
            self._forget(now)
            window = self._windows[message] = _Window(now)
        window.num += 1
        return num_before, window.num

    def _num_left_out(self, window: _Window | None) -> int:
        return max(0, window.num - self._per_minute) if window else 0

    def _forget(self, now: float) -> None:
        """Messages that will not be heard of again must not fill the memory."""
        self._windows = {
            message: window
            for message, window in self._windows.items()
            if now - window.began < WINDOW_S or self._num_left_out(window)
        }


def _redact(record: logging.LogRecord) -> bool:
    record.msg, record.args = redacted(record.getMessage()), ()
    return True
