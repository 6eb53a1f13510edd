"""A file of pieces: safetensors, fp32, keys in text order, the CRC-32 of each in its metadata."""

import hashlib
import json
import struct
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from zlib_ng.zlib_ng import crc32

from mixer_dist.checkpoint.layout import FileEntry, piece_key
from mixer_dist.checkpoint.pieces import Piece
from mixer_dist.errors import CheckpointError
from mixer_dist.storage import Storage, join

NUM_THREADS = 4  # for checksums
FIRST_READ_BYTES = 256 * 1024  # holds most headers whole

_ALIGNMENT = 8  # of the data in a safetensors file
_LENGTH_BYTES = 8  # the first number in it: the length of its JSON


@dataclass(frozen=True)
class FileHeader:
    """Where each piece lies in its file, and what it must sum to."""

    ranges: dict[str, tuple[int, int]]
    """First byte and the one after the last, by the piece's key."""
    crcs: dict[str, int]


def write_pieces(storage: Storage, folder: str, name: str, pieces: Sequence[Piece]) -> FileEntry:
    """Write pieces that lie in host memory as one file, straight from there."""
    arrays = {piece_key(p.kind, p.fqn, p.start): p.tensor.numpy() for p in pieces}
    ordered = {key: arrays[key] for key in sorted(arrays)}
    header = file_header(ordered)
    buffers: list[Any] = [header, *(array.data for array in ordered.values())]
    with ThreadPoolExecutor(1) as executor:  # hashed while it is written
        digest = executor.submit(_sha256, buffers)
        storage.write_parts(join(folder, name), lambda: iter(buffers))
    num_bytes = len(header) + sum(array.nbytes for array in ordered.values())
    return FileEntry(name=name, num_bytes=num_bytes, sha256=digest.result())


def file_header(arrays: Mapping[str, NDArray[np.float32]]) -> bytes:
    """What comes before the data of 1-D fp32 tensors."""
    with ThreadPoolExecutor(NUM_THREADS) as executor:
        crcs = executor.map(lambda array: f"{crc32(array.data):08x}", arrays.values())
    entries: dict[str, Any] = {"__metadata__": dict(zip(arrays, crcs, strict=True))}
    end = 0
    for key, array in arrays.items():
        begin, end = end, end + array.nbytes
        entries[key] = {"dtype": "F32", "shape": [array.size], "data_offsets": [begin, end]}
    text = json.dumps(entries, separators=(",", ":")).encode()
    text += b" " * (-len(text) % _ALIGNMENT)
    return struct.pack("<Q", len(text)) + text


def read_file_header(storage: Storage, folder: str, entry: FileEntry) -> FileHeader:
    """The header of a file; CheckpointError where it cannot be one."""
    location = join(folder, entry.name)
    data = storage.read_range(location, 0, min(FIRST_READ_BYTES, entry.num_bytes))
    try:
        (length,) = struct.unpack("<Q", data[:_LENGTH_BYTES])
        base = _LENGTH_BYTES + length
        if base > entry.num_bytes:
            raise ValueError(f"a header of {length} bytes")
        if base > len(data):
            data += storage.read_range(location, len(data), base)
        return _parsed(json.loads(data[_LENGTH_BYTES:base]), base, entry.num_bytes)
    except (ValueError, KeyError, TypeError, AttributeError, struct.error) as error:
        raise CheckpointError(f"{location} has a damaged header: {error}") from None


def _parsed(tree: dict[str, Any], base: int, num_bytes: int) -> FileHeader:
    crcs = {key: int(text, 16) for key, text in tree.pop("__metadata__").items()}
    ranges: dict[str, tuple[int, int]] = {}
    for key, value in tree.items():
        begin, end = value["data_offsets"]
        if value["dtype"] != "F32" or not 0 <= begin <= end <= num_bytes - base:
            raise ValueError(f"{key} at {begin} to {end}")
        ranges[key] = (base + begin, base + end)
    return FileHeader(ranges, crcs)


def _sha256(buffers: Sequence[Any]) -> str:
    digest = hashlib.sha256()
    for buffer in buffers:
        digest.update(buffer)
    return digest.hexdigest()
