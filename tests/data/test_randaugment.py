"""RandAugment gives the official code's bits, oddities included.

Every expected value is what big_vision's pp/archive/autoaugment.py (as of 2022, unchanged up to
2025) gave in a tf.data pipeline: TensorFlow 2.12.1 with TF_ENABLE_ONEDNN_OPTS=0, TensorFlow Addons
0.20.0, NumPy 1.23.5.
"""

import hashlib

import numpy as np
import pytest
import torch

from mixer_dist.data import image_operations
from mixer_dist.data.randaugment import DRAWS_PER_LAYER, NAMES, OPERATIONS, randaugment
from mixer_dist.data.randomness import Purpose, uniforms

HEIGHT, WIDTH = 170, 230
MAGNITUDES = (3, 10, 15, 20, 30)
FOUND = {
    "AutoContrast": ["0d2d08f2209ab1a0"],
    "Equalize": ["b582704454607c1c"],
    "Invert": ["928c8bba3f01ab9d"],
    "Rotate": [
        "2b1fa05405f98510", "2da8b2093ac385f7", "d13b40a3c42e5abc",
        "69003c70fc103ed7", "d059227aa6397057",
    ],
    "Posterize": [
        "d862b7f32ffbd9fc", "1ebe8d3c6c65dc23", "24f2ebe5e74bec35",
        "273f6ea0e9213583", "d862b7f32ffbd9fc",
    ],
    "Solarize": [
        "b31d2152ab81d60e", "928c8bba3f01ab9d", "2c914ab5a0bf1a2e",
        "928c8bba3f01ab9d", "928c8bba3f01ab9d",
    ],
    "Color": [
        "29bc88943d115fc6", "e7711902bc1f3303", "1c6961861b7ab52c",
        "c2289cce65afaf06", "f8e80d1605c9d091",
    ],
    "Contrast": [
        "f742f15c3a26eae7", "73291df26d9296be", "b381e587a6c6b09c",
        "f93681b549862b32", "c3d068784d0dd047",
    ],
    "Brightness": [
        "ac67dddf1ef4f7ee", "f2300da11b66f750", "0e796284f4f04fc4",
        "c2c2caf147c9d824", "2abe0663aa568565",
    ],
    "Sharpness": [
        "54c3483eec2e974b", "ffbe0a15e4d5a3ce", "dd4c138001065068",
        "c32c5dc3c3094d2a", "d7e7e1f631529023",
    ],
    "ShearX": [
        "0055ac5b2b6fe876", "e4c004ba2170bbc2", "01c2019958973635",
        "9d5ee96ed84b3e8d", "5f2b85d79f2127af",
    ],
    "ShearY": [
        "454f52847b436ef8", "2cf43e4d00c70aaa", "087ef92e4e810ded",
        "baa68a70d596a0d3", "8d7cd0020397762c",
    ],
    "TranslateX": [
        "785bf489b236e5fa", "04d9c5439f94a7cc", "a45e866c1c4a158b",
        "7f42a1556151300d", "c8b5737388359187",
    ],
    "TranslateY": [
        "f736eded2d88e0f7", "4f3deefcfddbdeb5", "ab38896fdc5157e3",
        "c8b5737388359187", "c8b5737388359187",
    ],
    "Cutout": [
        "e5c662553c238c41", "c9c51954882c138c", "cca2b19a5913c683",
        "1377cc26a7e442dc", "83c67d50d2af0157",
    ],
    "SolarizeAdd": [
        "d2cbed8965241e78", "cec263ed85bbc512", "6c821eed16781494",
        "c8036cb8f782c7d1", "ab03761e2612aa12",
    ],
}  # fmt: skip
SIGNED = ("Rotate", "ShearX", "ShearY", "TranslateX", "TranslateY")


def rough() -> np.ndarray:
    """An image (3, H, W) in which all neighbours differ."""
    channel, row, column = np.ogrid[:3, :HEIGHT, :WIDTH]
    values = row * row * 3 + column * column * 5 + row * column * 7 + channel * 31
    return (values % 256).astype(np.uint8)


