"""Files on disks and in buckets, the same through fsspec: read, ranged read, list, atomic write."""

import errno
import logging
import os
import random
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import PurePosixPath
from typing import Any, TypeVar

import fsspec
from aiohttp import ClientError
from botocore.exceptions import (
    BotoCoreError,
    ConnectionError,
    CredentialRetrievalError,
    FlexibleChecksumError,
    HTTPClientError,
    NoCredentialsError,
    PartialCredentialsError,
)

from mixer_dist.config import StorageConfig
from mixer_dist.errors import (
    AccessError,
    ConfigError,
    MissingError,
    MixerError,
    RefusedError,
    StorageError,
)

DEADLINE_S = 60.0
FIRST_DELAY_S = 0.2
LONGEST_DELAY_S = 10.0

# What may be over in a moment; every other error of botocore is about the options.
_PASSING = (ConnectionError, HTTPClientError, CredentialRetrievalError, FlexibleChecksumError)
_FINAL_ERRNOS = (errno.EROFS, errno.ENAMETOOLONG, errno.ENOSPC, errno.EDQUOT)
_FINAL_CODES = ("AuthorizationHeaderMalformed", "PermanentRedirect", "InvalidBucketName", "301")

T = TypeVar("T")

logger = logging.getLogger(__name__)


def join(base: str, *names: str) -> str:
    """`base` followed by names; a name that is itself a URL or an absolute path replaces it."""
    for name in names:
        is_whole = "://" in name or name.startswith("/")
        base = name if is_whole else f"{base.rstrip('/')}/{name}"
    return base


def parent(url: str) -> str:
    """The folder a URL lies in."""
    head, slash, _ = url.rpartition("/")
    return head if slash else "."


class Storage:
    """Opens any URL with the options that the configuration gives for its prefix."""

    def __init__(self, options: Mapping[str, StorageConfig] | None = None) -> None:
        self._options = dict(options or {})
        self._s3: dict[StorageConfig, Any] = {}
        self._lock = threading.Lock()

    def __reduce__(self) -> Any:
        """Another process gets the options and connects by itself."""
        return Storage, (self._options,)

    def read(self, url: str) -> bytes:
        """A whole file; MissingError, AccessError, StorageError."""

        def read(fs: Any, path: str) -> bytes:
            data = bytes(fs.cat_file(path))
            size = fs.info(path)["size"]
            if len(data) != size:
                raise OSError(f"expected {size} bytes, got {len(data)}")
            return data

        return self._persist(url, read)

    def read_range(self, url: str, start: int, stop: int) -> bytes:
        """Bytes [start, stop) of a file: all of them, or an error."""

        def read(fs: Any, path: str) -> bytes:
            try:
                data = bytes(fs.cat_file(path, start=start, end=stop))
            except OSError as error:
                if error.errno != errno.EINVAL:  # S3's answer to a range that starts past the end
                    raise
                data = b""
            if len(data) != stop - start:  # a store may end a reply early without an error
                _check_reaches(url, int(fs.info(path)["size"]), stop)
                raise OSError(f"expected {stop - start} bytes from {start}, got {len(data)}")
            return data

        return self._persist(url, read) if stop > start else b""

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
            if _is_local(fs):
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
        if _is_s3(url):
            fs = self._s3_file_system(self._options_for(url))
            return fs, fs._strip_protocol(url)
        fs, path = fsspec.core.url_to_fs(url)
        return fs, path

    def _s3_file_system(self, options: StorageConfig) -> Any:
        """Our own instance: fsspec's shared ones keep the credentials of whoever came first."""
        with self._lock:
            if options not in self._s3:
                self._s3[options] = fsspec.filesystem(
                    "s3", skip_instance_cache=True, **_s3_arguments(options)
                )
            return self._s3[options]

    def _options_for(self, url: str) -> StorageConfig:
        fitting = [prefix for prefix in self._options if url.startswith(prefix)]
        return self._options[max(fitting, key=len)] if fitting else StorageConfig()

    def _persist(self, url: str, operation: Callable[[Any, str], T]) -> T:
        """Run an operation, again after passing failures, until it is done or time is over."""
        give_up = time.monotonic() + DEADLINE_S
        delay_s = FIRST_DELAY_S
        while True:
            try:
                return operation(*self.open(url))
            except (OSError, ClientError, BotoCoreError, ImportError, ValueError) as error:
                if final := _final_error(url, error):
                    raise final from error
                if time.monotonic() + delay_s > give_up:
                    message = f"{url}: {_reason(error)}, for {DEADLINE_S:.0f} s{_hint(url)}"
                    raise StorageError(message) from error
                if delay_s == FIRST_DELAY_S:
                    logger.warning("%s: %s; trying for %.0f s", url, _reason(error), DEADLINE_S)
            time.sleep(delay_s * random.uniform(0.5, 1.5))  # ranks must not come back in step
            delay_s = min(2 * delay_s, LONGEST_DELAY_S)


