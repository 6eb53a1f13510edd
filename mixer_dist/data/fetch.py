"""Samples' bytes from shards: one range read a chunk of neighbours, every span checked."""

import threading
import zlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np

from mixer_dist.data.cache import BoundedCache
from mixer_dist.data.manifest import Dataset, Index, Part, load_index
from mixer_dist.data.members import BadSampleError
from mixer_dist.errors import DataError, MissingError
from mixer_dist.storage import Storage

NUM_READS = 3  # of a span whose CRC is wrong, before the sample counts as damaged
NUM_BEYOND = 16  # samples after a chunk that may stand in for one of a damaged chunk
NUM_READERS = 8  # range reads under way at once
NUM_INDEXES = 256  # kept in memory, 16 bytes a sample


@dataclass(frozen=True)
class Span:
    """The bytes of one sample in its shard."""

    shard: int
    index: int
    crc32: int
    data: bytes


class ChunkReader:
    """Reads a dataset laid end to end in chunks of neighbouring samples, and keeps the recent ones.

    Memory stays below `num_chunks` chunks plus the indexes in use.
    """

    def __init__(
        self, storage: Storage, dataset: Dataset, chunk_samples: int, num_chunks: int
    ) -> None:
        self._storage = storage
        self._dataset = dataset
        self._chunk_samples = chunk_samples
        self._begins = np.concatenate([[0], np.cumsum(dataset.shard_sizes)]).astype(np.int64)
        self._indexes = BoundedCache(NUM_INDEXES, self._load_index)
        self._chunks = BoundedCache(num_chunks, self._read_chunk)
        self._readers = ThreadPoolExecutor(NUM_READERS, thread_name_prefix="fetch")
        self.num_requests = 0
        self._lock = threading.Lock()

    def close(self) -> None:
        """End the reading threads."""
        self._readers.shutdown(wait=True, cancel_futures=True)

    def prefetch(self, sample: int) -> None:
        """Have the chunk of a sample read in the background."""
        self._chunks.prefetch(sample // self._chunk_samples, self._readers)

    def span(self, sample: int) -> Span:
        """The checked bytes of a sample; BadSampleError when its CRC stays wrong."""
        chunk, offset = divmod(sample, self._chunk_samples)
        span = self._chunks.get(chunk)[offset]
        for _ in range(NUM_READS - 1):
            if _is_right(span):
                break
            [span] = self._read_run(span.shard, span.index, span.index + 1)
        if not _is_right(span):
            raise BadSampleError(f"CRC wrong in {NUM_READS} reads")
        return span

    def neighbours(self, sample: int) -> Iterator[int]:
        """The sample and whom it falls to when it is damaged: the others of its chunk, cyclically.

        After them, because a chunk may be one sample only, those that follow the chunk.
        """
        total = int(self._begins[-1])
        first = sample // self._chunk_samples * self._chunk_samples
        size = min(self._chunk_samples, total - first)
        yield from (first + (sample - first + step) % size for step in range(size))
        beyond = min(NUM_BEYOND, total - size)
        yield from ((first + size + step) % total for step in range(beyond))

    def place(self, sample: int) -> tuple[int, int]:
        """(shard, index in shard) of a sample."""
        shard = int(np.searchsorted(self._begins, sample, "right")) - 1
        return shard, sample - int(self._begins[shard])

    def shard_name(self, shard: int) -> str:
        """The URL of a shard."""
        return self._dataset.parts[shard].url

    def _load_index(self, shard: int) -> Index:
        """A shard's index, at first touch; the shard's size then tells whether it was replaced."""
        part = self._dataset.parts[shard]
        index = load_index(self._storage, part)
        try:
            num_bytes = self._storage.size(part.url)
        except MissingError as error:
            raise DataError(f"a shard is missing: {error}") from error
        if num_bytes != part.shard.num_bytes:
            raise DataError(
                f"{part.url} does not match its manifest: expected {part.shard.num_bytes} bytes, "
                f"found {num_bytes}; shard the dataset anew or restore the file"
            )
        return index

    def _read_chunk(self, chunk: int) -> list[Span]:
        """The spans of a chunk's samples: one range read, two or more over shard borders.

        What the index says of them is kept beside the bytes: a run over many shards would otherwise
        fetch indexes again for every sample.
        """
        first = chunk * self._chunk_samples
        last = min(first + self._chunk_samples, int(self._begins[-1]))
        spans: list[Span] = []
        while first < last:
            shard, index = self.place(first)
            stop = min(int(self._begins[shard + 1]), last)
            spans += self._read_run(shard, index, index + stop - first)
            first = stop
        return spans

    def _read_run(self, shard: int, first: int, stop: int) -> list[Span]:
        """The spans [first, stop) of one shard, in one request."""
        rows = self._indexes.get(shard)[first:stop]
        begin = int(rows[0]["offset"])
        length = int(rows[-1]["offset"]) + int(rows[-1]["num_bytes"]) - begin
        data = self._read(self._dataset.parts[shard], begin, length)
        return [
            Span(shard, index, int(row["crc32"]), data[at : at + int(row["num_bytes"])])
            for index, row in enumerate(rows, first)
            for at in [int(row["offset"]) - begin]
        ]

    def _read(self, part: Part, offset: int, num_bytes: int) -> bytes:
        with self._lock:
            self.num_requests += 1
        try:
            return self._storage.read_range(part.url, offset, offset + num_bytes)
        except MissingError as error:
            raise DataError(f"a shard has vanished: {error}") from error


def _is_right(span: Span) -> bool:
    return not span.crc32 or zlib.crc32(span.data) == span.crc32