def smooth() -> np.ndarray:
    """Gradients and stripes (3, H, W)."""
    channel, row, column = np.ogrid[:3, :HEIGHT, :WIDTH]
    return (40 + row + 2 * column // (1 + channel) + row // 8 % 2 * 9).astype(np.uint8)


def row_of(*values: int) -> np.ndarray:
    """A grey image of one row."""
    return np.tile(np.array(values, np.uint8), (3, 1, 1))


def digest(images: list[np.ndarray]) -> str:
    """The first 16 hex digits of the SHA-256 of all pixels."""
    return hashlib.sha256(b"".join(image.tobytes() for image in images)).hexdigest()[:16]


def test_the_operations_stand_in_the_official_order():
    assert NAMES == (
        "AutoContrast", "Equalize", "Invert", "Rotate", "Posterize", "Solarize", "Color",
        "Contrast", "Brightness", "Sharpness", "ShearX", "ShearY", "TranslateX", "TranslateY",
        "Cutout", "SolarizeAdd",
    )  # fmt: skip


@pytest.mark.parametrize("name", NAMES)
def test_each_operation_gives_the_official_bits(name):
    first_draws = (0.8, 0.2) if name in SIGNED else (0.8,)  # as it is, and negated
    found = [
        digest([
            OPERATIONS[name](image, magnitude / 10, np.array([first, 0.3]))
            for image in (rough(), smooth())
            for first in first_draws
        ])
        for magnitude in MAGNITUDES[: len(FOUND[name])]
    ]  # fmt: skip
    assert found == FOUND[name]


def test_a_row_of_operations_gives_the_official_bits():
    """Two operations of magnitude 15 on each of 200 positions."""
    image = torch.from_numpy(rough())
    draws = uniforms(3, np.arange(200), Purpose.RANDAUGMENT, 2 * DRAWS_PER_LAYER)
    made = [randaugment(image, 15, each).numpy() for each in draws]
    assert digest(made) == "e95b23b6aa2f6500"
    drawn = {NAMES[int(which * len(NAMES))] for which in draws[:, ::DRAWS_PER_LAYER].ravel()}
    assert drawn == set(NAMES)


def test_the_official_solarize_wraps_its_threshold():
    """Beyond 255 it is not without effect, as one would think: at 10 and 20 it inverts all."""
    shades = (0, 1, 60, 127, 128, 129, 200, 255)
    inverted, half = [255, 254, 195, 128, 127, 126, 55, 0], [0, 1, 60, 127, 127, 126, 55, 0]
    for magnitude, expected in [(10, inverted), (15, half), (20, inverted)]:
        found = OPERATIONS["Solarize"](row_of(*shades), magnitude / 10, np.zeros(2))
        assert found[0, 0].tolist() == expected


def test_the_official_contrast_is_around_a_grey_that_the_size_gives():
    shades = range(0, 256, 32)
    found = image_operations.contrast(row_of(*shades), 2.8)
    assert found[0, 0].tolist() == [0, 89, 179, 255, 255, 255, 255, 255]
    large = np.full((3, 300, 300), 200, np.uint8)
    assert (image_operations.contrast(large, 1.9) == 150).all()  # 255 - 1.9 * 55


def test_the_official_sharpness_leaves_the_border():
    shades = np.add.outer([0, 40, 10, 90, 255], [0, 100, 30]).clip(0, 255).astype(np.uint8)
    image = np.stack([shades] * 3)
    found = OPERATIONS["Sharpness"](image, 1.5, np.zeros(2))
    assert found[0, :, 1].tolist() == [100, 240, 135, 244, 255]
    assert (found[:, :, [0, 2]] == image[:, :, [0, 2]]).all()


@pytest.mark.parametrize("name", NAMES)
def test_an_image_is_not_changed_itself_and_may_lie_in_memory_as_it_likes(name):
    rows_first = torch.from_numpy(rough())
    pixels_first = rows_first.permute(1, 2, 0).contiguous().permute(2, 0, 1)
    draws = np.array([(NAMES.index(name) + 0.5) / len(NAMES), 0.3, 0.6])
    made = randaugment(pixels_first, 15, draws)
    assert torch.equal(made, randaugment(rows_first, 15, draws))
    assert made.dtype == torch.uint8 and made.shape == rows_first.shape
    assert not torch.equal(made, rows_first)
    assert (rows_first.numpy() == rough()).all() and (pixels_first.numpy() == rough()).all()


def test_no_layers_change_nothing():
    image = torch.from_numpy(rough())
    none = randaugment(image, 15, np.empty(0))
    assert torch.equal(none, image)
