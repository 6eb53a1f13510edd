"""A crop of a JPEG, decoded alone: the rest is read over, which saves a third of the time.

What simplejpeg does not offer, by the C interface of libjpeg-turbo 3 (turbojpeg.h).
"""

import ctypes
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from ctypes import POINTER, c_char_p, c_int, c_size_t, c_ubyte, c_void_p
from ctypes.util import find_library
from functools import cache
from importlib.metadata import PackageNotFoundError, files
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

_DECOMPRESS, _SUBSAMPLING, _WIDTH, _HEIGHT, _RGB = 1, 4, 5, 6, 0
_BLOCK_WIDTHS = (8, 16, 16, 8, 8, 32, 8)  # of 4:4:4, 4:2:2, 4:2:0, grey, 4:4:0, 4:1:1, 4:4:1

logger = logging.getLogger(__name__)


class Crop(NamedTuple):
    """A rectangle of an image, in pixels."""

    top: int
    left: int
    height: int
    width: int


class _Region(ctypes.Structure):
    _fields_ = [(name, c_int) for name in ("x", "y", "width", "height")]


class _Fraction(ctypes.Structure):
    _fields_ = [(name, c_int) for name in ("numerator", "denominator")]


def decode_jpeg_crop(data: bytes, crop: Crop, reduction: int) -> NDArray[np.uint8]:
    """The same pixels (height, width, 3) that decoding the whole JPEG would give there.

    The crop is one of the image `reduction` times smaller. ValueError where that is damaged, too
    small or of an unusual kind, and where the library is missing.
    """
    library = _library()
    if library is None:
        raise ValueError("libjpeg-turbo 3 is missing")
    with _decompressor(library) as handle:
        _check(library, handle, library.tj3DecompressHeader(handle, data, len(data)))
        first, last = _columns(library, handle, crop, reduction)
        region = _Region(first, crop.top, last - first, crop.height)
        _check(library, handle, library.tj3SetScalingFactor(handle, _Fraction(1, reduction)))
        _check(library, handle, library.tj3SetCroppingRegion(handle, region))
        pixels = np.empty((crop.height, last - first, 3), np.uint8)
        into = pixels.ctypes.data_as(POINTER(c_ubyte))
        _check(library, handle, library.tj3Decompress8(handle, data, len(data), into, 0, _RGB))
    return pixels[:, crop.left - first : crop.left - first + crop.width]


def _columns(library: ctypes.CDLL, handle: c_void_p, crop: Crop, reduction: int) -> tuple[int, int]:
    """The columns to decode: whole blocks, with a neighbour on both sides that colours blend in."""
    subsampling = library.tj3Get(handle, _SUBSAMPLING)
    width = -(-library.tj3Get(handle, _WIDTH) // reduction)
    height = -(-library.tj3Get(handle, _HEIGHT) // reduction)
    if not 0 <= subsampling < len(_BLOCK_WIDTHS):
        raise ValueError("an unusual subsampling of colours")
    if crop.left + crop.width > width or crop.top + crop.height > height:
        raise ValueError(f"no {crop} in an image of {height} x {width} pixels")
    block = _BLOCK_WIDTHS[subsampling] // reduction
    first = max(0, (crop.left - 1) // block * block)
    return first, min(width, -(-(crop.left + crop.width + 1) // block) * block)


@contextmanager
def _decompressor(library: ctypes.CDLL) -> Iterator[c_void_p]:
    handle = c_void_p(library.tj3Init(_DECOMPRESS))
    try:
        yield handle
    finally:
        library.tj3Destroy(handle)


def _check(library: ctypes.CDLL, handle: c_void_p, status: int) -> None:
    if status:
        raise ValueError(library.tj3GetErrorStr(handle).decode(errors="replace"))


@cache
def _library() -> ctypes.CDLL | None:
    """libjpeg-turbo 3 of the package turbojpeg, else of the system, None where neither is there."""
    name = _bundled() or find_library("turbojpeg")
    try:
        library = ctypes.CDLL(name or "libturbojpeg.so.0")
        return _declared(library)
    except (OSError, AttributeError):  # none, or one before version 3
        logger.info("libjpeg-turbo 3 was not found: whole JPEGs are decoded for their crops.")
        return None


def _bundled() -> str:
    """Path of the library in the package turbojpeg, empty where that is not installed."""
    try:
        listed = files("turbojpeg") or []
    except PackageNotFoundError:
        return ""
    return next((str(file.locate()) for file in listed if "libturbojpeg" in file.name), "")


def _declared(library: ctypes.CDLL) -> ctypes.CDLL:
    """The library with the types of its functions; AttributeError where one is missing."""
    library.tj3Init.restype = c_void_p
    library.tj3GetErrorStr.restype = c_char_p
    argument_types = {
        "tj3Init": [c_int],
        "tj3Destroy": [c_void_p],
        "tj3Get": [c_void_p, c_int],
        "tj3GetErrorStr": [c_void_p],
        "tj3DecompressHeader": [c_void_p, c_char_p, c_size_t],
        "tj3SetScalingFactor": [c_void_p, _Fraction],
        "tj3SetCroppingRegion": [c_void_p, _Region],
        "tj3Decompress8": [c_void_p, c_char_p, c_size_t, POINTER(c_ubyte), c_int, c_int],
    }
    for name, types in argument_types.items():
        getattr(library, name).argtypes = types
    return library
