"""A stage that a user might write, and that breaks the promise: it draws its noise anew."""

from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np

NOISE = np.random.default_rng()  # another one in each process


def add_noise(samples: Iterable[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """Change every pixel at random."""
    for sample in samples:
        image = sample["image"]
        yield sample | {"image": image // 2 + NOISE.integers(0, 128, image.shape, image.dtype)}
