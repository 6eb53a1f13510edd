"""A crop decoded alone holds the very pixels that it holds in the whole image."""

import io

import numpy as np
import pytest
import simplejpeg
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from PIL import Image

from mixer_dist.data import jpeg_crop
from mixer_dist.data.augment import training_image
from mixer_dist.data.decode import EncodedImage, decode_image
from mixer_dist.data.jpeg_crop import Crop, decode_jpeg_crop

SUBSAMPLINGS = ("444", "422", "420", "440", "411", "Gray")


def noise(height: int, width: int, seed: int = 0) -> np.ndarray:
    """A picture in which every pixel differs from its neighbours, so that a shift shows."""
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)


def encoded(pixels: np.ndarray, subsampling: str, quality: int = 90) -> bytes:
    colorspace = "GRAY" if subsampling == "Gray" else "RGB"
    pixels = pixels[:, :, :1].copy() if subsampling == "Gray" else pixels
    return simplejpeg.encode_jpeg(pixels, quality, colorspace, subsampling)


@settings(max_examples=400, deadline=None)
@given(
    size=st.tuples(st.integers(1, 90), st.integers(1, 90)),
    corners=st.tuples(*[st.floats(0, 1)] * 4),
    subsampling=st.sampled_from(SUBSAMPLINGS),
    is_progressive=st.booleans(),
    reduction=st.sampled_from([1, 2, 4, 8]),
)
def test_pixels_are_those_of_the_whole_image(size, corners, subsampling, is_progressive, reduction):
    assume(reduction == 1 or max(size) > 8)  # fewer need other fractions
    data = encoded(noise(*size), subsampling)
    if is_progressive:
        data = progressive(data)
    whole = simplejpeg.decode_jpeg(
        data, "RGB", min_height=-(-size[0] // reduction), min_width=-(-size[1] // reduction),
        min_factor=reduction,
    )  # fmt: skip
    crop = crop_between(*whole.shape[:2], *corners)
    top, left, height, width = crop
    found = decode_jpeg_crop(data, crop, reduction)
    assert (found == whole[top : top + height, left : left + width]).all()


def progressive(data: bytes) -> bytes:
    buffer = io.BytesIO()
    Image.open(io.BytesIO(data)).save(buffer, "JPEG", quality="keep", progressive=True)
    return buffer.getvalue()


def crop_between(height: int, width: int, *corners: float) -> Crop:
    """Some crop of an image, of a pixel at least."""
    rows = sorted(int(corner * (height - 1)) for corner in corners[:2])
    columns = sorted(int(corner * (width - 1)) for corner in corners[2:])
    return Crop(rows[0], columns[0], rows[1] - rows[0] + 1, columns[1] - columns[0] + 1)


@pytest.mark.parametrize("kind", ["JPEG", "CMYK", "PNG", "turned"])
@pytest.mark.parametrize("reduction", [1, 2])
def test_every_kind_of_image_can_be_cropped(kind, reduction):
    buffer, exif = io.BytesIO(), Image.Exif()
    if kind == "turned":
        exif[0x0112] = 6
    image = Image.fromarray(noise(60, 80)).convert("CMYK" if kind == "CMYK" else "RGB")
    image.save(buffer, "PNG" if kind == "PNG" else "JPEG", exif=exif)
    one = EncodedImage(buffer.getvalue())
    whole = one.decode(reduction)
    times = one.size[0] / whole.shape[0]
    crop = Crop(20, 10, 16, 24)
    expected = whole[int(20 / times) : int(36 / times), int(10 / times) : int(34 / times)]
    assert (EncodedImage(buffer.getvalue()).decode_crop(crop, reduction) == expected).all()


def test_without_the_library_the_whole_image_is_decoded(monkeypatch):
    data = encoded(noise(60, 80), "420")
    crop = Crop(11, 23, 30, 31)
    alone = EncodedImage(data).decode_crop(crop)
    monkeypatch.setattr(jpeg_crop, "_library", lambda: None)
    assert (EncodedImage(data).decode_crop(crop) == alone).all()


def test_the_library_is_there():
    """Else the others would compare whole images with whole images."""
    assert decode_jpeg_crop(encoded(noise(60, 80), "420"), Crop(11, 23, 30, 31), 1).size


@pytest.mark.parametrize("crop", [Crop(50, 0, 11, 80), Crop(0, 70, 60, 11)])
def test_a_crop_outside_the_image_is_refused(crop):
    with pytest.raises(ValueError, match="in an image of 60 x 80"):
        decode_jpeg_crop(encoded(noise(60, 80), "420"), crop, 1)


def test_damage_in_the_crop_is_refused():
    data = encoded(noise(60, 80), "420")
    cut = data[: len(data) // 2]
    with pytest.raises(ValueError, match="truncated"):
        EncodedImage(cut).decode_crop(Crop(0, 0, 60, 80))


def test_damage_below_the_crop_costs_no_sample():
    data = encoded(noise(60, 80), "420")
    top = decode_image(data)[:16]
    assert (EncodedImage(data[: len(data) * 3 // 4]).decode_crop(Crop(0, 0, 16, 80)) == top).all()


def test_mutated_images_are_read_or_refused():
    rng = np.random.default_rng(0)
    data = encoded(noise(60, 80), "420")
    for _ in range(2000):
        damaged = bytearray(data)
        for at in rng.integers(0, len(data), rng.integers(1, 5)):
            damaged[at] = rng.integers(256)
        try:
            found = decode_jpeg_crop(bytes(damaged), Crop(8, 9, 33, 34), 1)
        except ValueError:
            continue
        assert found.shape == (33, 34, 3)


def test_smaller_copies_show_the_same_part():
    """A smooth picture, so that only a shift or another part would show."""
    rows, columns = np.mgrid[:960, :1280]
    image = np.stack([rows / 960, columns / 1280, (rows + columns) / 2240], -1) * 255
    data = encoded(image.round().astype(np.uint8), "444", 98)
    whole, half, quarter = (
        training_image(
            EncodedImage(data).decode_crop(Crop(101, 203, 700, 651), times), 80, flip=False
        )
        for times in (1, 2, 4)
    )
    assert (whole.int() - half.int()).abs().max() <= 2
    assert (whole.int() - quarter.int()).abs().max() <= 2
