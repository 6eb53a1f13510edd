"""Crops, flips, mixup and stochastic-depth masks, each a pure function of (seed, position).

Images are uint8 (H, W, 3) until they are cropped and resized, then (3, S, S).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from math import sqrt

import numpy as np
import torch
from numpy.typing import NDArray

from mixer_dist.data.decode import REDUCTIONS
from mixer_dist.data.jpeg_crop import Crop
from mixer_dist.data.randaugment import DRAWS_PER_LAYER
from mixer_dist.data.randomness import Purpose, uniforms
from mixer_dist.data.resizing import resize

Image = NDArray[np.uint8]
Places = NDArray[np.int64]
Floats = NDArray[np.float32]

ASPECT_RATIOS = (0.75, 1.33)  # TensorFlow's defaults, not 4 / 3
MAX_ATTEMPTS = 100
FIRST_ATTEMPTS = 2  # enough for nearly every crop


@dataclass(frozen=True)
class Draws:
    """What chance holds for one position, as numbers in [0, 1)."""

    seed: int
    position: int
    crop: Sequence[float]
    """Four for each of the first attempts."""
    is_flipped: bool
    operations: Sequence[float] = ()
    """Three for each layer of RandAugment."""


def draw(seed: int, positions: Places, num_layers: int = 0) -> list[Draws]:
    """The draws of many positions at once: a NumPy call costs far more than its numbers."""
    crops = uniforms(seed, positions, Purpose.CROP, 4 * FIRST_ATTEMPTS).tolist()
    flips = (uniforms(seed, positions, Purpose.FLIP, 1)[:, 0] < 0.5).tolist()
    of_layers = num_layers * DRAWS_PER_LAYER
    operations = uniforms(seed, positions, Purpose.RANDAUGMENT, of_layers).tolist()
    columns = zip(positions.tolist(), crops, flips, operations, strict=True)
    return [Draws(seed, *column) for column in columns]


def inception_crop(height: int, width: int, draws: Draws, min_area: float) -> Crop:
    """A random crop, as TensorFlow's sample_distorted_bounding_box draws it.

    The ratio is uniform and then the height, not the area: small crops are likelier than under
    torchvision's RandomResizedCrop. The whole image where no attempt fits.
    """
    for attempt in range(MAX_ATTEMPTS):
        ratio, tall, down, along = _attempt(draws, attempt)
        size = _crop_size(height, width, min_area, ratio, tall)
        if size is not None:
            top = int(down * max(1, height - size[0]))  # the last row never starts a crop
            left = int(along * max(1, width - size[1]))
            return Crop(top, left, *size)
    return Crop(0, 0, height, width)


def _attempt(draws: Draws, attempt: int) -> Sequence[float]:
    if attempt < FIRST_ATTEMPTS:
        return draws.crop[4 * attempt : 4 * attempt + 4]
    more = uniforms(draws.seed, [draws.position], Purpose.CROP, 4 * (attempt + 1))
    numbers: list[float] = more[0, 4 * attempt :].tolist()
    return numbers


def _crop_size(
    height: int, width: int, min_area: float, ratio_draw: float, height_draw: float
) -> tuple[int, int] | None:
    """Crop (height, width) for two draws, or None where rounding breaks the limits."""
    low, high = ASPECT_RATIOS
    ratio = low + ratio_draw * (high - low)
    least_px, most_px = min_area * height * width, 1.0 * height * width
    tallest = round(sqrt(most_px / ratio))
    if round(tallest * ratio) > width:
        tallest = int((width + 0.5 - 1e-7) / ratio)
    tallest = min(tallest, height)
    shortest = min(round(sqrt(least_px / ratio)), tallest)
    tall = shortest + int(height_draw * (tallest - shortest + 1))
    if tall * round(tall * ratio) < least_px:
        tall += 1
    if tall * round(tall * ratio) > most_px:
        tall -= 1
    wide = round(tall * ratio)
    fits = least_px <= tall * wide <= most_px and 0 < tall <= height and 0 < wide <= width
    return (tall, wide) if fits else None


def resized(image: Image, size_px: int) -> torch.Tensor:
    """An antialiased bilinear resize of (H, W, 3) to (3, size_px, size_px), uint8."""
    if image.shape[:2] != (size_px, size_px):
        image = resize(image, size_px, size_px, "bilinear")
    return torch.from_numpy(np.ascontiguousarray(image)).permute(2, 0, 1)


def resized_as_evaluated(image: Image, resize_px: int, crop_px: int) -> torch.Tensor:
    """Resize to a square and take its centre, as the official evaluation does: (3, crop, crop).

    Bilinear with half-pixel centres, without antialiasing, truncated to uint8: bit for bit what
    TensorFlow gives. Torch's interpolate rounds otherwise: at 37 px flat areas come out darker.
    """
    edge = (resize_px - crop_px) // 2
    height, width, _ = image.shape
    above, below, down = _neighbours(height, resize_px, slice(edge, edge + crop_px))
    left, right, along = _neighbours(width, resize_px, slice(edge, edge + crop_px))

    def row(numbers: Places) -> Floats:
        pixels: Floats = image[numbers].astype(np.float32)
        near, far = pixels.take(left, 1), pixels.take(right, 1)
        return near + (far - near) * along[:, None]

    top, bottom = row(above), row(below)
    pixels = (top + (bottom - top) * down[:, None, None]).astype(np.uint8)
    return torch.from_numpy(pixels).permute(2, 0, 1)


def _neighbours(size: int, new_size: int, kept: slice) -> tuple[Places, Places, Floats]:
    """For the kept new pixels of an axis: the two old ones around each, how far it is between."""
    scale = np.float32(size) / np.float32(new_size)
    at = (np.arange(new_size, dtype=np.float32) + np.float32(0.5)) * scale - np.float32(0.5)
    at = at[kept]
    before = np.floor(at)
    low = np.maximum(before, 0).astype(np.int64)
    high = np.minimum(np.ceil(at), size - 1).astype(np.int64)
    return low, high, at - before


def training_crop(height: int, width: int, draws: Draws, min_area: float) -> Crop:
    """The part of an image that training sees; all of it where min_area is 1."""
    if min_area == 1:
        return Crop(0, 0, height, width)
    return inception_crop(height, width, draws, min_area)


def random_square(height: int, width: int, draws: Draws, share: float) -> Crop:
    """A square of a share of the shorter side, anywhere: a resize and a random crop in one."""
    side = max(1, round(min(height, width) * share))
    _, _, down, along = _attempt(draws, 0)
    top, left = int(down * (height - side + 1)), int(along * (width - side + 1))
    return Crop(top, left, side, side)


def reduction_for(crop: Crop, size_px: int) -> int:
    """How many times smaller an image may be decoded for the sake of this crop.

    As long as twice as many pixels as wanted are left: measured on photos, the result is then
    within 46 dB PSNR of decoding the whole image; with fewer left it drops to 35 dB.
    """
    side = min(crop.height, crop.width)
    return next((times for times in REDUCTIONS if side >= 2 * times * size_px), 1)


def training_image(crop: Image, size_px: int, *, flip: bool) -> torch.Tensor:
    """Resize and flip a crop (H, W, 3) to (3, size_px, size_px), uint8."""
    pixels = resized(crop, size_px)
    return pixels.flip(-1) if flip else pixels


def depth_masks(
    seed: int, positions: NDArray[np.int64], rates: NDArray[np.float64]
) -> torch.Tensor:
    """Which branches each image keeps: (num_blocks, 2, n) of {0, 1}, for rates (num_blocks,)."""
    draws = uniforms(seed, positions, Purpose.DEPTH, 2 * len(rates))
    kept = draws.reshape(len(positions), len(rates), 2) >= rates[None, :, None]
    return torch.from_numpy(kept.transpose(1, 2, 0).astype(np.uint8))


def mixup_lambda(seed: int, step: int, p: float) -> float:
    """The larger share of a mixed pair: max(a, 1 - a) with a drawn from Beta(p, p).

    Jöhnk's method, for p up to 1: two powers of uniforms, until their sum is at most 1.
    """
    num_draws = 16
    while p > 0:
        pairs = uniforms(seed, [step], Purpose.MIXUP, num_draws).reshape(-1, 2) ** (1 / p)
        for x, y in pairs:
            if 0 < x + y <= 1:
                a = float(x / (x + y))
                return max(a, 1 - a)
        num_draws *= 2
    return 1.0
