"""Images made smaller before training: antialiased, and encoded as JPEG anew."""

from typing import Literal

import numpy as np
import simplejpeg

from mixer_dist.data.decode import Pixels


def shrink(pixels: Pixels, short_side_px: int, quality: int) -> bytes:
    """The image as a JPEG whose short side has so many pixels.

    Colours at half resolution, as in most photos: as close to the original as full ones at the
    same file size, and a fifth faster to decode (benchmarks/results/sharding.md).
    """
    height, width, _ = pixels.shape
    scale = short_side_px / min(height, width)
    smaller = resize(pixels, round(height * scale), round(width * scale), "bicubic")
    data: bytes = simplejpeg.encode_jpeg(smaller, quality, colorspace="RGB", colorsubsampling="420")
    return data


def resize(pixels: Pixels, height: int, width: int, mode: Literal["bilinear", "bicubic"]) -> Pixels:
    """uint8 (H, W, 3) at another size, antialiased."""
    import torch  # here, because a tool's --help need not wait for it

    # (1, 3, H, W), stored as whole pixels: torch is three times as fast on that as on other layouts
    image = torch.from_numpy(np.ascontiguousarray(pixels))[None].permute(0, 3, 1, 2)
    resized = torch.nn.functional.interpolate(image, (height, width), mode=mode, antialias=True)
    return np.ascontiguousarray(resized[0].permute(1, 2, 0).numpy())
