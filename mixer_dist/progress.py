"""How far a long job is: a bar on a terminal, elsewhere a line every 30 seconds."""

import sys
import time
from collections.abc import Iterable, Iterator
from contextlib import closing
from typing import TypeVar

from tqdm import tqdm

REPORT_S = 30.0

T = TypeVar("T")


class Progress:
    """Counts towards a total, None where nobody knows it; to be closed at the end."""

    def __init__(self, total: int | None, unit: str = "images", *, is_shown: bool = True) -> None:
        is_terminal = sys.stderr.isatty()
        self._bar = tqdm(
            total=total,
            unit=f" {unit}",
            unit_scale=unit == "bytes",
            disable=not (is_terminal and is_shown),
            leave=False,
        )
        self._total = total
        self._unit = unit
        self._is_shown = is_shown
        self._done = self._num_before = 0
        self._began = self._last_line = time.monotonic()

    def add(self, count: int) -> None:
        """Count what was done."""
        self._done += count
        self._bar.update(count)

    def skip(self, count: int) -> None:
        """Count what an earlier run has done, which tells nothing of the rate."""
        self._num_before += count
        self.add(count)

    def until_line_s(self) -> float:
        """Seconds until a line is due."""
        return max(0.0, self._last_line + REPORT_S - time.monotonic())

    def show_line(self) -> None:
        """Print the state, when that is due and nobody sees the bar."""
        if self.until_line_s() > 0 or not self._is_shown:
            return
        self._last_line = time.monotonic()
        if self._bar.disable:
            rate = (self._done - self._num_before) / (self._last_line - self._began)
            of_total = "" if self._total is None else f" of {self._total:,}"
            line = f"{self._done:,}{of_total} {self._unit}, {rate:,.0f} {self._unit}/s"
            print(line, file=sys.stderr, flush=True)

    def close(self) -> None:
        """Leave the terminal to others."""
        self._bar.close()


def watch(items: Iterable[T], total: int | None, unit: str) -> Iterator[T]:
    """The items, counted as they go by."""
    with closing(Progress(total, unit)) as progress:
        for item in items:
            progress.add(1)
            progress.show_line()
            yield item


def say(line: str) -> None:
    """Print a line on stderr, past any bar."""
    tqdm.write(line, file=sys.stderr)
