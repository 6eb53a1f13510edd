"""What is known of each tar that is indexed, kept beside the indexes until all of them are done."""

import hashlib
from collections.abc import Sequence

from data_tools.tar_pool import Advance
from data_tools.tar_urls import file_name
from mixer_dist.data.image_files import printable
from mixer_dist.data.manifest import Shard, name_in
from mixer_dist.data.tar_headers import TarError
from mixer_dist.data.tar_index import IndexOptions, Labels, TarIndex, index_tar
from mixer_dist.data.tar_spans import TarHeaders, TarReader, WholeTar
from mixer_dist.errors import DataError
from mixer_dist.sections import Section
from mixer_dist.storage import Storage, join

_ENDING = ".done.json"


class TarState(Section):
    """What must be the same for an index not to be made again."""

    url: str
    num_bytes: int
    tag: str
    """Changes when the tar does, as an ETag; empty where that is not known."""
    options: IndexOptions


class TarRecord(Section):
    """A tar whose index is written."""

    state: TarState
    shard: Shard
    labels: tuple[Labels, ...]
    num_without_image: int


class TarRecords:
    """Indexes tars; of those that a stopped run has done it finds the records."""

    def __init__(
        self, storage: Storage, destination: str, urls: Sequence[str], options: IndexOptions
    ) -> None:
        self._storage = storage
        self._destination = destination
        self._urls = urls
        self._options = options
        self._left = set(storage.names(destination))

    def index(self, number: int, advance: Advance) -> TarRecord:
        """The record of one tar, whose index is then on storage; DataError."""
        url = self._urls[number]
        state = _state(self._storage, url, self._options)
        if (left := self._left_of(number)) and left.state == state:
            return left
        kind = TarHeaders if self._options.headers_only else WholeTar
        tar = kind(self._storage, url, state.num_bytes, advance)
        found = _index(tar, url, self._options)
        record = TarRecord(
            state=state,
            shard=self._write_index(number, state.num_bytes, found, tar.sha256()),
            labels=found.labels,
            num_without_image=found.num_without_image,
        )
        self._storage.write(self._url(number), record.model_dump_json().encode())
        return record

    def load(self, number: int) -> TarRecord:
        """The record of a tar that is done."""
        return TarRecord.model_validate_json(self._storage.read(self._url(number)))

    def _left_of(self, number: int) -> TarRecord | None:
        """The record and index that a stopped run has left of a tar."""
        if not {self._name(number), self._index_name(number)} <= self._left:
            return None
        try:
            return self.load(number)
        except ValueError:  # of another version, or damaged
            return None

    def remove(self) -> None:
        """Remove the records, which the manifest has made superfluous."""
        for name in self._storage.names(self._destination):
            if name.endswith(_ENDING):
                self._storage.delete(join(self._destination, name))

    def _write_index(
        self, number: int, num_bytes: int, found: TarIndex, sha256: str | None
    ) -> Shard:
        rows = found.rows.tobytes()
        shard = Shard(
            name=name_in(self._destination, self._urls[number]),
            num_samples=len(found.rows),
            num_bytes=num_bytes,
            sha256=sha256,
            index=self._index_name(number),
            index_sha256=hashlib.sha256(rows).hexdigest(),
        )
        self._storage.write(join(self._destination, shard.index), rows)
        return shard

    def _stem(self, number: int) -> str:
        """Numbered, as tars of several folders may have one name."""
        return f"{number:06d}-{file_name(self._urls[number]).removesuffix('.tar')}"

    def _index_name(self, number: int) -> str:
        return self._stem(number) + ".idx"

    def _name(self, number: int) -> str:
        return self._stem(number) + _ENDING

    def _url(self, number: int) -> str:
        return join(self._destination, self._name(number))


def _index(tar: TarReader, url: str, options: IndexOptions) -> TarIndex:
    try:
        return index_tar(tar, options)
    except TarError as error:
        raise DataError(f"{url}: {printable(str(error))}") from error


def _state(storage: Storage, url: str, options: IndexOptions) -> TarState:
    """As a read of one byte tells, which tells too whether there are ranges and an access."""
    _, version = storage.read_versioned(url, 0, 1)
    num_bytes = storage.size(url) if version.num_bytes is None else version.num_bytes
    return TarState(url=url, num_bytes=num_bytes, tag=version.tag, options=options)
