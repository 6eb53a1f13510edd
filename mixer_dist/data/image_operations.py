"""The sixteen operations of RandAugment, bit for bit as the official code's TensorFlow runs them.

The official code is big_vision's pp/archive/autoaugment.py, whose float32 arithmetic is repeated
here in its order, oddities included. Images are uint8 (3, H, W), at least 3 x 3 pixels.
"""

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

Image = NDArray[np.uint8]
Places = NDArray[np.int64]
Mask = NDArray[np.bool_]
Weights = Sequence[float | np.float32]

FILL = np.uint8(128)
BYTES = np.arange(256, dtype=np.uint8)
GREY_WEIGHTS = np.array([0.2989, 0.5870, 0.1140], np.float32)


def invert(image: Image) -> Image:
    """The negative."""
    return 255 - image


def looked_up(image: Image, tables: Image) -> Image:
    """Each byte replaced by what a table (256,), or its channel's of (3, 256), has for it."""
    tables = np.broadcast_to(tables, (3, 256))
    return np.stack([table.take(plane) for table, plane in zip(tables, image, strict=True)])


def autocontrast(image: Image) -> Image:
    """Each channel stretched to 0 … 255."""
    return looked_up(image, np.stack([_stretching_table(plane) for plane in image]))


def _stretching_table(plane: Image) -> Image:
    low, high = np.float32(plane.min()), np.float32(plane.max())
    if low == high:
        return BYTES
    scale = np.float32(255) / (high - low)
    return _truncated(BYTES * scale + -low * scale)


def equalize(image: Image) -> Image:
    """Each channel's shades spread so that its histogram becomes flat."""
    return looked_up(image, np.stack([_flattening_table(plane) for plane in image]))


