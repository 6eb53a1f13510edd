"""The perceptual hash: copies are near, others far, and the nearest is found among very many."""

import time

import numpy as np
import pytest
from PIL import Image

from mixer_dist.data.perceptual_hash import nearest, perceptual_hash
from tests.data_tools.sources import scene_pixels


def distance(a: np.ndarray, b: np.ndarray) -> int:
    return (perceptual_hash(a) ^ perceptual_hash(b)).bit_count()


@pytest.mark.parametrize("size", [(60, 80), (240, 320), (100, 100), (64, 48)])
def test_another_size_is_near(size):
    for seed in range(20):
        pixels = scene_pixels(seed)
        resized = np.array(Image.fromarray(pixels).resize(size[::-1], Image.Resampling.LANCZOS))
        assert distance(pixels, resized) <= 4


def test_other_images_are_far():
    hashes = [perceptual_hash(scene_pixels(seed)) for seed in range(60)]
    distances = [(a ^ b).bit_count() for i, a in enumerate(hashes) for b in hashes[:i]]
    assert min(distances) >= 10 and 28 < np.mean(distances) < 36


def test_half_of_the_bits_are_set_and_a_known_answer_stays():
    rows, columns = np.ogrid[:32, :32]
    grey = (rows * rows * 7 + columns * 13 + rows * columns) % 256
    found = perceptual_hash(grey[:, :, None].repeat(3, axis=2).astype(np.uint8))
    assert found.bit_count() == 32
    assert f"{found:016x}" == "840fef0d4c0fcb4d"


def test_the_nearest_of_100_000_takes_well_under_a_decoding():
    hashes = np.random.default_rng(0).integers(0, 2**64, 100_000, np.uint64)
    wanted = int(hashes[77_777]) ^ 0b1011
    began = time.process_time()
    for _ in range(50):
        assert nearest(hashes, wanted) == (77_777, 3)
    assert time.process_time() - began < 0.5
