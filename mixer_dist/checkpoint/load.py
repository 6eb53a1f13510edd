"""Loading: just the byte ranges that a rank needs, neighbours in one request, many at a time."""

from bisect import bisect_right
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from zlib_ng.zlib_ng import crc32

from mixer_dist import distributed
from mixer_dist.checkpoint.catalog import Checkpoint
from mixer_dist.checkpoint.layout import CheckpointManifest, FileEntry, piece_key
from mixer_dist.checkpoint.piece_file import FileHeader, read_file_header
from mixer_dist.checkpoint.pieces import Piece
from mixer_dist.errors import CheckpointError
from mixer_dist.storage import Storage, join

FP32_BYTES = 4
REQUEST_BYTES = 32 * 2**20  # most that neighbours are read together
GAP_BYTES = 64 * 1024  # that is read over rather than asked around
NUM_REQUESTS = 8  # under way at once
NUM_TRIES = 3  # of a request whose bytes have a wrong CRC


class Part(NamedTuple):
    """Elements of one stored piece, and where they go."""

    file: int
    key: str
    first: int
    """Of the piece's elements, the first one wanted."""
    target: Tensor


class Block(NamedTuple):
    """A part whose place in its file is known."""

    start: int
    stop: int
    crc: int | None
    """What its bytes must sum to, None where it is not a whole piece."""
    part: Part


def load_pieces(storage: Storage, checkpoint: Checkpoint, pieces: Iterable[Piece]) -> None:
    """Fill the memory of pieces from a checkpoint; CheckpointError on every rank where one failed.

    All ranks must call this.
    """
    distributed.on_all(lambda: read_pieces(storage, checkpoint, pieces))


def read_pieces(storage: Storage, checkpoint: Checkpoint, pieces: Iterable[Piece]) -> None:
    """Fill the memory of pieces from a checkpoint; CheckpointError, StorageError."""
    by_file: dict[int, list[Part]] = defaultdict(list)
    for piece in pieces:
        for part in stored_parts(checkpoint.manifest, piece):
            by_file[part.file].append(part)

    def requests(file: int) -> list[list[Block]]:
        header = read_file_header(storage, checkpoint.url, checkpoint.manifest.files[file])
        return list(coalesced([_block(header, part) for part in by_file[file]]))

    def read(blocks: list[Block]) -> None:
        entry = checkpoint.manifest.files[blocks[0].part.file]
        _read_blocks(storage, checkpoint.url, entry, blocks)

    with ThreadPoolExecutor(NUM_REQUESTS) as executor:
        per_file = executor.map(requests, sorted(by_file))
        list(executor.map(read, (blocks for found in per_file for blocks in found)))


def stored_parts(manifest: CheckpointManifest, piece: Piece) -> Iterator[Part]:
    """Which stored pieces hold a piece, however it was cut when it was saved."""
    entry = manifest.parameters[piece.fqn]
    flat = piece.tensor.view(-1)
    for number in range(bisect_right(entry.cuts, piece.start) - 1, len(entry.files)):
        begin, end = entry.cuts[number], entry.cuts[number + 1]
        if begin >= piece.stop:
            return
        low, high = max(piece.start, begin), min(piece.stop, end)
        key = piece_key(piece.kind, piece.fqn, begin)
        yield Part(
            entry.files[number], key, low - begin, flat[low - piece.start : high - piece.start]
        )


def _block(header: FileHeader, part: Part) -> Block:
    if part.key not in header.ranges:
        raise CheckpointError(f"{part.key} is missing in file {part.file} of the checkpoint")
    begin, end = header.ranges[part.key]
    start = begin + FP32_BYTES * part.first
    stop = start + FP32_BYTES * part.target.numel()
    if stop > end:
        raise CheckpointError(f"{part.key} is shorter in its file than the manifest says")
    is_whole = (start, stop) == (begin, end)
    return Block(start, stop, header.crcs.get(part.key) if is_whole else None, part)


def coalesced(blocks: Sequence[Block]) -> Iterator[list[Block]]:
    """Blocks of one file in groups that are each read by one request."""
    group: list[Block] = []
    for block in sorted(blocks, key=lambda block: block.start):
        is_near = group and block.start - group[-1].stop <= GAP_BYTES
        if group and (not is_near or block.stop - group[0].start > REQUEST_BYTES):
            yield group
            group = []
        group.append(block)
    if group:
        yield group


def _read_blocks(storage: Storage, folder: str, entry: FileEntry, blocks: Sequence[Block]) -> None:
    location, start, stop = join(folder, entry.name), blocks[0].start, blocks[-1].stop
    for _ in range(NUM_TRIES):
        data = memoryview(storage.read_range(location, start, stop))
        parts = [data[block.start - start : block.stop - start] for block in blocks]
        if all(b.crc in (None, crc32(part)) for b, part in zip(blocks, parts, strict=True)):
            break
    else:
        raise CheckpointError(f"{location} does not give the bytes that were saved: wrong CRC")
    for block, part in zip(blocks, parts, strict=True):
        _fill(block.part.target, np.frombuffer(part, np.float32))


def _fill(target: Tensor, values: NDArray[np.float32]) -> None:
    """NumPy copies, since torch takes no memory that it may not write to."""
    on_host = target.detach() if target.is_cpu else torch.empty(target.shape)
    np.copyto(on_host.numpy(), values)
    if not target.is_cpu:
        target.copy_(on_host)


def full_tensors(storage: Storage, checkpoint: Checkpoint) -> dict[str, Tensor]:
    """Every parameter whole, in fp32: what evaluation and export need, without the moments."""
    tensors = {
        fqn: torch.empty(entry.shape) for fqn, entry in checkpoint.manifest.parameters.items()
    }
    wanted = [Piece("param", fqn, 0, t.numel(), t.view(-1)) for fqn, t in tensors.items()]
    read_pieces(storage, checkpoint, wanted)
    return tensors
