"""Crops, resizing, flips, mixup and depth masks: the official distributions, and pure functions."""

import hashlib
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from mixer_dist.data import augment
from mixer_dist.data.augment import (
    depth_masks,
    draw,
    inception_crop,
    mixup_lambda,
    reduction_for,
    resized,
    resized_as_evaluated,
)
from mixer_dist.data.jpeg_crop import Crop
from mixer_dist.data.randomness import Purpose, uniforms
from tests.data.handmade import augmented

the_same_cases = settings(derandomize=True, database=None, deadline=None, max_examples=50)

SIDES = st.one_of(st.integers(1, 40), st.integers(41, 3000))


def picture(height: int, width: int) -> np.ndarray:
    """An image (H, W, 3) in which all neighbours differ, the same wherever it is computed."""
    rows, columns, channels = np.ogrid[:height, :width, :3]
    values = rows * rows * 3 + columns * columns * 5 + rows * columns * 7 + channels * 31
    return (values % 256).astype(np.uint8)


def crops(height: int, width: int, num_draws: int, min_area: float = 0.05) -> np.ndarray:
    """(n, 4) of top, left, height, width at as many positions."""
    drawn = draw(0, np.arange(num_draws))
    return np.array([inception_crop(height, width, draws, min_area) for draws in drawn])


def crop_at(height: int, width: int, seed: int, position: int, min_area: float) -> Crop:
    [draws] = draw(seed, np.array([position]))
    return inception_crop(height, width, draws, min_area)


# TensorFlow 2.21's sampler gives 0.342 and 0.296 over 40,000 crops and more; to draw the area
# uniformly, as torchvision does, would give 0.416 and 0.376.
@pytest.mark.parametrize(
    ("height", "width", "mean_area"), [(300, 400, 0.340), (500, 333, 0.299)]
)  # fmt: skip
def test_crops_are_as_large_as_the_official_ones(height, width, mean_area):
    found = crops(height, width, 6000)
    areas, ratios = found[:, 2] * found[:, 3] / (height * width), found[:, 3] / found[:, 2]
    assert areas.mean() == pytest.approx(mean_area, abs=0.006)
    assert ratios.mean() == pytest.approx(1.0385, abs=0.004)
    assert areas.min() >= 0.05 and areas.max() <= 1


def test_crops_have_the_official_ratios():
    """0.75 to 1.33: on an image so large that whole pixels hardly matter."""
    found = crops(6000, 6000, 1500)
    ratios = found[:, 3] / found[:, 2]
    assert 0.7495 < ratios.min() < 0.753 and 1.327 < ratios.max() < 1.3305


def test_crops_lie_anywhere_in_the_image():
    found = crops(300, 400, 1500)
    room = np.array([300, 400]) - found[:, 2:]
    shares = found[:, :2][(room > 20).all(1)] / room[(room > 20).all(1)]
    assert np.abs(shares.mean(0) - 0.5).max() < 0.03
    assert shares.min() < 0.01 and shares.max() > 0.95


@the_same_cases
@given(SIDES, SIDES, st.integers(0, 2**40), st.floats(0.001, 0.999))
@example(1, 1, 0, 0.05)
@example(1, 3000, 0, 0.05)
@example(3000, 1, 0, 0.9)
@example(2, 3, 5, 0.999)
def test_every_crop_lies_inside_its_image(height, width, position, min_area):
    top, left, tall, wide = crop_at(height, width, 0, position, min_area)
    assert 0 <= top <= top + tall <= height and tall > 0
    assert 0 <= left <= left + wide <= width and wide > 0
    assert tall * wide >= min_area * height * width


def test_a_crop_that_fits_nowhere_is_the_whole_image():
    assert crop_at(1, 3000, 0, 0, 0.05) == (0, 0, 1, 3000)


