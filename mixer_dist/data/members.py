"""What the span of one sample in a tar holds: its key, its image and its label."""

import json
import tarfile

from mixer_dist.errors import MixerError

IMAGE_TYPES = ("jpg", "jpeg", "png", "webp")
READ_TYPES = (*IMAGE_TYPES, "cls", "json", "txt")

_BLOCK = 512


class BadSampleError(MixerError):
    """A sample cannot be used; it is counted, named and replaced."""


def read_members(span: bytes) -> dict[str, bytes | str]:
    """A webdataset sample: `__key__` and the content of each member by its type.

    The tar's end-of-file marks play no part: the index says where a sample begins and ends.
    """
    sample: dict[str, bytes | str] = {}
    for name, content in _files(span):
        folder, slash, base = name.rpartition("/")
        stem, _, kind = base.partition(".")
        if kind.lower() not in READ_TYPES:
            raise BadSampleError(f"{name}: a member of type .{kind} is never read")
        sample["__key__"] = folder + slash + stem
        sample[kind.lower()] = content
    if not sample:
        raise BadSampleError("its span of the tar holds no file")
    return sample


def _files(span: bytes) -> list[tuple[str, bytes]]:
    """Name and content of each file; a long or non-ASCII name comes in a PAX header before it."""
    files: list[tuple[str, bytes]] = []
    at, long_name = 0, ""
    while at < len(span):
        header = _header(span[at : at + _BLOCK])
        start = at + _BLOCK
        content = span[start : start + header.size]
        if len(content) < header.size:
            raise BadSampleError(f"{header.name}: cut off by the end of the sample's span")
        if header.type == tarfile.XHDTYPE:
            long_name = _pax_path(content)
        elif header.isfile():
            files.append((long_name or header.name, content))
            long_name = ""
        at = start + -(-header.size // _BLOCK) * _BLOCK
    return files


def _header(block: bytes) -> tarfile.TarInfo:
    try:
        return tarfile.TarInfo.frombuf(block, "utf-8", "surrogateescape")
    except tarfile.HeaderError as error:
        raise BadSampleError(f"damaged tar header: {error}") from error


def _pax_path(content: bytes) -> str:
    """The path in a PAX record such as `27 path=train/0001.jpg\\n`."""
    try:
        while content:
            digits, record = content.split(b" ", 1)
            length = int(digits) - len(digits) - 1
            if length < 1:
                raise ValueError(f"a record of {length} bytes")
            name, _, value = record[:length].rstrip(b"\n").partition(b"=")
            if name == b"path":
                return value.decode("utf-8")
            content = record[length:]
    except ValueError as error:
        raise BadSampleError(f"damaged PAX header: {error}") from error
    return ""


def image_of(sample: dict[str, bytes | str]) -> bytes:
    """The sample's compressed image."""
    for kind in IMAGE_TYPES:
        if kind in sample:
            content = sample[kind]
            assert isinstance(content, bytes)
            return content
    raise BadSampleError(f"no image among its members; expected one of {', '.join(IMAGE_TYPES)}")


def labels_of(sample: dict[str, bytes | str]) -> list[int]:
    """The sample's classes: the number in `cls`, or the list `labels` in `json`."""
    try:
        if "cls" in sample:
            return [int(sample["cls"])]
        return [int(label) for label in json.loads(sample["json"])["labels"]]
    except (KeyError, TypeError, ValueError) as error:
        raise BadSampleError("no label: expected a number in .cls or labels in .json") from error
