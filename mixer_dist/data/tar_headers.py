"""The files in a tar or a part of one, by their ustar, PAX and GNU headers, each one checked."""

from collections.abc import Callable, Iterator
from typing import NamedTuple

BLOCK = 512
MAX_EXTENSION_BYTES = 2**20  # of a PAX or long-name header; real ones take a block or two

Read = Callable[[int, int], bytes]
"""Bytes [start, stop), fewer where the tar ends before `stop`."""

_PAX_TYPES = (b"x", b"X")
_LONG_NAME, _LONG_LINK = b"L", b"K"
_EXTENSIONS = (*_PAX_TYPES, _LONG_NAME, _LONG_LINK)
_FILE_TYPES = (b"0", b"\0", b"7")
_FOLDER, _GLOBAL_PAX, _VOLUME = b"5", b"g", b"V"
_REFUSED = {
    b"1": "a hard link", b"2": "a symbolic link", b"3": "a device", b"4": "a device",
    b"6": "a named pipe", b"S": "a sparse file", b"M": "a part of a file",
}  # fmt: skip


class TarError(ValueError):
    """A tar is damaged, or holds what has no place in a data shard."""


class Member(NamedTuple):
    """A plain file in a tar; offsets in bytes."""

    name: str
    begin: int
    """Of its first header: PAX and long-name headers come before its own."""
    start: int
    """Of its content."""
    num_bytes: int

    @property
    def stop(self) -> int:
        """Where its content ends."""
        return self.start + self.num_bytes

    @property
    def end(self) -> int:
        """Where its last block ends."""
        return self.start + -(-self.num_bytes // BLOCK) * BLOCK


def read_headers(
    read: Read, begin: int, end: int, *, has_end_mark: bool = False
) -> Iterator[Member]:
    """Each plain file in the bytes [begin, end) of a tar, links and the like refused; TarError.

    With `has_end_mark` a zero block must close it, as it closes every tar that was not cut off.
    """
    at = begin
    extended: dict[str, str] = {}
    while at < end:
        block = read(at, at + BLOCK)
        if len(block) < BLOCK:
            raise TarError(f"cut off: the header at byte {at} is not whole")
        if has_end_mark and not any(block):
            _check_rest(read, at, end)
            return
        kind, member = _header(block, at, begin, extended)
        if member.stop > end:
            raise TarError(f"{member.name}: cut off: it should end at {member.stop}, not at {end}")
        at = member.end
        if kind in _EXTENSIONS:
            extended |= _extension(kind, member, read)
            continue
        if _is_file(kind, member.name):
            yield member
        begin, extended = at, {}
    if has_end_mark or extended:
        raise TarError(f"cut off: it ends at byte {end} without an end mark")


def _header(block: bytes, at: int, begin: int, extended: dict[str, str]) -> tuple[bytes, Member]:
    """The type and the place of what a header announces, by the extensions before it."""
    name, kind, num_bytes = _parse(block, at)
    if kind not in _EXTENSIONS:
        name = extended.get("path") or name
        num_bytes = int(extended.get("size") or num_bytes)
    if kind in _FILE_TYPES and name.endswith("/"):  # as old tars mark folders
        kind = _FOLDER
    if kind in (_FOLDER, _VOLUME):  # a size is then no content
        num_bytes = 0
    return kind, Member(name, begin, at + BLOCK, num_bytes)


def _parse(block: bytes, at: int) -> tuple[str, bytes, int]:
    """(name, type, size of the content) of a header, in a third of the time that tarfile takes."""
    try:
        unsummed = block[148:156]  # the checksum itself, taken as spaces in the sum
        expected = sum(block) - sum(unsummed) + 8 * 0x20
        if int(unsummed.strip(b"\0 "), 8) != expected:
            raise ValueError("wrong checksum")
        num_bytes = _number(block[124:136])
    except ValueError as error:
        raise TarError(f"damaged tar header at byte {at}") from error
    name = _text(block[:100])
    if block[345] and block[257:263] == b"ustar\0":  # GNU's own format has times there
        name = f"{_text(block[345:500])}/{name}"
    return name, block[156:157], num_bytes


def _is_file(kind: bytes, name: str) -> bool:
    """Whether it is a plain file and no folder; TarError for a link, a device and a bad name."""
    if kind not in _FILE_TYPES:
        if kind in (_FOLDER, _GLOBAL_PAX, _VOLUME):
            return False
        what = _REFUSED.get(kind, f"of the unknown type {kind!r}")
        raise TarError(f"{name}: {what}; expected plain files only")
    if name.startswith("/") or ".." in name.split("/"):
        raise TarError(f"{name}: an absolute name, or one that leaves the folder")
    return True


def _number(field: bytes) -> int:
    """Octal digits or, where these do not suffice, big-endian after a first bit that is set."""
    if field[0] & 0x80:
        return int.from_bytes(bytes([field[0] & 0x7F]) + field[1:], "big")
    number = int(field.strip(b"\0 ") or b"0", 8)
    if number < 0:
        raise ValueError("a negative size")
    return number


def _text(field: bytes) -> str:
    return field.split(b"\0", 1)[0].decode("utf-8", "surrogateescape")


def _extension(kind: bytes, header: Member, read: Read) -> dict[str, str]:
    """What a PAX or GNU header says of the member that follows it."""
    if header.num_bytes > MAX_EXTENSION_BYTES:
        raise TarError(f"damaged PAX header: {header.num_bytes} bytes")
    content = read(header.start, header.stop)
    if kind in _PAX_TYPES:
        return _pax_records(content)
    return {"path": _text(content)} if kind == _LONG_NAME else {}


def _pax_records(content: bytes) -> dict[str, str]:
    """The path and the size in records such as `27 path=train/0001.jpg\\n`."""
    records = {}
    try:
        while content:
            digits = content[: content.index(b" ")]
            length = int(digits)
            if not len(digits) + 3 <= length <= len(content) or content[length - 1] != 0x0A:
                raise ValueError(f"a record of {length} bytes")
            name, _, value = content[len(digits) + 1 : length - 1].partition(b"=")
            if name in (b"path", b"size"):
                records[name.decode()] = value.decode()
            elif name.startswith(b"GNU.sparse."):
                raise ValueError("it describes a sparse file")
            content = content[length:]
        if int(records.get("size") or 0) < 0:
            raise ValueError("a negative size")
    except ValueError as error:
        raise TarError(f"damaged PAX header: {error}") from error
    return records


def _check_rest(read: Read, at: int, end: int) -> None:
    """After the end mark nothing may come: a tar of zeros would otherwise hide its samples."""
    while at < end:
        rest = read(at, at + MAX_EXTENSION_BYTES)
        if rest.strip(b"\0"):
            raise TarError(f"data after its end mark, from byte {at} on; expected one tar a file")
        at += len(rest)
