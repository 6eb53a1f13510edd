"""Ranged reads: all bytes of the range in one request, and which content they are of.

S3 is asked past s3fs's own methods, which retry out of sight and drop the replies' headers.
"""

import os
from collections.abc import Callable, Coroutine
from typing import Any, NamedTuple

from botocore.exceptions import ClientError as S3Error
from fsspec.asyn import AsyncFileSystem
from fsspec.implementations.http import HTTPFileSystem
from s3fs import S3FileSystem
from s3fs.errors import translate_boto_error

_HTTP_PARTIAL, _HTTP_PAST_END = 206, 416
_S3_PAST_END = "InvalidRange"


class Version(NamedTuple):
    """Tells one content of a file from another."""

    num_bytes: int | None
    """Size of the whole file, where the store says it."""
    tag: str
    """The ETag, or a disk's inode and time of change; empty where nothing is known."""


UNKNOWN = Version(None, "")

Found = tuple[bytes, Version]
"""Of a range that reaches past the end, the bytes up to there."""


def range_reader(fs: AsyncFileSystem) -> Callable[..., Coroutine[Any, Any, Found]]:
    """What reads (fs, path, start, stop) from this kind of file system."""
    if isinstance(fs, S3FileSystem):
        return _from_s3
    return _from_http if isinstance(fs, HTTPFileSystem) else _from_others


def from_disk(path: str, start: int, stop: int) -> Found:
    """Bytes [start, stop) of a local file."""
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


async def size_on_s3(fs: S3FileSystem, path: str) -> int:
    """The size of an object, in bytes."""
    try:
        client, place = await s3_place(fs, path)
        reply = await client.head_object(**place)
    except S3Error as error:
        raise translate_boto_error(error) from error
    return int(reply["ContentLength"])


async def _from_s3(fs: S3FileSystem, path: str, start: int, stop: int) -> Found:
    try:
        client, place = await s3_place(fs, path)
        reply = await client.get_object(**place, Range=f"bytes={start}-{stop - 1}")
        async with reply["Body"] as body:
            data = await body.read()
    except S3Error as error:
        if error.response["Error"]["Code"] == _S3_PAST_END:
            return b"", UNKNOWN
        raise translate_boto_error(error) from error
    return data, _version(reply.get("ContentRange"), reply.get("ETag"))


async def s3_place(fs: S3FileSystem, path: str) -> tuple[Any, dict[str, Any]]:
    """A client, and its arguments that name an object."""
    bucket, key, _ = fs.split_path(path)
    await fs.set_session()
    return await fs.get_s3(bucket), {"Bucket": bucket, "Key": key, **fs.req_kw}


async def _from_http(fs: HTTPFileSystem, url: str, start: int, stop: int) -> Found:
    headers = {**fs.kwargs.get("headers", {}), "Range": f"bytes={start}-{stop - 1}"}
    session = await fs.set_session()
    request = session.get(fs.encode_url(url), **{**fs.kwargs, "headers": headers})
    async with request as reply:
        if reply.status == _HTTP_PAST_END:
            return b"", UNKNOWN
        fs._raise_not_found_for_status(reply, url)
        if reply.status != _HTTP_PARTIAL:
            raise ValueError("its server does not give ranges of a file (HTTP 206)")
        return await reply.read(), _version(
            reply.headers.get("Content-Range"), reply.headers.get("ETag")
        )


async def _from_others(fs: AsyncFileSystem, path: str, start: int, stop: int) -> Found:
    return bytes(await fs._cat_file(path, start=start, end=stop)), UNKNOWN


def _version(content_range: str | None, tag: str | None) -> Version:
    """From a reply's headers, such as `bytes 0-99/1000` and `"d41d8cd9"`."""
    size = (content_range or "").rpartition("/")[2]
    return Version(int(size) if size.isdigit() else None, (tag or "").strip('"'))
