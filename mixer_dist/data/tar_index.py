"""The index of a tar that others wrote: a row for each of its samples, and their labels."""

import hashlib
from dataclasses import dataclass

import numpy as np

from mixer_dist.data.manifest import INDEX_ROW, Index
from mixer_dist.data.members import IMAGE_TYPES, BadSampleError, labels_of
from mixer_dist.data.tar_headers import TarError
from mixer_dist.data.tar_spans import TarReader, TarSample, tar_samples
from mixer_dist.sections import Section

Labels = tuple[int, ...] | None
"""A sample's classes; None where it has no label that can be read."""


class IndexOptions(Section):
    """What decides the rows of an index."""

    headers_only: bool = False
    """Jump over images: quick, but CRCs and the tar's SHA-256 stay unknown."""
    fraction: float = 1.0
    """Of the samples, chosen by their keys: a smaller fraction lies within a larger one."""
    skip_without_image: bool = False
    """Leave out samples without an image, which are an error otherwise."""


@dataclass(frozen=True)
class TarIndex:
    """What was found in a tar."""

    rows: Index
    labels: tuple[Labels, ...]
    """One entry a row."""
    num_without_image: int
    """Samples left out."""


def index_tar(tar: TarReader, options: IndexOptions) -> TarIndex:
    """Walk a tar from its first header to its end mark; TarError where it cannot be trusted."""
    rows: list[tuple[int, int, int]] = []
    labels: list[Labels] = []
    num_images = num_without_image = 0
    for sample in tar_samples(tar):
        if sample.members.keys().isdisjoint(IMAGE_TYPES):
            num_without_image += 1
            _check_skipped(sample, options)
        else:
            num_images += 1
            if is_in_fraction(sample.key, options.fraction):
                labels.append(own_labels(sample))
                crc32 = tar.crc32(sample.begin, sample.end)
                rows.append((sample.begin, sample.end - sample.begin, crc32))
        tar.forget(sample.end)
    if not num_images:
        raise TarError(f"no images; expected members of type {', '.join(IMAGE_TYPES)}")
    return TarIndex(np.array(rows, INDEX_ROW), tuple(labels), num_without_image)


def own_labels(sample: TarSample) -> Labels:
    """The labels in a sample's own members."""
    try:
        return tuple(labels_of(sample.labels))
    except BadSampleError:
        return None


def is_in_fraction(key: str, fraction: float) -> bool:
    """Whether a key's hash, a number from 0 to 1, lies below the fraction."""
    digest = hashlib.blake2b(key.encode("utf-8", "surrogateescape"), digest_size=8).digest()
    return int.from_bytes(digest, "big") < fraction * 2**64


def _check_skipped(sample: TarSample, options: IndexOptions) -> None:
    if not options.skip_without_image:
        raise TarError(
            f"{sample.key}: no image among {', '.join(m.name for m in sample.members.values())}; "
            "--skip-without-image leaves such samples out"
        )
