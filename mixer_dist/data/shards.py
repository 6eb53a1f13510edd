"""Writing data shards: plain webdataset tars, each with an index of its samples' spans."""

import hashlib
import tarfile
from collections.abc import Mapping
from typing import IO, cast

import numpy as np
from zlib_ng.zlib_ng import crc32

from mixer_dist.data.manifest import INDEX_ROW, Shard
from mixer_dist.storage import Storage, join

_WHOLE = 2**40  # bytes that tarfile reads of a member at once


class ShardBuilder:
    """One tar and its index, growing in memory sample by sample."""

    def __init__(self) -> None:
        from webdataset import TarWriter  # imports torch, which a tool's --help need not wait for

        self._tar = _Pieces()
        self._writer = TarWriter(self._tar, mtime=0, encoder=False)
        # Its own stream copies everything twice, in blocks of 10 KB. PAX for the sake of long and
        # non-ASCII names; plain names give plain headers.
        self._writer.tarstream = tarfile.TarFile(
            fileobj=cast(IO[bytes], self._tar),
            mode="w",
            format=tarfile.PAX_FORMAT,
            copybufsize=_WHOLE,
        )
        self._ends: list[int] = []
        self._crcs: list[int] = []

    def add(self, key: str, members: Mapping[str, bytes]) -> None:
        """Append one sample: its members by type, such as jpg and cls."""
        self._writer.write({"__key__": key, **members})
        self._ends.append(self._tar.num_bytes)
        self._crcs.append(self._tar.take_crc32())

    def save(self, storage: Storage, folder: str, name: str) -> Shard:
        """Write `name`.tar and `name`.idx into a folder; the manifest's entry for them."""
        shard = self.finish(name)
        storage.write_parts(join(folder, shard.name), lambda: self._tar.pieces)
        storage.write(join(folder, shard.index), self._index())
        return shard

    def finish(self, name: str) -> Shard:
        """End the tar; the manifest's entry for it, as if it were written."""
        self._writer.close()
        return Shard(
            name=f"{name}.tar",
            num_samples=len(self._ends),
            num_bytes=self._tar.num_bytes,
            sha256=self._tar.sha256.hexdigest(),
            index=f"{name}.idx",
            index_sha256=hashlib.sha256(self._index()).hexdigest(),
        )

    def _index(self) -> bytes:
        rows = np.zeros(len(self._ends), INDEX_ROW)
        rows["offset"] = [0, *self._ends][:-1]
        rows["num_bytes"] = np.diff(self._ends, prepend=0)
        rows["crc32"] = self._crcs
        return rows.tobytes()


class _Pieces:
    """A file in memory that keeps what is written as it is, uncopied, and its checksums."""

    def __init__(self) -> None:
        self.pieces: list[bytes] = []
        self.num_bytes = 0
        self.sha256 = hashlib.sha256()
        self._crc32 = 0

    def write(self, data: bytes) -> int:
        """Append."""
        self.pieces.append(data)
        self.num_bytes += len(data)
        self.sha256.update(data)
        self._crc32 = crc32(data, self._crc32)
        return len(data)

    def tell(self) -> int:
        """Where the next write goes."""
        return self.num_bytes

    def take_crc32(self) -> int:
        """Of what was written since the last call."""
        crc32, self._crc32 = self._crc32, 0
        return crc32
