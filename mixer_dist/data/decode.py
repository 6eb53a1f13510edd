"""Compressed images to pixels: simplejpeg for JPEG, Pillow for whatever it does not read."""

import io
from typing import Any

import numpy as np
import simplejpeg
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

Pixels = NDArray[np.uint8]

MAX_PIXELS = 178_956_970  # where Pillow refuses too: damaged headers ask for terabytes
_PILLOW_FORMATS = ("JPEG", "PNG", "WEBP")


def image_type(data: bytes) -> str:
    """jpg, png or webp, by the content and not by a file's name; ValueError for all else."""
    if data[:3] == b"\xff\xd8\xff":
        return "jpg"
    if data[:8] == b"\x89PNG\r\n\x1a\n":
        return "png"
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        return "webp"
    raise ValueError("empty file" if not data else "neither JPEG, PNG nor WebP")


def decode_image(data: bytes) -> Pixels:
    """The image as uint8 (H, W, 3) RGB; ValueError with the reason where that cannot be done."""
    if image_type(data) == "jpg":
        try:
            return _decode_jpeg(data)
        except ValueError:
            pass  # CMYK, or an irregularity that Pillow reads over
    return _decode_with_pillow(data)


def _decode_jpeg(data: bytes) -> Pixels:
    height, width, _, _ = simplejpeg.decode_jpeg_header(data)
    if height * width > MAX_PIXELS:
        raise ValueError(f"{width} x {height} pixels are too many")
    pixels: Pixels = simplejpeg.decode_jpeg(data, "RGB")
    return pixels


def _decode_with_pillow(data: bytes) -> Pixels:
    try:
        with Image.open(io.BytesIO(data), formats=_PILLOW_FORMATS) as image:
            return _rgb(image)
    except UnidentifiedImageError as error:  # its own message names an object in memory
        raise ValueError("damaged header") from error
    except Exception as error:  # damaged files make Pillow raise almost anything
        raise ValueError(" ".join(str(error).split()) or type(error).__name__) from error


def _rgb(image: Image.Image) -> Pixels:
    if image.mode.startswith("I"):  # 16-bit grey, which convert() would clip to white
        grey: NDArray[Any] = np.asarray(image)
        return np.repeat((grey >> 8).astype(np.uint8)[:, :, None], 3, axis=2)
    if "transparency" in image.info:
        image = image.convert("RGBA")  # a palette's alpha otherwise warns on every image
    return np.array(image.convert("RGB"))  # a copy, since Pillow's own memory is read-only
