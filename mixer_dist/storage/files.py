"""Storage: opens any URL with its options, and keeps trying until a deadline."""

import copy
import errno
import logging
import os
import random
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import PurePosixPath
from typing import Any, Self, TypeVar

import fsspec
from fsspec.implementations.local import LocalFileSystem
from s3fs import S3FileSystem

from mixer_dist.config import StorageConfig
from mixer_dist.errors import AccessError, MissingError, RefusedError, StorageError
from mixer_dist.storage.failures import FAILURES, final_error, hint, is_errno, reason
from mixer_dist.storage.ranges import UNKNOWN, Version, try_range
from mixer_dist.storage.s3_options import s3_arguments
from mixer_dist.storage.urls import is_s3, join, parent

FIRST_DELAY_S = 0.2
LONGEST_DELAY_S = 10.0

T = TypeVar("T")

logger = logging.getLogger(__name__)


class Storage:
    """Opens any URL with the options that the configuration gives for its prefix."""

    def __init__(self, options: Mapping[str, StorageConfig] | None = None) -> None:
        self._options = dict(options or {})
        self._s3 = _S3Systems()
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

    def read(self, url: str) -> bytes:
        """A whole file; MissingError, AccessError, StorageError."""

        def read(fs: Any, path: str) -> bytes:
            size = int(fs.info(path)["size"])
            data, version = self._try_range(fs, path, 0, size) if size else (b"", UNKNOWN)
            if len(data) != size or version.num_bytes not in (None, size):
                raise OSError(f"expected {size} bytes, got {len(data)} of {version.num_bytes}")
            return data

        return self._persist(url, read)

    def read_range(self, url: str, start: int, stop: int) -> bytes:
        """Bytes [start, stop) of a file: all of them, or an error."""
        return self.read_versioned(url, start, stop)[0] if stop > start else b""

    def read_versioned(self, url: str, start: int, stop: int) -> tuple[bytes, Version]:
        """The same, and which content of the file they are of."""

        def read(fs: Any, path: str) -> tuple[bytes, Version]:
            data, version = self._try_range(fs, path, start, stop)
            if len(data) != stop - start:  # a store may end a reply early without an error
                _check_reaches(url, int(fs.info(path)["size"]), stop)
                raise OSError(f"expected {stop - start} bytes from {start}, got {len(data)}")
            return data, version

        return self._persist(url, read)

    def size(self, url: str) -> int:
        """The size of a file, in bytes."""
        return self._persist(url, lambda fs, path: int(fs.info(path)["size"]))

    def exists(self, url: str) -> bool:
        """Whether a file or folder is there."""
        return self._persist(url, lambda fs, path: bool(fs.exists(path)))

    def names(self, url: str) -> list[str]:
        """Names in a folder, sorted; none where the folder is not there."""

        def read(fs: Any, path: str) -> list[str]:
            return sorted(PurePosixPath(found).name for found in fs.ls(path, detail=False))

        try:
            return self._persist(url, read)
        except MissingError:
            return []

    def write(self, url: str, data: bytes) -> None:
        """Write a file whole or not at all; folders on the way are made."""
        self.write_parts(url, lambda: [data])

    def write_parts(self, url: str, parts: Callable[[], Iterable[Any]]) -> None:
        """Write a file from buffers, whole or not at all; `parts` is called anew for each try."""

        def write(fs: Any, path: str) -> None:
            if isinstance(fs, LocalFileSystem):
                _write_local(fs, path, parts())
            else:
                _write_remote(fs, path, parts())

        self._persist(url, write)

    def delete(self, url: str) -> None:
        """Remove one file."""
        self._persist(url, lambda fs, path: fs.rm_file(path))

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

    def _try_range(self, fs: Any, path: str, start: int, stop: int) -> tuple[bytes, Version]:
        try:
            return try_range(fs, path, start, stop, self._stopped)
        except OSError as error:
            if not is_errno(error, errno.EINVAL):  # S3's answer to a range that starts past the end
                raise
            return b"", UNKNOWN

    def _options_for(self, url: str) -> StorageConfig:
        fitting = [prefix for prefix in self._options if url.startswith(prefix)]
        return self._options[max(fitting, key=len)] if fitting else StorageConfig()

    def _persist(self, url: str, operation: Callable[[Any, str], T]) -> T:
        """Run an operation, again after passing failures, until it is done or time is over."""
        options = self._options_for(url)
        give_up = time.monotonic() + options.deadline_s
        delay_s = FIRST_DELAY_S
        while True:
            try:
                done = operation(*self.open(url))
                self._s3.proved(options)
                return done
            except FAILURES as error:
                self._check_passing(url, options, error)
                if time.monotonic() + delay_s > give_up:
                    message = f"{url}: {reason(error)}, for {options.deadline_s:g} s{hint(url)}"
                    raise StorageError(message) from error
                if delay_s == FIRST_DELAY_S:
                    logger.warning(
                        "%s: %s; trying for %g s", url, reason(error), options.deadline_s
                    )
            # at random, since ranks must not come back in step
            if self._stopped.wait(delay_s * random.uniform(0.5, 1.5)):
                raise StorageError(f"{url}: no longer wanted")
            delay_s = min(2 * delay_s, LONGEST_DELAY_S)

    def _check_passing(self, url: str, options: StorageConfig, error: Exception) -> None:
        """Raise what the user is told, unless another try may go well."""
        final = final_error(url, error)
        if isinstance(final, AccessError) and is_s3(url) and self._s3.renew(options):
            logger.warning("%s: %s; asking for credentials anew", url, reason(error))
        elif final:
            raise final from error


class _S3Systems:
    """One s3fs file system for each set of options.

    Our own: fsspec's shared ones keep the credentials of whoever came first.
    """

    def __init__(self) -> None:
        self._systems: dict[StorageConfig, Any] = {}
        self._proven: set[StorageConfig] = set()
        self._lock = threading.Lock()

    def get(self, options: StorageConfig) -> Any:
        with self._lock:
            if options not in self._systems:
                self._systems[options] = S3FileSystem(
                    skip_instance_cache=True, **s3_arguments(options)
                )
            return self._systems[options]

    def proved(self, options: StorageConfig) -> None:
        """Note that the credentials at hand are right."""
        self._proven.add(options)

    def renew(self, options: StorageConfig) -> bool:
        """Forget credentials that were right before, as they may have been rotated since."""
        with self._lock:
            if options not in self._proven:
                return False
            self._proven.discard(options)
            del self._systems[options]
            return True


def _check_reaches(url: str, size: int, stop: int) -> None:
    if size < stop:
        raise StorageError(f"{url} is too short: expected at least {stop} bytes, found {size}")


def _write_local(fs: Any, path: str, parts: Iterable[Any]) -> None:
    """Under a temporary name, synced, then renamed: a reader sees the old file or the new one."""
    fs.makedirs(parent(path), exist_ok=True)
    folder, _, name = path.rpartition("/")
    temporary = f"{folder}/.{name}.{os.getpid()}-{threading.get_ident()}.tmp"
    try:
        with open(temporary, "wb") as stream:
            for part in parts:
                stream.write(part)
            stream.flush()
            os.fsync(stream.fileno())
        os.replace(temporary, path)
    except BaseException:
        if os.path.exists(temporary):
            os.unlink(temporary)
        raise


def _write_remote(fs: Any, path: str, parts: Iterable[Any]) -> None:
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
