"""The samples in a tar that anyone may have written: neighbouring files of one key, as spans."""

import hashlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import groupby
from typing import NamedTuple, Protocol

from zlib_ng.zlib_ng import crc32

from mixer_dist.data.members import LABEL_TYPES, split_name
from mixer_dist.data.tar_headers import Member, TarError, read_headers
from mixer_dist.storage import Storage

READ_BYTES = 8 * 2**20  # a request of a tar that is read whole
JUMP_BYTES = 8 * 2**10  # a request for headers only: with them comes a label, behind its header
MAX_SAMPLE_BYTES = 2**31  # an index row holds 32 bits, and a sample passes through memory


class TarReader(Protocol):
    """A tar whose bytes are asked for in ascending order."""

    num_bytes: int

    def read(self, start: int, stop: int) -> bytes:
        """Bytes [start, stop), fewer at the tar's end."""
        ...

    def crc32(self, start: int, stop: int) -> int:
        """Of bytes [start, stop), 0 where they are not read."""
        ...

    def forget(self, stop: int) -> None:
        """Nothing before `stop` will be asked for again."""

    def sha256(self) -> str | None:
        """Of the whole tar, None where it is not read."""
        ...


class WholeTar:
    """Reads every byte once, in large requests; `advance` is told how many came."""

    def __init__(
        self, storage: Storage, url: str, num_bytes: int, advance: Callable[[int], None]
    ) -> None:
        self.num_bytes = num_bytes
        self._storage = storage
        self._url = url
        self._advance = advance
        self._held = bytearray()
        self._begin = 0  # of the bytes held
        self._hash = hashlib.sha256()

    def read(self, start: int, stop: int) -> bytes:
        """Bytes [start, stop), fewer at the tar's end."""
        while self._begin + len(self._held) < min(stop, self.num_bytes):
            self._read_on()
        return bytes(self._held[start - self._begin : stop - self._begin])

    def crc32(self, start: int, stop: int) -> int:
        """Of bytes [start, stop)."""
        return crc32(self.read(start, stop))

    def forget(self, stop: int) -> None:
        """Free what lies before `stop`."""
        del self._held[: stop - self._begin]
        self._begin = stop

    def sha256(self) -> str:
        """Of the whole tar, whose rest is read for it."""
        while self._begin + len(self._held) < self.num_bytes:
            self.forget(self._begin + len(self._held))
            self._read_on()
        return self._hash.hexdigest()

    def _read_on(self) -> None:
        at = self._begin + len(self._held)
        data = self._storage.read_range(self._url, at, min(at + READ_BYTES, self.num_bytes))
        self._hash.update(data)
        self._held += data
        self._advance(len(data))


class TarHeaders:
    """Reads what is asked for and a little more, jumping over images."""

    def __init__(
        self, storage: Storage, url: str, num_bytes: int, advance: Callable[[int], None]
    ) -> None:
        self.num_bytes = num_bytes
        self._storage = storage
        self._url = url
        self._advance = advance
        self._held = b""
        self._begin = 0

    def read(self, start: int, stop: int) -> bytes:
        """Bytes [start, stop), fewer at the tar's end."""
        stop = min(stop, self.num_bytes)
        if not self._begin <= start <= stop <= self._begin + len(self._held):
            end = min(max(stop, start + JUMP_BYTES), self.num_bytes)
            self._held = self._storage.read_range(self._url, start, end)
            self._begin = start
            self._advance(len(self._held))
        return self._held[start - self._begin : stop - self._begin]

    def crc32(self, start: int, stop: int) -> int:
        """0: unchecked."""
        return 0

    def forget(self, stop: int) -> None:
        """Nothing is kept anyway."""

    def sha256(self) -> None:
        """None: not known."""


class TarSample(NamedTuple):
    """Where a sample lies: from its first header to the last block of its last member."""

    key: str
    begin: int
    end: int
    members: dict[str, Member]
    """By their types."""
    labels: dict[str, bytes | str]
    """What of a webdataset sample `labels_of` may look at."""


def tar_samples(tar: TarReader) -> Iterator[TarSample]:
    """Every sample of a tar in its order; TarError where the tar cannot be trusted.

    Files without a type, hidden files and folders belong to no sample; those between two samples
    lie outside their spans.
    """
    seen: set[str] = set()
    headers = read_headers(tar.read, 0, tar.num_bytes, has_end_mark=True)
    for key, group in groupby(_files(tar, headers), key=lambda file: file.key):
        if key in seen:
            raise TarError(
                f"{key}: its files are not side by side, or two samples have this key; "
                "tar --sort=name puts them side by side"
            )
        seen.add(key)
        yield _sample(list(group))


def read_key(tar: TarReader, begin: int, end: int) -> str:
    """The key of a sample, from the first of its headers; TarError."""
    for file in _files(tar, read_headers(tar.read, begin, end)):
        return file.key
    raise TarError(f"no file of a sample from byte {begin} to {end}")


def sample_at(tar: TarReader, begin: int, end: int) -> TarSample:
    """The sample in a span; TarError."""
    files = list(_files(tar, read_headers(tar.read, begin, end)))
    if len({file.key for file in files}) != 1:
        raise TarError(f"expected one sample from byte {begin} to {end}")
    return _sample(files)


class _File(NamedTuple):
    """A file that belongs to a sample."""

    key: str
    type: str
    member: Member
    content: bytes
    """Of a member that may hold a label, which is read while its bytes are at hand."""


def _files(tar: TarReader, members: Iterable[Member]) -> Iterator[_File]:
    for member in members:
        _check_size(member.name, member.num_bytes)
        key, kind = split_name(member.name)
        if key:
            content = tar.read(member.start, member.stop) if kind in LABEL_TYPES else b""
            yield _File(key, kind, member, content)


def _sample(files: Sequence[_File]) -> TarSample:
    key, begin, end = files[0].key, files[0].member.begin, files[-1].member.end
    members = {file.type: file.member for file in files}
    if len(members) < len(files):
        names = ", ".join(file.member.name for file in files)
        raise TarError(f"{key}: two members of one type: {names}")
    _check_size(key, end - begin)
    labels = {file.type: file.content for file in files if file.type in LABEL_TYPES}
    return TarSample(key, begin, end, members, {"__key__": key, **labels})


def _check_size(name: str, num_bytes: int) -> None:
    if num_bytes > MAX_SAMPLE_BYTES:
        raise TarError(f"{name}: {num_bytes} bytes; expected at most {MAX_SAMPLE_BYTES} a sample")