# The first 16 hex digits of the SHA-256 of what tf.image.resize(image, (resize, resize),
# method="bilinear", antialias=False), cast to uint8, gives around its centre (TensorFlow 2.21).
@pytest.mark.parametrize(
    ("height", "width", "resize_px", "crop_px", "expected"),
    [
        (300, 400, 256, 224, "ff6021d8f48151f1"),
        (500, 333, 256, 224, "c862012e257ff851"),
        (480, 640, 512, 448, "ecfd895565db328d"),
        (224, 224, 256, 224, "293ba54b58bfc5aa"),
        (32, 32, 37, 32, "6703b3c062414212"),
        (1, 7, 16, 16, "bbc595fccee7d7b3"),
        # Here the order of the roundings shows: torch has other values in 21 places.
        (500, 375, 300, 300, "c7660ca1414e27dd"),
        (375, 500, 300, 300, "117f1acbda60c3c1"),
    ],
)
def test_evaluation_images_are_tensorflows_to_the_bit(height, width, resize_px, crop_px, expected):
    image = resized_as_evaluated(picture(height, width), resize_px, crop_px)
    assert image.shape == (3, crop_px, crop_px) and image.dtype == torch.uint8
    data = image.permute(1, 2, 0).contiguous().numpy().tobytes()
    assert hashlib.sha256(data).hexdigest()[:16] == expected


def exactly_resized(image: np.ndarray, size: int) -> np.ndarray:
    """Bilinear weights around half-pixel centres as matrices, in float64, nothing truncated."""

    def weights(old: int) -> np.ndarray:
        at = np.clip((np.arange(size) + 0.5) * old / size - 0.5, 0, old - 1)
        return np.maximum(0, 1 - np.abs(at[:, None] - np.arange(old)))

    height, width, _ = image.shape
    return np.einsum("yh,xw,hwc->yxc", weights(height), weights(width), image, optimize=True)


@pytest.mark.parametrize(("old", "new"), [(64, 32), (32, 64), (48, 96), (40, 10), (16, 16)])
def test_evaluation_resize_is_bilinear_truncated_where_its_weights_are_exact(old, new):
    """At powers of two float32 rounds nothing, so that plain mathematics gives the same bits."""
    image = picture(old, old)
    expected = np.floor(exactly_resized(image, new)).astype(np.uint8)
    assert (resized_as_evaluated(image, new, new).permute(1, 2, 0).numpy() == expected).all()


def test_evaluation_resize_rounds_otherwise_only_beside_whole_numbers():
    """In float32, as TensorFlow computes, a value a hair below a whole number may reach it."""
    image = picture(300, 400)
    exact = exactly_resized(image, 256)
    found = resized_as_evaluated(image, 256, 256).permute(1, 2, 0).numpy()
    differing = found != np.floor(exact)
    assert differing.mean() < 1e-3
    assert np.abs(exact - np.round(exact))[differing].max(initial=0) < 1e-3


@pytest.mark.parametrize(
    ("height", "width", "resize_px"), [(300, 400, 256), (31, 45, 37), (50, 50, 37), (17, 1001, 73)]
)
def test_evaluation_resize_leaves_flat_images_as_they_are(height, width, resize_px):
    """Weights that sum to just below 1, as torch's do at 37 px, would make pixels darker."""
    for shade in range(0, 256, 5):
        image = np.full((height, width, 3), shade, np.uint8)
        assert (resized_as_evaluated(image, resize_px, 32) == shade).all()


def test_training_resize_takes_every_pixel_into_account():
    """Antialiased: a fine checkerboard becomes grey, where plain bilinear keeps its contrast."""
    board = np.indices((256, 256)).sum(0)[:, :, None] % 2 * np.full(3, 255)
    small = resized(board.astype(np.uint8), 37)[:, 2:-2, 2:-2]
    assert small.dtype == torch.uint8
    assert abs(small.float().mean() - 127.5) < 2 and small.float().std() < 12


@pytest.mark.parametrize(("height", "width"), [(1, 1), (1, 900), (700, 2), (33, 32), (32, 32)])
def test_any_image_becomes_a_training_image(height, width):
    image = augmented(picture(height, width), 32, 0, 3, 0.05, flip=True)
    assert image.shape == (3, 32, 32) and image.dtype == torch.uint8


def test_training_images_are_a_function_of_seed_and_position():
    def at(seed: int, position: int) -> bytes:
        made = augmented(picture(60, 80), 32, seed, position, 0.05, flip=True)
        return made.contiguous().numpy().tobytes()

    assert at(1, 10**12) == at(1, 10**12)
    assert len({at(seed, position) for seed in range(4) for position in range(8)}) == 32


def test_a_training_image_is_the_crop_resized_then_flipped():
    image = picture(60, 80)
    for position in range(20):
        top, left, tall, wide = crop_at(60, 80, 5, position, 0.3)
        expected = resized(image[top : top + tall, left : left + wide], 24)
        if draw(5, np.array([position]))[0].is_flipped:
            expected = expected.flip(2)
        found = augmented(image, 24, 5, position, 0.3, flip=True)
        assert torch.equal(found, expected)


