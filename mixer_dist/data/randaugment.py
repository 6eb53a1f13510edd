"""RandAugment as in the official code: some of sixteen operations, drawn anew for each image.

Every operation drawn is applied: the official code also draws probabilities, and ignores them.
"""

from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray

from mixer_dist.data import image_operations as operations
from mixer_dist.data.image_operations import Image

Uniforms = NDArray[np.float64]
Operation = Callable[[Image, float, Uniforms], Image]

DRAWS_PER_LAYER = 3  # which operation, and two for it


def randaugment(image: torch.Tensor, magnitude: int, draws: ArrayLike) -> torch.Tensor:
    """Operations drawn at random, one after another, on a uint8 (3, H, W).

    `draws` are uniforms in [0, 1), DRAWS_PER_LAYER for each operation.
    """
    pixels = np.ascontiguousarray(image.numpy())
    for layer in np.reshape(draws, (-1, DRAWS_PER_LAYER)):
        name = NAMES[int(layer[0] * len(NAMES))]
        pixels = OPERATIONS[name](pixels, magnitude / 10, layer[1:])
    return torch.from_numpy(pixels)


def _signed(value: float, draws: Uniforms) -> float:
    return value if draws[0] >= 0.5 else -value


def _enhancing(operation: Callable[[Image, float], Image]) -> Operation:
    """A factor that is 1, and changes nothing, at magnitude 5."""
    return lambda image, level, draws: operation(image, level * 1.8 + 0.1)


def _cutout(image: Image, level: float, draws: Uniforms) -> Image:
    _, height, width = image.shape
    row, column = int(draws[0] * height), int(draws[1] * width)
    return operations.cutout(image, int(level * 40), row, column)


# In the official order; a level is the magnitude by ten, and may be above 1.
OPERATIONS: dict[str, Operation] = {
    "AutoContrast": lambda image, level, draws: operations.autocontrast(image),
    "Equalize": lambda image, level, draws: operations.equalize(image),
    "Invert": lambda image, level, draws: operations.invert(image),
    "Rotate": lambda image, level, draws: operations.rotate(image, _signed(level * 30, draws)),
    "Posterize": lambda image, level, draws: operations.posterize(image, int(level * 4)),
    "Solarize": lambda image, level, draws: operations.solarize(image, int(level * 256)),
    "Color": _enhancing(operations.color),
    "Contrast": _enhancing(operations.contrast),
    "Brightness": _enhancing(operations.brightness),
    "Sharpness": _enhancing(operations.sharpness),
    "ShearX": lambda image, level, draws: operations.shear(image, _signed(level * 0.3, draws), 0),
    "ShearY": lambda image, level, draws: operations.shear(image, 0, _signed(level * 0.3, draws)),
    "TranslateX": lambda image, level, draws: operations.translate(
        image, _signed(level * 100, draws), 0
    ),
    "TranslateY": lambda image, level, draws: operations.translate(
        image, 0, _signed(level * 100, draws)
    ),
    "Cutout": _cutout,
    "SolarizeAdd": lambda image, level, draws: operations.solarize_add(image, int(level * 110)),
}
NAMES = tuple(OPERATIONS)