def _is_s3(url: str) -> bool:
    return url.startswith(("s3://", "s3a://"))


def _is_local(fs: Any) -> bool:
    return "file" in ((fs.protocol,) if isinstance(fs.protocol, str) else fs.protocol)


def _s3_arguments(options: StorageConfig) -> dict[str, Any]:
    """What s3fs takes for our options."""
    style, checksum = options.addressing_style, options.checksum
    config = {"request_checksum_calculation": checksum, "response_checksum_validation": checksum}
    return {
        "endpoint_url": options.endpoint_url,
        "profile": options.profile,
        "client_kwargs": {"region_name": options.region} if options.region else {},
        "config_kwargs": (config if checksum else {})
        | ({"s3": {"addressing_style": style}} if style else {}),
        "use_listings_cache": False,  # another process's checkpoint must be seen at once
        "max_concurrency": 1,  # of several parts, cat_file would fill a short one up with zeros
    }


def _check_reaches(url: str, size: int, stop: int) -> None:
    if size < stop:
        raise StorageError(f"{url} is too short: expected at least {stop} bytes, found {size}")


def _final_error(url: str, error: Exception) -> MixerError | None:
    """What the user is told of an error that trying again would not mend, else None."""
    if isinstance(error, FileNotFoundError):
        return MissingError(f"not there: {url} ({_reason(error)})")
    if isinstance(error, PermissionError | NoCredentialsError | PartialCredentialsError):
        return AccessError(_access_line(url, error))
    if isinstance(error, IsADirectoryError | NotADirectoryError | FileExistsError):
        return ConfigError(f"{url}: a file is where a folder is expected, or a folder for a file")
    is_option = isinstance(error, BotoCoreError) and not isinstance(error, _PASSING)
    if is_option or isinstance(error, ImportError | ValueError):  # no such scheme or endpoint
        return ConfigError(f"cannot open {url!r}: {_reason(error)}")
    return StorageError(f"{url}: {_reason(error)}") if _is_final(error) else None


def _is_final(error: BaseException) -> bool:
    """Whether trying again is pointless."""
    reply = getattr(error.__cause__, "response", None) or {}
    code = reply.get("Error", {}).get("Code")
    return code in _FINAL_CODES or getattr(error, "errno", None) in _FINAL_ERRNOS


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


def _hint(url: str) -> str:
    is_remote = "://" in url
    return "; check the network, storage.*.endpoint_url or AWS_ENDPOINT_URL" if is_remote else ""


def _reason(error: BaseException) -> str:
    """An error in a few words, on one line."""
    return " ".join(str(error).split()) or type(error).__name__


def _access_line(url: str, error: BaseException) -> str:
    if "://" not in url:
        return f"no permission for {url} ({_reason(error)})"
    return (
        f"{url} refuses these credentials ({_reason(error)}): "
        "check AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or storage.*.profile"
    )
