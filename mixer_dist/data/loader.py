"""Decoded samples: fetched, checked, decoded, and replaced where they are damaged."""

import logging
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import torch

from mixer_dist.data.batch import BadSample
from mixer_dist.data.decode import decode_image
from mixer_dist.data.fetch import ChunkReader, Span
from mixer_dist.data.manifest import Dataset
from mixer_dist.data.members import BadSampleError, image_of, labels_of, read_members
from mixer_dist.errors import DataError
from mixer_dist.storage import Storage

Sample = dict[str, Any]


class Loader:
    """Decoded samples by their number in the dataset laid end to end."""

    def __init__(
        self,
        storage: Storage,
        dataset: Dataset,
        chunk_samples: int,
        num_chunks: int,
        num_classes: int,
    ) -> None:
        self._reader = ChunkReader(storage, dataset, chunk_samples, num_chunks)
        self._num_classes = num_classes
        self.prefetch = self._reader.prefetch

    def close(self) -> None:
        """End the reading threads."""
        self._reader.close()

    def load(self, sample: Sample) -> Sample:
        """A sample with its image (H, W, 3) uint8 and labels; DataError where it is damaged."""
        loaded = self._try(sample, sample["sample"])
        if isinstance(loaded, BadSample):
            where = f"{loaded.shard}, sample {loaded.index}, {loaded.key or 'key unknown'}"
            raise DataError(f"damaged: {where}: {loaded.reason}")
        return loaded

    def load_or_replace(self, sample: Sample) -> Sample:
        """The same, but a damaged sample is replaced by the next good one of its chunk, cyclically.

        The position stays, and with it the augmentation; each damaged sample is recorded.
        """
        bad: list[BadSample] = []
        for candidate in self._reader.neighbours(sample["sample"]):
            loaded = self._try(sample, candidate)
            if not isinstance(loaded, BadSample):
                return loaded | {"bad_samples": _replaced(bad, loaded["index"])}
            bad.append(loaded)
        raise DataError(
            f"{len(bad)} samples in a row are damaged, from sample {bad[0].index} of "
            f"{bad[0].shard} on ({bad[0].key or 'key unknown'}: {bad[0].reason}): shard the "
            "dataset anew or restore the file"
        )

    def _try(self, sample: Sample, candidate: int) -> Sample | BadSample:
        """The sample made from a candidate's bytes, or why that one is bad."""
        key = ""
        try:
            span = self._reader.span(candidate)
            members = read_members(span.data)
            key = str(members["__key__"])
            return sample | self._decoded(members, span)
        except BadSampleError as error:
            shard, index = self._reader.place(candidate)
            name = self._reader.shard_name(shard)
            return BadSample(sample["position"], name, key, str(error), index, -1)

    def _decoded(self, members: dict[str, bytes | str], span: Span) -> Sample:
        labels = labels_of(members)
        if outside := [label for label in labels if not 0 <= label < self._num_classes]:
            raise DataError(
                f"{self._reader.shard_name(span.shard)}, {members['__key__']!s}: "
                f"label {outside[0]} is not in 0..{self._num_classes - 1}; "
                "set model.num_classes or relabel"
            )
        try:
            image = decode_image(image_of(members))
        except ValueError as error:
            raise BadSampleError(f"not decodable: {error}") from error
        place = {"shard": span.shard, "index": span.index, "crc32": span.crc32}
        return members | place | {"image": image, "labels": labels, "bad_samples": ()}


def worker_threads(num_threads: int) -> ThreadPoolExecutor:
    """Threads that decode; each computes on its own core, as many images are under way at once."""
    torch.get_num_threads()  # settles this thread's own number, which else becomes the workers' 1
    return ThreadPoolExecutor(
        num_threads,
        thread_name_prefix="decode",
        initializer=torch.set_num_threads,
        initargs=(1,),
    )


def _replaced(bad: Sequence[BadSample], index: int) -> tuple[BadSample, ...]:
    logger = logging.getLogger(__name__)
    for sample in bad:
        logger.warning(
            "bad sample: %s %s (sample %d): %s; sample %d takes its place",
            sample.shard, sample.key, sample.index, sample.reason, index,
        )  # fmt: skip
    return tuple(replace(sample, replaced_by=index) for sample in bad)
