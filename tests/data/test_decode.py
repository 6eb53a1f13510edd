"""Every kind of image that a folder may hold becomes RGB pixels, or is refused with a reason."""

import io
import warnings

import numpy as np
import pytest
from PIL import Image

from mixer_dist.data.decode import EncodedImage, decode_image, image_type


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
        (JPEG[:FRAME] + b"\xff\xdc\xff\xdc" + JPEG[FRAME + 4 :], "pixels are too many"),
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


def oriented(orientation: int, kind: str) -> bytes:
    """A picture of 48 x 32 whose quarters differ, stored as a camera would that was turned."""
    quarters = np.array([[0, 80], [160, 240]], np.uint8).repeat(16, 0).repeat(24, 1)
    exif = Image.Exif()
    exif[0x0112] = orientation
    buffer = io.BytesIO()
    picture = Image.fromarray(np.repeat(quarters[:, :, None], 3, 2))
    options = {} if kind == "PNG" else {"quality": 95}
    picture.save(buffer, kind, exif=exif, **options)
    return buffer.getvalue()


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_images_come_out_upright(kind, orientation):
    """As every viewer shows them, by the EXIF standard's eight orientations."""
    data = oriented(orientation, kind)
    corners = {  # upper left, upper right, lower left, lower right
        1: (0, 80, 160, 240), 2: (80, 0, 240, 160), 3: (240, 160, 80, 0), 4: (160, 240, 0, 80),
        5: (0, 160, 80, 240), 6: (160, 0, 240, 80), 7: (240, 80, 160, 0), 8: (80, 240, 0, 160),
    }[orientation]  # fmt: skip
    pixels = decode_image(data)
    assert pixels.shape == ((48, 32, 3) if orientation > 4 else (32, 48, 3))
    assert EncodedImage(data).size == pixels.shape[:2]
    found = pixels[[2, 2, -3, -3], [2, -3, 2, -3], 0]
    assert np.abs(found.astype(int) - corners).max() <= 6


@pytest.mark.parametrize("orientation", [1, 6])
@pytest.mark.parametrize("reduction", [2, 4, 8])
def test_a_jpeg_may_be_decoded_smaller(orientation, reduction):
    data = oriented(orientation, "JPEG")
    whole, small = decode_image(data), EncodedImage(data).decode(reduction)
    assert small.shape[:2] == tuple(-(-side // reduction) for side in whole.shape[:2])
    away_from_edges = small[[0, 0, -1, -1], [0, -1, 0, -1], 0].astype(int)
    assert np.abs(away_from_edges - whole[[2, 2, -3, -3], [2, -3, 2, -3], 0]).max() <= 12


def test_damaged_exif_leaves_the_image_as_it_is_stored():
    data = bytearray(oriented(6, "JPEG"))
    at = max(data.find(b"MM\0*"), data.find(b"II*\0"))
    data[at + 4 : at + 20] = b"\xff" * 16
    assert decode_image(bytes(data)).shape == (32, 48, 3)


def test_a_bomb_is_refused_before_it_is_decoded():
    """A small file that would fill gigabytes."""
    buffer = io.BytesIO()
    Image.new("1", (20_000, 20_000)).save(buffer, "PNG")
    assert len(buffer.getvalue()) < 100_000
    with pytest.raises(ValueError, match="limit"):
        decode_image(buffer.getvalue())
