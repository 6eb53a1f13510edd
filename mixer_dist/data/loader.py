"""Decoded samples: fetched, checked, decoded, and replaced where they are damaged."""

import logging
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import torch

from mixer_dist.data.batch import BadSample
from mixer_dist.data.fetch import ChunkReader, Span
from mixer_dist.data.manifest import Dataset
from mixer_dist.data.members import BadSampleError, image_of, labels_of, read_members
from mixer_dist.errors import DataError
from mixer_dist.storage import Storage

Sample = dict[str, Any]

logger = logging.getLogger(__name__)


class Loader:
    """Samples by their number in the dataset laid end to end.

    `decode` adds what it makes of sample["data"], the compressed image; it may raise ValueError.
    """

    def __init__(
        self,
        storage: Storage,
        dataset: Dataset,
        *,
        chunk_samples: int,
        capacity_bytes: int,
        num_classes: int,
        decode: Callable[[Sample], Sample],
    ) -> None:
        self._reader = ChunkReader(storage, dataset, chunk_samples, capacity_bytes)
        self._num_classes = num_classes
        self._decode = decode
        self.prefetch = self._reader.prefetch
        self.stop = self._reader.stop
        self.close = self._reader.close

    def load(self, sample: Sample) -> Sample:
        """A sample with its labels and what `decode` adds; DataError where it is damaged."""
        loaded = self._try(sample, sample["sample"])
        if isinstance(loaded, BadSample):
            raise DataError(f"damaged: {_named(loaded)}")
        return loaded

    def load_or_replace(self, sample: Sample) -> Sample:
        """The same, but a damaged sample is replaced by the next good one of its chunk, cyclically.

        The position stays, and with it the augmentation; the sample that was due is recorded.
        """
        due: BadSample | None = None
        for candidate in self._reader.neighbours(sample["sample"]):
            loaded = self._try(sample, candidate)
            if not isinstance(loaded, BadSample):
                return loaded | {"bad_sample": due and _replaced(due, candidate)}
            due = due or loaded
        raise DataError(
            f"no good sample to stand in for a damaged one, nor any near it: {_named(due)}: shard "
            "the dataset anew or restore the file"
        )

    def _try(self, sample: Sample, candidate: int) -> Sample | BadSample:
        """The sample made from a candidate's bytes, or why that one is bad."""
        span = self._reader.take(candidate)
        try:
            return sample | self._read(span, sample)
        except BadSampleError as error:
            return BadSample(
                position=sample["position"],
                sample=candidate,
                shard=self._reader.shard_name(span.shard),
                index=span.index,
                key=_key(span),
                reason=str(error),
            )

    def _read(self, span: Span, sample: Sample) -> Sample:
        if not span.is_right:
            raise BadSampleError("its CRC is wrong, however often it is read")
        members = read_members(span.data)
        labels = labels_of(members) if span.labels is None else span.labels
        if outside := [label for label in labels if not 0 <= label < self._num_classes]:
            raise DataError(
                f"{self._reader.shard_name(span.shard)}, {members['__key__']!s}: "
                f"label {outside[0]} is not in 0..{self._num_classes - 1}; "
                "set model.num_classes or relabel"
            )
        place = {"shard": span.shard, "index": span.index, "crc32": span.crc32}
        read = members | place | {"labels": labels, "data": image_of(members)}
        try:
            return self._decode(sample | read)
        except ValueError as error:
            raise BadSampleError(f"not decodable: {error}") from error


def worker_threads(num_threads: int) -> ThreadPoolExecutor:
    """Threads that decode; each computes on its own core, as many images are under way at once."""
    torch.get_num_threads()  # settles this thread's own number, which else becomes the workers' 1
    return ThreadPoolExecutor(
        num_threads,
        thread_name_prefix="decode",
        initializer=torch.set_num_threads,
        initargs=(1,),
    )


def _key(span: Span) -> str:
    """A damaged sample's key, where its tar headers still tell."""
    try:
        return str(read_members(span.data)["__key__"])
    except BadSampleError:
        return ""


def _named(bad: BadSample | None) -> str:
    assert bad is not None
    return f"{bad.shard}, sample {bad.index}, {bad.key or 'key unknown'}: {bad.reason}"


def _replaced(bad: BadSample, candidate: int) -> BadSample:
    logger.warning("bad sample: %s; number %d of the data takes its place", _named(bad), candidate)
    return replace(bad, replaced_by=candidate)
