"""Images that must not be trained on, such as those of test sets, and copies of them."""

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from zlib_ng.zlib_ng import crc32

from mixer_dist.data.decode import Pixels, decode_image
from mixer_dist.data.manifest import Part, load_index
from mixer_dist.data.members import BadSampleError, image_of, read_members
from mixer_dist.data.perceptual_hash import nearest, perceptual_hash
from mixer_dist.errors import DataError
from mixer_dist.storage import Storage


class Fingerprint(NamedTuple):
    """What is kept of an image in another dataset."""

    name: str
    """Its key and shard."""
    sha256: bytes
    perceptual_hash: int | None
    """None where it cannot be decoded."""


@dataclass(frozen=True)
class ExcludedImages:
    """The images of other datasets, ready to be compared with; in any process."""

    names: tuple[str, ...]
    places: dict[bytes, int]
    """Of each content's first place in names."""
    hashed: NDArray[np.int64]
    """Places in names of those that have a perceptual hash."""
    hashes: NDArray[np.uint64]
    max_distance: int
    """Bits by which a copy may differ."""

    def find(self, data: bytes, pixels: Pixels) -> str | None:
        """The excluded image that this one is a copy of, and how it was told."""
        place = self.places.get(hashlib.sha256(data).digest())
        if place is not None:
            return f"same bytes as {self.names[place]}"
        if len(self.hashes):
            place, distance = nearest(self.hashes, perceptual_hash(pixels))
            if distance <= self.max_distance:
                return f"{distance} of 64 bits from {self.names[self.hashed[place]]}"
        return None


def gather(fingerprints: Iterable[Fingerprint], max_distance: int) -> ExcludedImages:
    """One table of them all."""
    every = tuple(fingerprints)
    places: dict[bytes, int] = {}
    for place, each in enumerate(every):
        places.setdefault(each.sha256, place)
    hashed = [place for place, each in enumerate(every) if each.perceptual_hash is not None]
    return ExcludedImages(
        names=tuple(each.name for each in every),
        places=places,
        hashed=np.array(hashed, np.int64),
        hashes=np.array([every[place].perceptual_hash for place in hashed], np.uint64),
        max_distance=max_distance,
    )


def fingerprint_shard(storage: Storage, part: Part) -> list[Fingerprint]:
    """All images of a data shard; DataError where one is damaged."""
    rows = load_index(storage, part)
    tar = storage.read(part.url)
    found = []
    for row in rows:
        span = tar[row["offset"] :][: row["num_bytes"]]
        if row["crc32"] and crc32(span) != row["crc32"]:
            raise DataError(f"{part.url} is damaged at byte {row['offset']}: it excludes nothing")
        found.append(_fingerprint(span, part.url))
    return found


def _fingerprint(span: bytes, url: str) -> Fingerprint:
    try:
        sample = read_members(span)
        data = image_of(sample)
    except BadSampleError as error:
        raise DataError(f"{url}: {error}") from error
    name = " in ".join((str(sample["__key__"]), url))
    return Fingerprint(name, hashlib.sha256(data).digest(), _hash_or_none(data))


def _hash_or_none(data: bytes) -> int | None:
    try:
        return perceptual_hash(decode_image(data))
    except ValueError:
        return None
