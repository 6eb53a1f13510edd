"""Samples' bytes from shards: one range read a chunk of neighbours, every span checked."""

import logging
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import numpy as np
from zlib_ng.zlib_ng import crc32  # three times as fast as zlib's

from mixer_dist.data.cache import BoundedCache
from mixer_dist.data.labels import ShardLabels, load_shard_labels
from mixer_dist.data.manifest import Dataset, Index, Part, load_index
from mixer_dist.errors import AccessError, DataError, MissingError
from mixer_dist.storage import Storage, Version

NUM_READS = 3  # of a span whose CRC is wrong, before the sample counts as damaged
NUM_BEYOND = 16  # samples after a chunk that may stand in for one of a damaged chunk
NUM_READERS = 8  # range reads under way at once
INDEX_BYTES = 2**30  # of indexes kept in memory: 67 million samples
GAP_BYTES = 64 * 1024  # between wanted samples that is read over rather than asked around

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Span:
    """The bytes of one sample in its shard."""

    shard: int
    index: int
    crc32: int
    data: bytes
    labels: list[int] | None
    """Its classes, None where they are in its bytes."""

    @cached_property
    def is_right(self) -> bool:
        """Whether its CRC is; unchecked bytes are taken for right."""
        return not self.crc32 or crc32(self.data) == self.crc32


class _Table(NamedTuple):
    """What is known of a shard's samples beforehand."""

    rows: Index
    labels: ShardLabels | None

    @property
    def num_bytes(self) -> int:
        labels = self.labels
        return self.rows.nbytes + (sum(column.nbytes for column in labels) if labels else 0)


Spans = dict[int, Span]  # by the sample's number in the dataset laid end to end


class ChunkReader:
    """Reads a dataset laid end to end in chunks of neighbouring samples.

    A span leaves memory when it is taken, so that what is kept stays near the chunks in use.
    """

    def __init__(
        self, storage: Storage, dataset: Dataset, chunk_samples: int, capacity_bytes: int
    ) -> None:
        self._storage = storage.twin()
        self._dataset = dataset
        self._chunk_samples = chunk_samples
        self._begins = np.concatenate([[0], np.cumsum(dataset.shard_sizes)]).astype(np.int64)
        self._tables = BoundedCache(INDEX_BYTES, self._load_table, lambda table: table.num_bytes)
        self._chunks = BoundedCache(capacity_bytes, self._read_chunk, _num_bytes)
        self._versions: dict[str, Version] = {}
        self._readers = ThreadPoolExecutor(NUM_READERS, thread_name_prefix="fetch")
        self._lock = threading.Lock()
        self.num_requests = 0

    def stop(self) -> None:
        """Let reads under way fail, so that nobody waits for them."""
        self._storage.stop()

    def close(self) -> None:
        """End the reading threads."""
        self.stop()
        self._readers.shutdown(wait=True, cancel_futures=True)

    def prefetch(self, sample: int) -> None:
        """Have the chunk of a sample read in the background."""
        self._chunks.prefetch(sample // self._chunk_samples, self._readers)

    def take(self, sample: int) -> Span:
        """The bytes of a sample, read up to three times until their CRC is right."""
        span = self._take_from_chunk(sample)
        for _ in range(NUM_READS - 1):
            if span.is_right:
                break
            [span] = self._read_run(span.shard, span.index, span.index + 1).values()
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

    def _take_from_chunk(self, sample: int) -> Span:
        """A span out of its chunk, which is read again where the span was taken before.

        That happens to stand-ins, and where one epoch ends while the next begins.
        """
        chunk = sample // self._chunk_samples
        while (span := (spans := self._chunks.get(chunk)).pop(sample, None)) is None:
            self._chunks.discard(chunk, spans)
        self._chunks.free(chunk, len(span.data))
        return span

    def _load_table(self, shard: int) -> _Table:
        part = self._dataset.parts[shard]
        with _failing_the_run():
            return _Table(load_index(self._storage, part), load_shard_labels(self._storage, part))

    def _read_chunk(self, chunk: int) -> Spans:
        """The spans of a chunk's samples: one range read, two or more over shard borders.

        What the index says of them is kept beside the bytes: a run over many shards would otherwise
        fetch indexes again for every sample.
        """
        first = chunk * self._chunk_samples
        last = min(first + self._chunk_samples, int(self._begins[-1]))
        spans: Spans = {}
        while first < last:
            shard, index = self.place(first)
            stop = min(int(self._begins[shard + 1]), last)
            spans |= self._read_run(shard, index, index + stop - first)
            first = stop
        return spans

    def _read_run(self, shard: int, first: int, stop: int) -> Spans:
        """The spans [first, stop) of one shard; one request, more where an index leaves gaps."""
        table = self._tables.get(shard)
        spans: Spans = {}
        for rows in _without_gaps(table.rows[first:stop]):
            begin, end = int(rows["offset"][0]), _end(rows[-1])
            data, version = self._read(shard, begin, end)
            found: list[Span] = []
            for offset, num_bytes, expected in rows.tolist():
                index = first + len(spans) + len(found)
                labels = table.labels.of(index) if table.labels else None
                content = data[offset - begin : offset - begin + num_bytes]
                found.append(Span(shard, index, expected, content, labels))
            self._check_version(shard, version, found)
            spans |= {int(self._begins[shard]) + span.index: span for span in found}
        return spans

    def _read(self, shard: int, start: int, stop: int) -> tuple[bytes, Version]:
        part = self._dataset.parts[shard]
        with self._lock:
            self.num_requests += 1
        with _failing_the_run():
            data, version = self._storage.read_versioned(part.url, start, stop)
            if version.num_bytes is None and part.url not in self._versions:
                version = version._replace(num_bytes=self._storage.size(part.url))
        return data, version

    def _check_version(self, shard: int, version: Version, spans: Sequence[Span]) -> None:
        """DataError where a shard is not the manifest's, or no longer the one that was begun."""
        part = self._dataset.parts[shard]
        _check_size(part, version)
        known = self._versions.setdefault(part.url, version)
        if known.tag == version.tag:
            return
        if not all(span.crc32 and span.is_right for span in spans):
            raise DataError(
                f"{part.url} was replaced while the run reads it (its ETag or time of change is "
                f"{version.tag}, no longer {known.tag}): restore the file or shard the dataset anew"
            )
        logger.warning("%s was written again, with the same samples", part.url)
        self._versions[part.url] = version


@contextmanager
def _failing_the_run() -> Iterator[None]:
    """Make a DataError of what would have been a refusal before the run began."""
    try:
        yield
    except MissingError as error:
        raise DataError(f"a shard is missing: {error}") from error
    except AccessError as error:
        raise DataError(str(error)) from error


def _check_size(part: Part, version: Version) -> None:
    expected = part.shard.num_bytes
    if version.num_bytes not in (None, expected):
        raise DataError(
            f"{part.url} does not match its manifest: expected {expected} bytes, "
            f"found {version.num_bytes}; shard the dataset anew or restore the file"
        )


def _without_gaps(rows: Index) -> list[Index]:
    """Rows in groups of which each is read at once, cut where much lies between two samples."""
    begins = rows["offset"].astype(np.int64)
    gaps = begins[1:] - (begins + rows["num_bytes"])[:-1]
    return np.split(rows, np.flatnonzero(gaps > GAP_BYTES) + 1)


def _end(row: np.void) -> int:
    return int(row["offset"]) + int(row["num_bytes"])


def _num_bytes(spans: Spans) -> int:
    return sum(len(span.data) for span in spans.values())
