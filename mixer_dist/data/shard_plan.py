"""Which image goes into which shard: split, shuffled and cut by pure functions of the source."""

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import accumulate, groupby

from mixer_dist.data.image_files import ImageFile, ImageSource, LeftOut

_BLOCK = 512  # bytes; a tar consists of such blocks


def fingerprint_plan(source: ImageSource, settings: Mapping[str, object]) -> str:
    """SHA-256 of all that decides the shards: settings, classes, and each image's size and time."""
    digest = hashlib.sha256(json.dumps([settings, source.classes], sort_keys=True).encode())
    for record in (*source.images, *source.left_out):
        digest.update(repr(record).encode() + b"\n")
    return digest.hexdigest()


def without(source: ImageSource, left_out: Sequence[LeftOut]) -> ImageSource:
    """The source less some images, which are noted."""
    paths = {each.path for each in left_out}
    images = tuple(image for image in source.images if image.path not in paths)
    return replace(source, images=images, left_out=(*source.left_out, *left_out))


def split_off(
    images: Sequence[ImageFile], fraction: float
) -> tuple[list[ImageFile], list[ImageFile]]:
    """The rest, and about a fraction by a hash of the path: more images change nobody's side."""
    sides: tuple[list[ImageFile], list[ImageFile]] = ([], [])
    for image in images:
        digest = hashlib.sha256(b"split/" + os.fsencode(image.path)).digest()
        sides[int.from_bytes(digest[:8], "big") < fraction * 2**64].append(image)
    return sides


def shuffle(images: Sequence[ImageFile], seed: int) -> list[ImageFile]:
    """The images by a hash of seed and path: the same order wherever the folder lies."""

    def place(image: ImageFile) -> bytes:
        return hashlib.sha256(b"%d/%b" % (seed, os.fsencode(image.path))).digest()

    return sorted(images, key=place)


def cut(
    images: Sequence[ImageFile], target_bytes: float, shrinkage: float = 1.0
) -> list[list[ImageFile]]:
    """Runs of about equal size, none above the target by more than one image.

    `shrinkage` is what share of its bytes an image keeps.
    """
    if not images:
        return []
    sizes = [tar_bytes(int(image.num_bytes * shrinkage)) for image in images]
    total = sum(sizes)
    num_runs = int(-(-total // target_bytes))
    runs = (start * num_runs // total for start in accumulate(sizes[:-1], initial=0))
    return [
        [image for image, _ in members]
        for _, members in groupby(zip(images, runs, strict=True), key=lambda pair: pair[1])
    ]


def tar_bytes(image_bytes: int) -> int:
    """What a sample takes in a tar: a header and whole blocks for the image and for its class."""
    return 3 * _BLOCK + -(-image_bytes // _BLOCK) * _BLOCK
