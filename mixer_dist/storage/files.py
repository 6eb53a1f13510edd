"""Storage: opens any URL with its options, and keeps trying until a deadline."""

import copy
import logging
import os
import random
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from pathlib import PurePosixPath
from typing import Any, Self, TypeVar

import fsspec
from fsspec.implementations.local import LocalFileSystem

from mixer_dist.config import StorageConfig
from mixer_dist.errors import AccessError, MissingError, RefusedError, StorageError
from mixer_dist.storage.disk import write_to_disk
from mixer_dist.storage.failures import FAILURES, final_error, hint, reason
from mixer_dist.storage.partial_writes import PartialWrite
from mixer_dist.storage.ranges import UNKNOWN, Version
from mixer_dist.storage.requests import Request
from mixer_dist.storage.s3_systems import S3Systems
from mixer_dist.storage.urls import is_s3, join

FIRST_DELAY_S = 0.2
LONGEST_DELAY_S = 10.0

T = TypeVar("T")

logger = logging.getLogger(__name__)


class Storage:
    """Opens any URL with the options that the configuration gives for its prefix."""

    def __init__(self, options: Mapping[str, StorageConfig] | None = None) -> None:
        self._options = dict(options or {})
        self._s3 = S3Systems()
        self._stopped = threading.Event()

    def __reduce__(self) -> Any:
        """Another process gets the options and connects by itself."""
        return Storage, (self._options,)

    def twin(self) -> Self:
        """The same places over the same connections, to be stopped alone."""
        other = copy.copy(self)
        other._stopped = threading.Event()
        return other

    def stop(self) -> None:
        """End what waits, in any thread: reads under way and further tries."""
        self._stopped.set()

    def read(self, url: str, num_bytes: int | None = None) -> bytes:
        """A whole file; MissingError, AccessError, StorageError.

        Where its size is known beforehand, nobody has to ask for it.
        """

        def read(request: Request) -> bytes:
            data = None if num_bytes is None else _whole(request, num_bytes)
            if data is None:
                data = _whole(request, request.size())
            if data is None:
                raise OSError("cut off, or changed while it was read")
            return data

        return self._persist(url, read)

    def read_range(self, url: str, start: int, stop: int) -> bytes:
        """Bytes [start, stop) of a file: all of them, or an error."""
        return self.read_versioned(url, start, stop)[0] if stop > start else b""

    def read_versioned(self, url: str, start: int, stop: int) -> tuple[bytes, Version]:
        """The same, and which content of the file they are of."""

        def read(request: Request) -> tuple[bytes, Version]:
            data, version = request.read(start, stop)
            if len(data) != stop - start:  # a store may end a reply early without an error
                _check_reaches(url, request.size(), stop)
                raise OSError(f"expected {stop - start} bytes from {start}, got {len(data)}")
            return data, version

        return self._persist(url, read)

    def size(self, url: str) -> int:
        """The size of a file, in bytes."""
        return self._persist(url, Request.size)

    def exists(self, url: str) -> bool:
        """Whether a file or folder is there."""
        return self._persist(url, lambda request: bool(request.ask("exists")))

    def names(self, url: str) -> list[str]:
        """Names in a folder, sorted; none where the folder is not there."""

        def read(request: Request) -> list[str]:
            return sorted(PurePosixPath(found).name for found in request.ask("ls", detail=False))

        try:
            return self._persist(url, read)
        except MissingError:
            return []

    def write(self, url: str, data: bytes) -> None:
        """Write a file whole or not at all; folders on the way are made."""
        self.write_parts(url, lambda: [data])

    def write_parts(self, url: str, parts: Callable[[], Iterable[Any]]) -> None:
        """Write a file from buffers, whole or not at all; `parts` is called anew for each try."""

        def write(request: Request) -> None:
            if isinstance(request.fs, LocalFileSystem):
                write_to_disk(request.path, self._while_wanted(parts()))
            else:
                _upload(request.fs, request.path, self._while_wanted(parts()))

        self._persist(url, write)

    def modified(self, url: str) -> float:
        """When a file was written, in seconds since 1970 by the clock of the disk or store."""

        def read(request: Request) -> float:
            info = request.ask("info")
            return float(info["mtime"] if "mtime" in info else info["LastModified"].timestamp())

        return self._persist(url, read)

    def _while_wanted(self, parts: Iterable[Any]) -> Iterator[Any]:
        for part in parts:
            if self._stopped.is_set():
                raise StorageError("no longer wanted")
            yield part

    def delete(self, url: str) -> None:
        """Remove one file; an earlier try or another process may have been faster."""
        with suppress(MissingError):
            self._persist(url, lambda request: request.ask("rm_file"))

    def delete_folder(self, url: str) -> None:
        """Remove a folder if it is empty; in a bucket a folder is gone with its last file."""
        fs, path = self._connect(url)
        if isinstance(fs, LocalFileSystem):
            with suppress(OSError):  # not empty, or not there
                os.rmdir(path)

    def partial_writes(self, url: str) -> list[PartialWrite]:
        """What unfinished writes have left below a folder; the youngest may be under way."""
        try:
            return self._persist(url, Request.partial_writes)
        except MissingError:
            return []

    def discard(self, partial: PartialWrite) -> None:
        """Remove what an unfinished write has left."""
        with suppress(MissingError):
            self._persist(partial.url, lambda request: request.discard(partial))

    def check_writable(self, url: str) -> None:
        """Write and remove a small file in a folder, so that a run fails now, not hours later."""
        probe = join(url, f".probe-{os.getpid()}-{random.getrandbits(32):08x}")
        try:
            self.write(probe, b"mixer_dist")
            self.delete(probe)
        except MissingError as error:
            raise MissingError(f"cannot write in {url}: {error.__cause__ or error}") from error
        except StorageError as error:
            raise RefusedError(f"cannot write in {url}: {error.__cause__ or error}") from error

    def open(self, url: str) -> tuple[Any, str]:
        """The fsspec file system of a URL, and the path in it."""
        if is_s3(url):
            fs = self._s3.get(self._options_for(url))
            return fs, fs._strip_protocol(url)
        fs, path = fsspec.core.url_to_fs(url)
        return fs, path

    def _options_for(self, url: str) -> StorageConfig:
        fitting = [prefix for prefix in self._options if url.startswith(prefix)]
        return self._options[max(fitting, key=len)] if fitting else StorageConfig()

    def _persist(self, url: str, operation: Callable[[Request], T]) -> T:
        """Run an operation, again after passing failures, until it is done or time is over."""
        options = self._options_for(url)
        give_up = time.monotonic() + options.deadline_s
        delay_s = FIRST_DELAY_S
        while not self._stopped.is_set():
            fs, path = self._connect(url)
            try:
                done = operation(Request(fs, path, options.deadline_s, self._stopped))
                self._s3.proved(options, fs)
                return done
            except FAILURES as error:
                self._check_passing(url, fs, error)
                remaining_s = give_up - time.monotonic()
                if remaining_s <= 0:
                    message = f"{url}: {reason(error)}, for {options.deadline_s:g} s{hint(url)}"
                    raise final_error(url, error) or StorageError(message) from error
                if delay_s == FIRST_DELAY_S:
                    logger.warning(
                        "%s: %s; trying for %g s", url, reason(error), options.deadline_s
                    )
            # at random, since ranks must not come back in step
            self._stopped.wait(min(delay_s * random.uniform(0.5, 1.5), remaining_s))
            delay_s = min(2 * delay_s, LONGEST_DELAY_S)
        raise StorageError(f"{url}: no longer wanted")

    def _connect(self, url: str) -> tuple[Any, str]:
        try:
            return self.open(url)
        except FAILURES as error:  # no request is made yet, so that none could go better later
            raise final_error(url, error) or StorageError(f"{url}: {reason(error)}") from error

    def _check_passing(self, url: str, fs: Any, error: Exception) -> None:
        """Raise what the user is told, unless another try may go well."""
        final = final_error(url, error)
        is_refused = isinstance(final, AccessError) and is_s3(url)
        if is_refused and self._s3.renew(self._options_for(url), fs):
            logger.warning("%s: %s; asking for credentials anew", url, reason(error))
        elif final:
            raise final from error


def _whole(request: Request, num_bytes: int) -> bytes | None:
    """A file's content, if it has just so many bytes."""
    data, version = request.read(0, num_bytes) if num_bytes else (b"", UNKNOWN)
    is_whole = len(data) == num_bytes and version.num_bytes in (None, num_bytes)
    return data if is_whole else None


def _check_reaches(url: str, size: int, stop: int) -> None:
    if size < stop:
        raise StorageError(f"{url} is too short: expected at least {stop} bytes, found {size}")


def _upload(fs: Any, path: str, parts: Iterable[Any]) -> None:
    """One upload, multipart where it is large; it appears when it is complete."""
    stream = fs.open(path, "wb")
    try:
        for part in parts:
            stream.write(part)
        stream.close()
    except BaseException:
        stream.discard()
        stream.closed = True  # else the garbage collector closes it, which completes the upload
        raise
