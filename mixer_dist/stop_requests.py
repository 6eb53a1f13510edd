"""Requests to stop, from a scheduler that preempts or a time limit that nears: noted, not obeyed.

Python's own reaction would end the process between two arbitrary instructions.
"""

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

from mixer_dist.errors import PreemptedError

SIGNALS = (signal.SIGUSR2, signal.SIGTERM)


class StopRequests:
    """Counts SIGUSR2 and SIGTERM while it is entered, in the main thread.

    Slurm sends SIGTERM beside SIGUSR2 and more than once: it makes no second request.
    """

    def __init__(self, until: int | None = None) -> None:
        """`until` is a step after which all ranks stop without any signal."""
        self.until = until
        self.count = 0
        self.is_urgent = False
        """Whether SIGUSR2 came twice: what is under way is to be dropped."""
        self.last = ""
        """Name of the last signal."""
        self._has_usr2 = False
        self._before: dict[int, Any] = {}

    def __enter__(self) -> "StopRequests":
        self._before = {number: signal.signal(number, self._note) for number in SIGNALS}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    @property
    def cause(self) -> str:
        """Why training stops, as far as this rank knows."""
        if self.last:
            return f"by {self.last}"
        return "by a signal to another rank" if self.until is None else f"by --until {self.until}"

    def _note(self, number: int, _frame: FrameType | None) -> None:
        self.is_urgent |= number == signal.SIGUSR2 and self._has_usr2
        self._has_usr2 |= number == signal.SIGUSR2
        self.count += 1
        self.last = signal.Signals(number).name


@contextmanager
def ended_on_request() -> Iterator[None]:
    """Have the first SIGUSR2 or SIGTERM raise PreemptedError, for work that may end anywhere.

    Further ones do not disturb what is cleaned up.
    """

    def end(number: int, _frame: FrameType | None) -> None:
        for each in SIGNALS:
            signal.signal(each, signal.SIG_IGN)
        raise PreemptedError(f"stopped by {signal.Signals(number).name}: the same command goes on")

    before = {number: signal.signal(number, end) for number in SIGNALS}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
