"""One try of a ranged read: all bytes of the range in one request, and which content they are of.

A try may stall or crawl; it then ends by a deadline that its size decides.
"""

import asyncio
import errno
import os
import threading
from collections.abc import Callable, Coroutine
from concurrent.futures import Future, wait
from typing import Any, NamedTuple, TypeVar

from botocore.exceptions import ClientError as S3Error
from fsspec.asyn import AsyncFileSystem
from fsspec.implementations.http import HTTPFileSystem
from fsspec.implementations.local import LocalFileSystem
from s3fs import S3FileSystem
from s3fs.errors import translate_boto_error

STALL_S = 15.0  # for the first byte of a reply, and between two of them
MIN_BYTES_PER_S = 100_000  # a read that is slower is given up, and tried on a new connection

POLL_S = 0.5

T = TypeVar("T")

_HTTP_PARTIAL, _HTTP_PAST_END = 206, 416


class Version(NamedTuple):
    """Tells one content of a file from another."""

    num_bytes: int | None
    """Size of the whole file, where the store says it."""
    tag: str
    """The ETag, or a disk's inode and time of change; empty where nothing is known."""


UNKNOWN = Version(None, "")


def try_range(
    fs: Any, path: str, start: int, stop: int, stopped: threading.Event
) -> tuple[bytes, Version]:
    """Bytes [start, stop) of a file, perhaps fewer; raises whatever the file system raises."""
    if isinstance(fs, LocalFileSystem):
        return _from_disk(path, start, stop)
    if not isinstance(fs, AsyncFileSystem):
        return bytes(fs.cat_file(path, start=start, end=stop)), UNKNOWN
    timeout_s = STALL_S + (stop - start) / MIN_BYTES_PER_S
    reading = asyncio.wait_for(_reader(fs)(fs, path, start, stop), timeout_s)
    return _wait_for(asyncio.run_coroutine_threadsafe(reading, fs.loop), stopped)


def _wait_for(future: Future[T], stopped: threading.Event) -> T:
    """A result from the event loop's thread; TimeoutError when it is no longer wanted."""
    while not wait([future], POLL_S).done:
        if stopped.is_set():
            future.cancel()
            raise TimeoutError("no longer wanted")
    return future.result()


def _reader(fs: AsyncFileSystem) -> Callable[..., Coroutine[Any, Any, tuple[bytes, Version]]]:
    if isinstance(fs, S3FileSystem):
        return _from_s3
    return _from_http if isinstance(fs, HTTPFileSystem) else _from_others


def _from_disk(path: str, start: int, stop: int) -> tuple[bytes, Version]:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        status = os.fstat(descriptor)
        parts = []
        while start < stop and (part := os.pread(descriptor, stop - start, start)):
            parts.append(part)
            start += len(part)
        version = Version(status.st_size, f"{status.st_ino}-{status.st_mtime_ns}")
        return (parts[0] if len(parts) == 1 else b"".join(parts)), version
    finally:
        os.close(descriptor)


async def _from_s3(fs: S3FileSystem, path: str, start: int, stop: int) -> tuple[bytes, Version]:
    """Past s3fs's own reading, which retries out of sight and drops the reply's headers."""
    bucket, key, _ = fs.split_path(path)
    await fs.set_session()
    client = await fs.get_s3(bucket)
    try:
        reply = await client.get_object(
            Bucket=bucket, Key=key, Range=f"bytes={start}-{stop - 1}", **fs.req_kw
        )
        async with reply["Body"] as body:
            data = await body.read()
    except S3Error as error:
        raise translate_boto_error(error) from error
    return data, _version(reply.get("ContentRange"), reply.get("ETag"))


async def _from_http(fs: HTTPFileSystem, url: str, start: int, stop: int) -> tuple[bytes, Version]:
    headers = {**fs.kwargs.get("headers", {}), "Range": f"bytes={start}-{stop - 1}"}
    session = await fs.set_session()
    request = session.get(fs.encode_url(url), **{**fs.kwargs, "headers": headers})
    async with request as reply:
        if reply.status == _HTTP_PAST_END:
            raise OSError(errno.EINVAL, "the range starts past the end")
        fs._raise_not_found_for_status(reply, url)
        if reply.status != _HTTP_PARTIAL:
            raise ValueError("its server does not give ranges of a file (HTTP 206)")
        return await reply.read(), _version(
            reply.headers.get("Content-Range"), reply.headers.get("ETag")
        )


async def _from_others(
    fs: AsyncFileSystem, path: str, start: int, stop: int
) -> tuple[bytes, Version]:
    return bytes(await fs._cat_file(path, start=start, end=stop)), UNKNOWN


def _version(content_range: str | None, tag: str | None) -> Version:
    """From a reply's headers, such as `bytes 0-99/1000` and `"d41d8cd9"`."""
    size = (content_range or "").rpartition("/")[2]
    return Version(int(size) if size.isdigit() else None, (tag or "").strip('"'))
