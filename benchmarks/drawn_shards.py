"""Shards of drawn JPEGs, for benchmarks that ask how much is read and not what it shows."""

from collections.abc import Iterable, Iterator

import numpy as np
import simplejpeg

from tests.data.handmade import Sample

SIZE_PX = 16


def drawn_shards(
    sizes: Iterable[int], mean_bytes: int = 0, seed: int = 0
) -> Iterator[Iterator[Sample]]:
    """Samples shard by shard, each a small image of noise.

    Filled up after its end to half `mean_bytes` or up to three times as much, as photos vary.
    """
    random = np.random.default_rng(seed)
    return (
        (_sample(f"{shard:05d}-{index:05d}", mean_bytes, random) for index in range(size))
        for shard, size in enumerate(sizes)
    )


def _sample(key: str, mean_bytes: int, random: np.random.Generator) -> Sample:
    pixels = random.integers(0, 256, (SIZE_PX, SIZE_PX, 3), np.uint8)
    jpeg = simplejpeg.encode_jpeg(pixels, 90)
    num_bytes = int(mean_bytes * random.uniform(0.5, 1.5))
    filling = random.bytes(max(0, num_bytes - len(jpeg)))  # which decoders read over
    return key, {"jpg": jpeg + filling, "cls": b"%d" % random.integers(10)}
