"""Compressed images to upright pixels: simplejpeg for JPEG, Pillow for all it does not read."""

import io
from typing import Any

import numpy as np
import simplejpeg
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError

from mixer_dist.data.jpeg_crop import Crop, decode_jpeg_crop

Pixels = NDArray[np.uint8]

MAX_PIXELS = 89_478_485  # where Pillow warns of a bomb: 268 MB a decoded image
REDUCTIONS = (8, 4, 2)  # that a JPEG decoder applies at less than the cost of the whole image

_PILLOW_FORMATS = ("JPEG", "PNG", "WEBP")
_EXIF_ORIENTATION = 0x0112
_APP1, _START_OF_SCAN = 0xE1, 0xDA


def image_type(data: bytes) -> str:
    """jpg, png or webp, by the content and not by a file's name; ValueError for all else."""
    if data[:3] == b"\xff\xd8\xff":
        return "jpg"
    if data[:8] == b"\x89PNG\r\n\x1a\n":
        return "png"
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        return "webp"
    raise ValueError("empty file" if not data else "neither JPEG, PNG nor WebP")


class EncodedImage:
    """A compressed image whose size is known; ValueError with the reason where it is damaged."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._pixels: Pixels | None = None
        self._orientation = 1
        if image_type(data) != "jpg" or not self._read_jpeg_header():
            self._pixels = _decode_with_pillow(data)
        self.size: tuple[int, int] = self._upright_size()
        """(height, width) of the upright image."""

    def decode(self, reduction: int = 1) -> Pixels:
        """The upright image as uint8 (H, W, 3) RGB; ValueError with the reason where that fails.

        With a reduction of 2, 4 or 8 a JPEG comes out that many times smaller, rounded up.
        """
        if self._pixels is None:
            try:
                return self._decode_jpeg(reduction)
            except ValueError:  # CMYK, or an irregularity that Pillow reads over
                self._pixels = _decode_with_pillow(self._data)
        return self._pixels

    def decode_crop(self, crop: Crop, reduction: int = 1) -> Pixels:
        """The crop of the upright image, as `decode` gives it, with no more decoded than needed.

        Damage in a JPEG below the crop goes unnoticed.
        """
        if self._pixels is None and self._orientation == 1:
            height, width = (-(-side // reduction) for side in self.size)
            try:
                return decode_jpeg_crop(
                    self._data, _of_copy(crop, self.size, height, width), reduction
                )
            except ValueError:  # decode() says what is wrong, or reads it all the same
                pass
        pixels = self.decode(reduction)
        top, left, height, width = _of_copy(crop, self.size, *pixels.shape[:2])
        return pixels[top : top + height, left : left + width]

    def _read_jpeg_header(self) -> bool:
        """Whether its size could be read, else it is left to Pillow."""
        try:
            height, width, _, _ = simplejpeg.decode_jpeg_header(self._data)
        except ValueError:
            return False
        _check_pixels(height, width)
        self._stored_size = height, width
        self._orientation = _orientation(self._data)
        return True

    def _upright_size(self) -> tuple[int, int]:
        if self._pixels is not None:
            height, width, _ = self._pixels.shape
            return height, width
        height, width = self._stored_size
        return (width, height) if self._orientation in _SIDEWAYS else (height, width)

    def _decode_jpeg(self, reduction: int) -> Pixels:
        least = [-(-side // reduction) for side in self._stored_size]
        pixels: Pixels = simplejpeg.decode_jpeg(
            self._data, "RGB", min_height=least[0], min_width=least[1], min_factor=reduction
        )
        if self._orientation == 1:
            return pixels
        return np.ascontiguousarray(_UPRIGHT[self._orientation](pixels))


def _of_copy(crop: Crop, size: tuple[int, int], height: int, width: int) -> Crop:
    """A crop of an image of `size` in a copy that is (height, width)."""
    down, along = height / size[0], width / size[1]
    top, left = int(crop.top * down), int(crop.left * along)
    bottom = max(top + 1, round((crop.top + crop.height) * down))
    right = max(left + 1, round((crop.left + crop.width) * along))
    return Crop(top, left, bottom - top, right - left)


def decode_image(data: bytes) -> Pixels:
    """The upright image as uint8 (H, W, 3) RGB; ValueError with the reason where that fails."""
    return EncodedImage(data).decode()


def _decode_with_pillow(data: bytes) -> Pixels:
    try:
        with Image.open(io.BytesIO(data), formats=_PILLOW_FORMATS) as image:
            _check_pixels(image.height, image.width)
            return _rgb(ImageOps.exif_transpose(image))
    except UnidentifiedImageError as error:  # its own message names an object in memory
        raise ValueError("damaged header") from error
    except Exception as error:  # damaged files make Pillow raise almost anything
        raise ValueError(" ".join(str(error).split()) or type(error).__name__) from error


def _check_pixels(height: int, width: int) -> None:
    if height * width > MAX_PIXELS:
        raise ValueError(f"{width} x {height} pixels are too many, the limit is {MAX_PIXELS:,}")


def _rgb(image: Image.Image) -> Pixels:
    if image.mode.startswith("I"):  # 16-bit grey, which convert() would clip to white
        grey: NDArray[Any] = np.asarray(image)
        return np.repeat((grey >> 8).astype(np.uint8)[:, :, None], 3, axis=2)
    if "transparency" in image.info:
        image = image.convert("RGBA")  # a palette's alpha otherwise warns on every image
    return np.array(image.convert("RGB"))  # a copy, since Pillow's own memory is read-only


_UPRIGHT = {
    2: lambda pixels: pixels[:, ::-1],
    3: lambda pixels: pixels[::-1, ::-1],
    4: lambda pixels: pixels[::-1],
    5: lambda pixels: pixels.swapaxes(0, 1),
    6: lambda pixels: pixels.swapaxes(0, 1)[:, ::-1],
    7: lambda pixels: pixels.swapaxes(0, 1)[::-1, ::-1],
    8: lambda pixels: pixels.swapaxes(0, 1)[::-1],
}
"""What turns pixels upright, by their EXIF orientation."""

_SIDEWAYS = (5, 6, 7, 8)


def _orientation(jpeg: bytes) -> int:
    """EXIF orientation of a JPEG, 1 to 8; 1, upright, where there is none that can be read."""
    block = _exif_block(jpeg)
    if not block:
        return 1
    exif = Image.Exif()
    try:
        exif.load(block)
        orientation = exif.get(_EXIF_ORIENTATION)
    except Exception:  # noqa: BLE001, damaged tags make Pillow raise almost anything
        return 1
    return orientation if orientation in _UPRIGHT else 1


def _exif_block(jpeg: bytes) -> bytes:
    """The EXIF segment among those before a JPEG's pixels, empty where there is none."""
    at = 2
    while jpeg[at : at + 1] == b"\xff" and at + 4 <= len(jpeg):
        marker, length = jpeg[at + 1], int.from_bytes(jpeg[at + 2 : at + 4], "big")
        if marker == _APP1 and jpeg[at + 4 : at + 10] == b"Exif\0\0":
            return jpeg[at + 4 : at + 2 + length]
        if marker == _START_OF_SCAN:
            break
        at += 2 + length
    return b""