def _flattening_table(plane: Image) -> Image:
    counts = np.bincount(plane.ravel(), minlength=256)
    step = (plane.size - counts[plane.max()]) // 255
    if step == 0:
        return BYTES
    table = BYTES.copy()
    table[0] = 0
    table[1:] = np.minimum((np.cumsum(counts)[:-1] + step // 2) // step, 255)
    return table


def posterize(image: Image, num_bits: int) -> Image:
    """The highest bits kept; TensorFlow shifts by at most 7, also where a shift wraps below 0."""
    shift = np.uint8(min((8 - num_bits) % 256, 7))
    return image >> shift << shift


def solarize(image: Image, threshold: int) -> Image:
    """Bytes from a threshold on inverted.

    The official threshold is a uint8 and wraps: 128 at magnitude 15, 0 (all inverted) at 10 and 20.
    """
    return looked_up(image, np.where(threshold % 256 > BYTES, BYTES, 255 - BYTES))


def solarize_add(image: Image, addition: int) -> Image:
    """Bytes below 128 made lighter."""
    lighter = np.minimum(BYTES.astype(np.int64) + addition, 255).astype(np.uint8)
    return looked_up(image, np.where(BYTES < 128, lighter, BYTES))


def color(image: Image, factor: float) -> Image:
    """More or less colourful."""
    return _blend(_grey(image), image, factor)


def contrast(image: Image, factor: float) -> Image:
    """Farther from, or nearer to, a grey.

    It should be the mean's, but the code of the paper's runs divides the number of pixels by 256:
    196 at 224 px, whatever the image. (A later revision mended it.)
    """
    _, height, width = image.shape
    grey = np.full_like(BYTES, min(height * width // 256, 255))
    return looked_up(image, _blend(grey, BYTES, factor))


def brightness(image: Image, factor: float) -> Image:
    """Farther from, or nearer to, black."""
    return looked_up(image, _blend(np.zeros_like(BYTES), BYTES, factor))


def sharpness(image: Image, factor: float) -> Image:
    """Farther from, or nearer to, a smoothed image; the border stays as it is."""
    smooth = image.copy()
    for plane, smooth_plane in zip(image, smooth, strict=True):
        smooth_plane[1:-1, 1:-1] = _smoothed(plane)[:, :-2]
    return _blend(smooth, image, factor)


def _smoothed(plane: Image) -> Image:
    """Weighted means of 3 x 3 neighbours (H - 2, W); the last two columns mean nothing.

    Summed in float32 from the top left and truncated: 52 of 256 shades come out darker by one.
    """
    height, width = plane.shape
    flat = np.append(plane.ravel(), BYTES[:2])  # neighbours of flat bytes are slices, and fast
    outer = flat * (np.float32(1) / np.float32(13))
    centre = flat * (np.float32(5) / np.float32(13))
    total = np.zeros((height - 2) * width, np.float32)
    for offset in (row * width + column for row in range(3) for column in range(3)):
        weighted = centre if offset == width + 1 else outer
        total += weighted[offset : offset + total.size]
    return _truncated(total).reshape(-1, width)


def rotate(image: Image, degrees: float) -> Image:
    """Turned around the centre."""
    _, height, width = image.shape
    radians = np.float32(degrees) * np.float32(math.pi / 180)
    cos, sin = np.float32(math.cos(radians)), np.float32(math.sin(radians))
    right, bottom = np.float32(width - 1), np.float32(height - 1)
    x_offset = (right - (cos * right - sin * bottom)) / np.float32(2)
    y_offset = (bottom - (sin * right + cos * bottom)) / np.float32(2)
    return transform(image, (cos, -sin, x_offset), (sin, cos, y_offset))


def shear(image: Image, slope_x: float, slope_y: float) -> Image:
    """Slanted along an axis."""
    return transform(image, (1, slope_x, 0), (slope_y, 1, 0))


def translate(image: Image, x_px: float, y_px: float) -> Image:
    """Moved to the left and up."""
    return transform(image, (1, 0, x_px), (0, 1, y_px))


def transform(image: Image, x_from: Weights, y_from: Weights) -> Image:
    """The pixel at (x, y) comes from x * a + y * b + c, a triple an axis; FILL from outside."""
    _, height, width = image.shape
    columns, is_column = _nearest(x_from, height, width, width)
    rows, is_row = _nearest(y_from, height, width, height)
    is_inside = is_column & is_row
    places = rows * width + columns
    places *= is_inside  # any place will do for those outside
    return np.where(is_inside, image.reshape(3, -1).take(places, axis=1), FILL)


def _nearest(weights: Weights, height: int, width: int, size: int) -> tuple[Places, Mask]:
    """Indices into an axis of a size, halves away from zero, and which are inside it.

    Both are (H, W), or (1, W) or (H, 1) where x or y alone decides.
    """
    *slopes, start = map(np.float32, weights)
    ramps = np.arange(width, dtype=np.float32)[None], np.arange(height, dtype=np.float32)[:, None]
    moving = [ramp * slope for ramp, slope in zip(ramps, slopes, strict=True) if slope]
    at = np.asarray(sum(moving)) + start
    rounded = at + np.float64(0.5)  # in float32, 0.49999997 would become 1
    return rounded.astype(np.int64), (at > -0.5) & (at < size - 0.5)


def cutout(image: Image, half_px: int, row: int, column: int) -> Image:
    """A square of FILL around a pixel, as far as it lies in the image."""
    cut = image.copy()
    top, left = max(0, row - half_px), max(0, column - half_px)
    cut[:, top : row + half_px, left : column + half_px] = FILL
    return cut


def _blend(degenerate: Image, image: Image, factor: float) -> Image:
    """From `degenerate` (factor 0) to the image (1) and beyond."""
    start = degenerate.astype(np.float32)
    mixed = image - start
    mixed *= np.float32(factor)  # in place, since new memory costs more than the arithmetic
    mixed += start
    return _truncated(mixed)


def _grey(image: Image) -> Image:
    """Luminance (H, W), over [0, 1] as tf.image.rgb_to_grayscale computes it."""
    red, green, blue = image * np.float32(1 / 255)
    weighted = red * GREY_WEIGHTS[0] + green * GREY_WEIGHTS[1] + blue * GREY_WEIGHTS[2]
    return _truncated(weighted * np.float32(255.5))


def _truncated(values: NDArray[np.float32]) -> Image:
    return values.clip(0, 255, out=values).astype(np.uint8)
