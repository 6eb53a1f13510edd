"""Labels beside a dataset whose tars stay as they are: one file, read a shard at a time.

It is a safetensors file named after its own SHA-256, so that a dataset's fingerprint needs no byte
of it: `offsets` u64 (N + 1,) and `values` i32 say which classes each of N samples has, in the order
of the manifest; `crc32` u32 has one entry a shard, over its offsets and its values.
"""

import hashlib
import json
import zlib
from collections.abc import Iterable, Sequence
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import save

from mixer_dist.data.manifest import Part
from mixer_dist.errors import ConfigError, DataError, MissingError
from mixer_dist.storage import Storage, join

MAX_HEADER_BYTES = 2**16
NUM_OPEN = 16  # labels files whose headers and checksums stay in memory

_TYPES = {"offsets": ("U64", "<u8"), "values": ("I32", "<i4"), "crc32": ("U32", "<u4")}


class ShardLabels(NamedTuple):
    """The classes of each sample of a shard."""

    offsets: NDArray[np.int64]
    """(n + 1,), from 0: sample i has the values from offsets[i] to offsets[i + 1]."""
    values: NDArray[np.int32]

    def of(self, index: int) -> list[int]:
        """The classes of one sample."""
        return list(map(int, self.values[self.offsets[index] : self.offsets[index + 1]]))


def shard_labels(samples: Iterable[Sequence[int]]) -> ShardLabels:
    """Labels from a list of classes for each sample; ConfigError."""
    lists = list(samples)
    offsets = np.cumsum([0, *map(len, lists)], dtype=np.int64)
    try:
        return ShardLabels(offsets, np.array([v for each in lists for v in each], np.int32))
    except OverflowError as error:
        raise ConfigError(f"labels must lie in 0..{2**31 - 1}: {error}") from error


def write_labels(storage: Storage, folder: str, labels: Iterable[ShardLabels]) -> str:
    """Write the labels of all shards of a manifest into a folder; the file's name."""
    shards = list(labels)
    begins = np.cumsum([0, *(len(shard.values) for shard in shards)])
    offsets = [begin + s.offsets[:-1] for begin, s in zip(begins[:-1], shards, strict=True)]
    tensors = {
        "offsets": np.concatenate([*offsets, begins[-1:]]).astype("<u8"),
        "values": np.concatenate([np.empty(0, "<i4"), *(shard.values for shard in shards)]),
    }
    firsts = np.cumsum([0, *(len(shard.offsets) - 1 for shard in shards)]).tolist()
    crcs = [
        _crc32(tensors["offsets"][first : stop + 1], shard.values)
        for first, stop, shard in zip(firsts[:-1], firsts[1:], shards, strict=True)
    ]
    data = save(tensors | {"crc32": np.array(crcs, "<u4")})
    name = f"labels-{hashlib.sha256(data).hexdigest()}.safetensors"
    storage.write(join(folder, name), data)
    return name


class LabelsFile:
    """Reads the labels of single shards."""

    def __init__(self, storage: Storage, url: str) -> None:
        """Read the header and the checksums; DataError."""
        self._storage = storage
        self._url = url
        try:
            self._begins, self._sizes = self._header()
            self._crcs = self._read("crc32", 0, self._sizes["crc32"])
        except MissingError as error:
            raise DataError(f"the labels file is missing: {error}") from error

    def of_shard(self, first_sample: int, num_samples: int, number: int) -> ShardLabels:
        """Labels of the shard `number`, whose first sample has this place in the manifest."""
        stop = first_sample + num_samples
        if number >= len(self._crcs) or stop >= self._sizes["offsets"]:
            raise DataError(f"{self._url} has labels for other shards than the manifest names")
        offsets = self._read("offsets", first_sample, stop + 1)
        begin, end = int(offsets[0]), int(offsets[-1])
        if not begin <= end <= self._sizes["values"]:
            raise DataError(self._damage())
        values = self._read("values", begin, end)
        if _crc32(offsets, values) != self._crcs[number]:
            raise DataError(self._damage())
        return ShardLabels((offsets - offsets[0]).astype(np.int64), values)

    def _header(self) -> tuple[dict[str, int], dict[str, int]]:
        """Where each tensor begins, in bytes, and how many numbers it holds."""
        length = int.from_bytes(self._storage.read_range(self._url, 0, 8), "little")
        if not 0 < length <= MAX_HEADER_BYTES:
            raise DataError(self._damage())
        try:
            entries: Any = json.loads(self._storage.read_range(self._url, 8, 8 + length))
            sizes = {name: _size(entries[name], *_TYPES[name]) for name in _TYPES}
            begins = {name: 8 + length + int(entries[name]["data_offsets"][0]) for name in _TYPES}
        except (LookupError, TypeError, ValueError, RecursionError) as error:
            raise DataError(self._damage()) from error
        return begins, sizes

    def _read(self, name: str, start: int, stop: int) -> NDArray[Any]:
        dtype = np.dtype(_TYPES[name][1])
        begin, size = self._begins[name], dtype.itemsize
        data = self._storage.read_range(self._url, begin + start * size, begin + stop * size)
        return np.frombuffer(data, dtype)

    def _damage(self) -> str:
        return f"{self._url} is damaged: restore the file, or run data_tools/relabel.py again"


def load_shard_labels(storage: Storage, part: Part) -> ShardLabels | None:
    """A shard's labels, None where they lie in its tar; DataError."""
    if part.labels_url is None:
        return None
    labels = _open(storage, part.labels_url)
    return labels.of_shard(part.first_sample, part.shard.num_samples, part.number)


@lru_cache(NUM_OPEN)
def _open(storage: Storage, url: str) -> LabelsFile:
    return LabelsFile(storage, url)


def _crc32(offsets: NDArray[Any], values: NDArray[Any]) -> int:
    return zlib.crc32(values.tobytes(), zlib.crc32(offsets.tobytes()))


def _size(entry: Any, code: str, dtype: str) -> int:
    """How many numbers a tensor of the file holds."""
    (size,) = entry["shape"]
    begin, end = entry["data_offsets"]
    if entry["dtype"] != code or begin < 0 or end - begin != size * np.dtype(dtype).itemsize:
        raise ValueError(f"not a tensor of {code}")
    return int(size)
