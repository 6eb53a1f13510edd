"""Many tars at once, a thread each, with a bar on a terminal and a line every 30 s elsewhere."""

import argparse
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from queue import Empty, SimpleQueue
from typing import TypeVar

from tqdm import tqdm

from mixer_dist.errors import MixerError

NUM_WORKERS = 8
REPORT_S = 30.0

T = TypeVar("T")
Advance = Callable[[int], None]
"""Called with the number of bytes that have come; raises where the work is to end."""


def add_workers_argument(parser: argparse.ArgumentParser) -> None:
    """Let a tool take how many tars it reads at once."""
    parser.add_argument(
        "--workers",
        type=_positive,
        default=NUM_WORKERS,
        metavar="N",
        help=f"tars at once (default: {NUM_WORKERS})",
    )


def _positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"must be at least 1, got {text}")
    return number


def each_tar(
    work: Callable[[int, Advance], T], num_tars: int, num_workers: int
) -> Iterator[tuple[int, T]]:
    """(number, result) of each tar as it is done; the first error ends the work on the others."""
    progress = _Progress(num_tars)
    done: SimpleQueue[Future[T]] = SimpleQueue()
    with ThreadPoolExecutor(num_workers, thread_name_prefix="tar") as pool:
        try:
            numbers: dict[Future[T], int] = {}
            for number in range(num_tars):
                future = pool.submit(work, number, progress.advance)
                numbers[future] = number
                future.add_done_callback(done.put)
            for _ in range(num_tars):
                future = _next(done, progress)
                result = future.result()
                progress.finish_tar()
                yield numbers[future], result
        finally:
            progress.close()
            pool.shutdown(wait=False, cancel_futures=True)


def _next(done: SimpleQueue[Future[T]], progress: "_Progress") -> Future[T]:
    while True:
        try:
            return done.get(timeout=progress.until_line_s())
        except Empty:
            progress.show_line()


class _Progress:
    """Counts tars and bytes; used by all threads."""

    def __init__(self, num_tars: int) -> None:
        self._bar = tqdm(total=num_tars, unit=" tars", disable=not sys.stderr.isatty())
        self._num_tars = num_tars
        self._num_done = self._num_bytes = 0
        self._began = self._last_line = time.monotonic()
        self._lock = threading.Lock()
        self._is_closed = False

    def advance(self, num_bytes: int) -> None:
        """Count bytes."""
        if self._is_closed:
            raise MixerError("stopped, as another tar failed")
        with self._lock:
            self._num_bytes += num_bytes
            self._bar.set_postfix_str(f"{self._num_bytes / 1e9:,.1f} GB", refresh=False)

    def finish_tar(self) -> None:
        """Count a tar."""
        self._num_done += 1
        self._bar.update()

    def until_line_s(self) -> float:
        """Seconds until a line is due."""
        return max(0.01, self._last_line + REPORT_S - time.monotonic())

    def show_line(self) -> None:
        """Print the state where nobody sees the bar."""
        self._last_line = time.monotonic()
        if self._bar.disable:
            rate = self._num_bytes / 1e6 / (self._last_line - self._began)
            print(
                f"{self._num_done:,} of {self._num_tars:,} tars, {self._num_bytes / 1e9:,.1f} GB, "
                f"{rate:,.0f} MB/s",
                file=sys.stderr,
                flush=True,
            )

    def close(self) -> None:
        """Leave the terminal to others, and have the threads end at their next bytes."""
        self._is_closed = True
        self._bar.close()
