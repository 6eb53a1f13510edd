"""One try of something on a file: it ends in time, and at once when nobody wants it any more.

A reply may stall, or crawl: a limit on a read follows from its size.
"""

import asyncio
import threading
from collections.abc import Coroutine
from concurrent.futures import wait
from dataclasses import dataclass
from typing import Any, TypeVar

from fsspec.asyn import AsyncFileSystem
from fsspec.implementations.local import LocalFileSystem
from s3fs import S3FileSystem

from mixer_dist.errors import StorageError
from mixer_dist.storage.disk import partial_writes_on_disk
from mixer_dist.storage.partial_writes import PartialWrite
from mixer_dist.storage.ranges import UNKNOWN, Found, from_disk, range_reader, size_on_s3
from mixer_dist.storage.uploads import abort_on_s3, uploads_on_s3

LONGEST_STALL_S = 15.0
MIN_BYTES_PER_S = 100_000  # a read that is slower is given up, and tried on a new connection

POLL_S = 0.1

T = TypeVar("T")


def stall_limit_s(deadline_s: float) -> float:
    """How long a reply may take to begin: within its deadline a stalled read is tried again."""
    return min(LONGEST_STALL_S, deadline_s / 4)


@dataclass(frozen=True)
class Request:
    """A path in a file system, and for how long it may be waited for."""

    fs: Any
    path: str
    deadline_s: float
    stopped: threading.Event

    def size(self) -> int:
        """The size of the file, in bytes."""
        if isinstance(self.fs, S3FileSystem):
            return self._wait(size_on_s3(self.fs, self.path), stall_limit_s(self.deadline_s))
        return int(self.ask("info")["size"])

    def read(self, start: int, stop: int) -> Found:
        """Bytes [start, stop) of the file, perhaps fewer."""
        if isinstance(self.fs, LocalFileSystem):
            return from_disk(self.path, start, stop)
        if not isinstance(self.fs, AsyncFileSystem):
            return bytes(self.fs.cat_file(self.path, start=start, end=stop)), UNKNOWN
        limit_s = stall_limit_s(self.deadline_s) + (stop - start) / MIN_BYTES_PER_S
        return self._wait(range_reader(self.fs)(self.fs, self.path, start, stop), limit_s)

    def ask(self, method: str, **arguments: Any) -> Any:
        """What a method of the file system says of the path, perhaps in several requests."""
        if not isinstance(self.fs, AsyncFileSystem):
            return getattr(self.fs, method)(self.path, **arguments)
        answering = getattr(self.fs, f"_{method}")(self.path, **arguments)
        return self._wait(answering, self.deadline_s)

    def partial_writes(self) -> list[PartialWrite]:
        """What unfinished writes have left below the path."""
        if isinstance(self.fs, LocalFileSystem):
            return list(partial_writes_on_disk(self.path))
        if isinstance(self.fs, S3FileSystem):
            return self._wait(uploads_on_s3(self.fs, self.path), self.deadline_s)
        return []

    def discard(self, partial: PartialWrite) -> None:
        """Remove what an unfinished write to the path has left."""
        if partial.upload_id:
            self._wait(abort_on_s3(self.fs, self.path, partial.upload_id), self.deadline_s)
        else:
            self.ask("rm_file")

    def _wait(self, answering: Coroutine[Any, Any, T], limit_s: float) -> T:
        """A result from the event loop's thread; StorageError when it is no longer wanted."""
        timed = asyncio.wait_for(answering, limit_s)
        future = asyncio.run_coroutine_threadsafe(timed, self.fs.loop)
        try:
            while not wait([future], POLL_S).done:
                if self.stopped.is_set():
                    raise StorageError(f"{self.path}: no longer wanted")
            return future.result()
        except TimeoutError as error:
            raise TimeoutError(f"not answered within {limit_s:.3g} s") from error
        finally:
            future.cancel()  # what nobody waits for any more, after Ctrl-C too