def test_without_cropping_and_flipping_the_image_stays():
    image = picture(32, 32)
    for position in range(10):
        same = augmented(image, 32, 0, position, 1.0, flip=False)
        assert (same.permute(1, 2, 0).numpy() == image).all()


def test_the_draws_of_many_positions_are_those_of_each():
    positions = np.array([3, 10**12, 0, 7])
    assert draw(5, positions) == [draw(5, positions[n : n + 1])[0] for n in range(4)]


def test_a_crop_after_many_attempts_needs_no_more_luck_than_one_drawn_at_once():
    """Beyond the draws made for a whole batch, further ones continue the same sequence."""
    [draws] = draw(0, np.array([11]))
    longer = replace(draws, crop=uniforms(0, [11], Purpose.CROP, 400)[0].tolist())
    with pytest.MonkeyPatch.context() as patch:
        found = inception_crop(40, 400, draws, 0.62)
        patch.setattr(augment, "FIRST_ATTEMPTS", 100)
        assert inception_crop(40, 400, longer, 0.62) == found


def test_large_photos_are_decoded_small_where_twice_the_pixels_are_left():
    crops = [(223, 999), (895, 896), (896, 896), (1792, 2000), (3584, 3584), (9000, 9000)]
    assert [reduction_for(Crop(0, 0, *c), 224) for c in crops] == [1, 1, 2, 4, 8, 8]


def test_every_second_image_is_flipped_without_a_pattern():
    flipped = np.array([draws.is_flipped for draws in draw(0, np.arange(10_000))])
    assert flipped.mean() == pytest.approx(0.5, abs=0.02)
    assert (flipped[1:] == flipped[:-1]).mean() == pytest.approx(0.5, abs=0.02)
    assert (flipped[:500] != [each.is_flipped for each in draw(1, np.arange(500))]).mean() > 0.4


# The mean of max(a, 1 - a) for a from Beta(p, p).
@pytest.mark.parametrize(("p", "mean"), [(0.5, 0.818), (0.2, 0.899), (0.8, 0.7715), (1.0, 0.75)])
def test_mixup_keeps_the_share_that_beta_gives(p, mean):
    shares = np.array([mixup_lambda(0, step, p) for step in range(4000)])
    assert shares.mean() == pytest.approx(mean, abs=0.008)
    assert shares.min() >= 0.5 and shares.max() <= 1


def test_without_mixup_an_image_keeps_all():
    assert {mixup_lambda(seed, step, 0.0) for seed in range(3) for step in range(5)} == {1.0}


def test_mixup_depends_on_seed_and_step():
    shares = [mixup_lambda(seed, step, 0.5) for seed in range(5) for step in range(20)]
    assert len(set(shares)) == 100
    assert shares[:20] == [mixup_lambda(0, step, 0.5) for step in range(20)]
    assert mixup_lambda(0, 0, 0.001) == pytest.approx(1.0)  # many draws underflow before one counts


def test_depth_masks_drop_each_branch_at_its_own_rate():
    """Two masks a block, each 0 or 1; the first block is never dropped (big_vision)."""
    rates = np.array([0.0, 0.1, 0.4])
    masks = depth_masks(0, np.arange(20_000), rates)
    assert masks.shape == (3, 2, 20_000) and masks.dtype == torch.uint8
    assert set(masks.unique().tolist()) == {0, 1}
    dropped = 1 - masks.double().mean(2).numpy()
    assert np.abs(dropped - rates[:, None]).max() < 0.015 and (dropped[0] == 0).all()
    kept = masks[1:].flatten(0, 1).numpy()
    assert np.abs(np.corrcoef(kept) - np.eye(4)).max() < 0.03


def test_depth_masks_are_a_function_of_seed_and_position():
    rates = np.linspace(0, 0.5, 6)
    masks = depth_masks(3, np.arange(100), rates)
    assert torch.equal(depth_masks(3, np.arange(40, 60), rates), masks[..., 40:60])
    assert not torch.equal(depth_masks(4, np.arange(100), rates), masks)
    assert depth_masks(3, np.array([7, -1]), rates).shape == (6, 2, 2)  # -1 is filling
