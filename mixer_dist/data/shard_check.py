"""A shard against its manifest: every byte of the tar, every row of the index, every sample."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
from zlib_ng.zlib_ng import crc32

from mixer_dist.data.decode import decode_image
from mixer_dist.data.labels import load_shard_labels
from mixer_dist.data.manifest import Index, Part, load_index
from mixer_dist.data.members import BadSampleError, image_of, labels_of, read_members
from mixer_dist.data.tar_spans import WholeTar
from mixer_dist.errors import DataError, MissingError, StorageError
from mixer_dist.storage import Storage


@dataclass(frozen=True)
class Damage:
    """What is wrong with a shard, or with one of its samples."""

    shard: str
    index: int | None
    """Of the sample in its shard; None where the shard as a whole is meant."""
    key: str
    """Empty where it is not known."""
    reason: str


@dataclass(frozen=True)
class Checks:
    """What is asked of each sample beside its CRC, its members and its label."""

    num_classes: int | None
    decode: bool


def check_shard(
    storage: Storage, part: Part, checks: Checks, advance: Callable[[int], None]
) -> list[Damage]:
    """All that is wrong with a shard, as far as its bytes can be read."""
    found: list[Damage] = []
    try:
        found.extend(_shard_damages(storage, part, checks, advance))
    except StorageError as error:
        found.append(_of_shard(part, str(error)))
    return found


def _shard_damages(
    storage: Storage, part: Part, checks: Checks, advance: Callable[[int], None]
) -> Iterator[Damage]:
    try:
        num_bytes = storage.size(part.url)
    except MissingError:
        yield _of_shard(part, "missing")
        return
    if num_bytes != part.shard.num_bytes:
        yield _of_shard(part, f"expected {part.shard.num_bytes} bytes, found {num_bytes}")
    tar = WholeTar(storage, part.url, num_bytes, advance)
    yield from _label_damages(storage, part, checks)
    try:
        index = load_index(storage, part)
        _check_rows(index, num_bytes)
    except DataError as error:
        yield _of_shard(part, str(error))
    else:
        yield from _sample_damages(tar, index, part, checks)
    if tar.sha256() != part.shard.sha256 and part.shard.sha256:
        yield _of_shard(part, "its SHA-256 is not the manifest's")


def _check_rows(index: Index, num_bytes: int) -> None:
    """DataError unless the rows lie in the tar one behind the other."""
    begins = index["offset"].astype(np.uint64)
    ends = begins + index["num_bytes"]
    if not len(index):
        return
    if (ends < begins).any() or (begins[1:] < ends[:-1]).any():
        raise DataError("the rows of its index overlap or are out of order")
    if ends[-1] > num_bytes:
        raise DataError(f"its index ends at byte {ends[-1]}, the tar at {num_bytes}")


def _label_damages(storage: Storage, part: Part, checks: Checks) -> Iterator[Damage]:
    """Of the labels file, where there is one."""
    try:
        labels = load_shard_labels(storage, part)
    except DataError as error:
        yield _of_shard(part, str(error))
        return
    for sample in range(part.shard.num_samples if labels else 0):
        assert labels is not None
        if reason := _label_reason(labels.of(sample), checks):
            yield Damage(part.url, sample, "", reason)


def _sample_damages(tar: WholeTar, index: Index, part: Part, checks: Checks) -> Iterator[Damage]:
    for number, row in enumerate(index):
        begin, end = int(row["offset"]), int(row["offset"]) + int(row["num_bytes"])
        span = tar.read(begin, end)
        tar.forget(end)
        is_right = not row["crc32"] or crc32(span) == row["crc32"]
        key = ""
        try:
            members = read_members(span)
            key = str(members["__key__"])
            _check_members(members, checks, is_labelled=part.labels_url is not None)
            reason = ""
        except BadSampleError as error:
            reason = str(error)
        if not is_right or reason:
            yield Damage(part.url, number, key, reason if is_right else "CRC wrong")


def _check_members(members: dict[str, bytes | str], checks: Checks, *, is_labelled: bool) -> None:
    """BadSampleError; `is_labelled`: a labels file has its label."""
    image = image_of(members)
    if not is_labelled and (reason := _label_reason(labels_of(members), checks)):
        raise BadSampleError(reason)
    if checks.decode:
        try:
            decode_image(image)
        except ValueError as error:
            raise BadSampleError(f"not decodable: {error}") from error


def _label_reason(labels: list[int], checks: Checks) -> str:
    """What is wrong with a sample's labels, or nothing."""
    for label in labels:
        if label < 0 or (checks.num_classes is not None and label >= checks.num_classes):
            last = "" if checks.num_classes is None else checks.num_classes - 1
            return f"label {label} is not in 0..{last}"
    return ""


def _of_shard(part: Part, reason: str) -> Damage:
    return Damage(part.url, None, "", reason)
