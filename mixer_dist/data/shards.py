"""Writing data shards: plain webdataset tars, each with an index of its samples' spans."""

import hashlib
import io
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from mixer_dist.data.decode import decode_image, image_type
from mixer_dist.data.image_folder import ImageFile
from mixer_dist.data.manifest import INDEX_ROW, Index, Shard
from mixer_dist.storage import Storage, join

UPLOAD_BYTES = 16 * 2**20  # handed on at once: a whole shard would be held twice


class ShardBuilder:
    """One tar and its index, growing in memory sample by sample."""

    def __init__(self) -> None:
        from webdataset import TarWriter  # imports torch, which a tool's --help need not wait for

        self._buffer = io.BytesIO()
        # PAX for the sake of long and non-ASCII names; plain names give plain headers.
        self._writer = TarWriter(self._buffer, mtime=0, encoder=False, format="PAX_FORMAT")
        self._ends: list[int] = []

    def add(self, key: str, members: Mapping[str, bytes]) -> None:
        """Append one sample: its members by type, such as jpg and cls."""
        self._writer.write({"__key__": key, **members})
        self._ends.append(self._writer.tarstream.offset)

    def save(self, storage: Storage, folder: str, name: str) -> Shard:
        """Write `name`.tar and `name`.idx into a folder; the manifest's entry for them."""
        self._writer.close()
        tar = self._buffer.getbuffer()
        index = _index(tar, self._ends).tobytes()
        shard = Shard(
            name=f"{name}.tar",
            num_samples=len(self._ends),
            num_bytes=len(tar),
            sha256=hashlib.sha256(tar).hexdigest(),
            index=f"{name}.idx",
            index_sha256=hashlib.sha256(index).hexdigest(),
        )
        storage.write_parts(join(folder, shard.name), lambda: _slices(tar))
        storage.write(join(folder, shard.index), index)
        return shard


def _index(tar: memoryview, ends: Sequence[int]) -> Index:
    rows = np.zeros(len(ends), INDEX_ROW)
    for row, start, end in zip(rows, [0, *ends], ends, strict=False):
        row["offset"], row["num_bytes"] = start, end - start
        row["crc32"] = zlib.crc32(tar[start:end])
    return rows


def _slices(data: memoryview) -> Iterator[memoryview]:
    return (data[at : at + UPLOAD_BYTES] for at in range(0, len(data), UPLOAD_BYTES))


@dataclass(frozen=True)
class WrittenShard:
    """A shard that is on storage, and the images that it had to do without."""

    shard: Shard
    unreadable: tuple[tuple[str, str], ...]
    """(path, reason) each."""


def write_image_shard(
    storage: Storage, source: Path, destination: str, name: str, images: Sequence[ImageFile]
) -> WrittenShard:
    """Check images by decoding them, write the good ones' own bytes; runs in any process."""
    builder = ShardBuilder()
    unreadable = []
    for image in images:
        try:
            data = (source / image.path).read_bytes()
            decode_image(data)
        except (OSError, ValueError) as error:
            unreadable.append((image.path, getattr(error, "strerror", None) or str(error)))
            continue
        builder.add(image.key, {image_type(data): data, "cls": b"%d" % image.label})
    return WrittenShard(builder.save(storage, destination, name), tuple(unreadable))
