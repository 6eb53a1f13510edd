"""Every kind of image that a folder may hold becomes RGB pixels, or is refused with a reason."""

import io
import warnings

import numpy as np
import pytest
from PIL import Image

from mixer_dist.data.decode import decode_image, image_type


def picture() -> np.ndarray:
    """A smooth uint8 image (20, 30, 3), so that JPEG stays close to it."""
    rows, columns = np.mgrid[0:20, 0:30]
    return np.stack([rows * 10, columns * 8, 100 + 0 * rows], axis=2).astype(np.uint8)


def encode(mode: str, kind: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(picture()).convert(mode).save(buffer, kind, **options)
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("mode", "kind", "options"),
    [
        ("RGB", "JPEG", {"quality": 95}),
        ("RGB", "JPEG", {"quality": 95, "progressive": True}),
        ("CMYK", "JPEG", {"quality": 95}),
        ("RGB", "PNG", {}),
        ("RGBA", "PNG", {}),
        ("P", "PNG", {}),
        ("P", "PNG", {"transparency": bytes([255, 0] * 8)}),
        ("RGB", "WEBP", {"quality": 95}),
        ("RGBA", "WEBP", {"lossless": True}),
    ],
)
def test_colours_come_out_as_they_went_in(mode, kind, options):
    data = encode(mode, kind, **options)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        pixels = decode_image(data)
    expected = np.asarray(Image.fromarray(picture()).convert(mode).convert("RGB"))
    assert pixels.dtype == np.uint8 and pixels.shape == (20, 30, 3) and pixels.flags.writeable
    assert np.abs(pixels.astype(int) - expected).mean() < 6
    assert image_type(data) == {"JPEG": "jpg", "PNG": "png", "WEBP": "webp"}[kind]


@pytest.mark.parametrize(
    ("mode", "kind"), [("L", "JPEG"), ("L", "PNG"), ("LA", "PNG"), ("1", "PNG")]
)
def test_grey_becomes_three_equal_channels(mode, kind):
    pixels = decode_image(encode(mode, kind))
    expected = np.asarray(Image.fromarray(picture()).convert(mode).convert("L"))
    assert pixels.shape == (20, 30, 3) and not np.ptp(pixels, axis=2).any()
    assert np.abs(pixels[:, :, 0].astype(int) - expected).mean() < 3


def test_16_bit_grey_keeps_its_shades():
    grey = picture()[:, :, 0]
    buffer = io.BytesIO()
    Image.fromarray(grey.astype(np.uint16) * 257).save(buffer, "PNG")
    assert (decode_image(buffer.getvalue()) == grey[:, :, None]).all()


def test_what_libjpeg_only_warns_of_is_read():
    data = encode("RGB", "JPEG")
    scan = data.index(b"\xff\xda")
    assert decode_image(data[:scan] + b"junk" + data[scan:]).shape == (20, 30, 3)


JPEG, PNG = encode("RGB", "JPEG"), encode("RGB", "PNG")
FRAME = JPEG.index(b"\xff\xc0") + 5


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "empty"),
        (b"hello, world", "neither JPEG"),
        (encode("RGB", "GIF"), "neither JPEG"),
        (JPEG[:-60], "truncated"),
        (JPEG[:300], "."),
        (b"\xff\xd8\xff", "damaged header"),
        (JPEG[:FRAME] + b"\xff\xdc\xff\xdc" + JPEG[FRAME + 4 :], "exceeds limit"),
        (PNG[:-30], "."),
        (PNG[:40], "."),
        (PNG[:60] + b"\0\0\0\0" + PNG[64:], "."),
        (encode("RGB", "WEBP")[:80], "."),
    ],
)
def test_damage_is_refused_with_a_reason_on_one_line(data, reason):
    with pytest.raises(ValueError, match=reason) as caught:
        decode_image(data)
    assert "\n" not in str(caught.value)
