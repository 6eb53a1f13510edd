"""The change of resolution: exact at the start, refused where the paper gives no rule."""

import pytest
import torch

from mixer_dist.models import npz
from mixer_dist.models.mixer import MlpMixer, build_mixer, num_multiply_adds
from mixer_dist.models.resolution import change_resolution, part_order
from tests.models import reference

# Parameters without a head, and multiply-adds with 1,000 classes, at 448 pixels.
ENLARGED_COUNTS = {
    "S/32": (21_609_504, 5.2413),
    "S/16": (30_068_352, 20.0388),
    "B/32": (66_313_776, 17.1104),
    "B/16": (86_227_392, 67.0520),
    "L/32": (224_018_016, 59.8076),
    "L/16": (279_475_584, 237.3777),
    "H/14": (588_442_368, 645.0171),
}
TINY = {
    "patch_size": 2,
    "hidden_dim": 8,
    "num_blocks": 3,
    "tokens_mlp_dim": 5,
    "channels_mlp_dim": 12,
    "num_classes": 7,
}


def tiny_model(dtype=torch.float64):
    """A model for 4 x 6 images (6 tokens in a 2 x 3 grid) with every parameter random."""
    model = MlpMixer((4, 6), **TINY, head_bias=-3.0).to(dtype)
    model.load_state_dict(
        npz.from_official(reference.random_parameters(num_tokens=6, seed=5, **TINY))
    )
    return model


@pytest.mark.parametrize("factor", [1, 2, 3])
def test_logits_of_the_enlarged_model_are_the_mean_over_the_parts(factor):
    model = tiny_model()
    images = torch.randn(2, 3, 4 * factor, 6 * factor, dtype=torch.float64)
    parts = [
        model(part) for strip in images.chunk(factor, dim=2) for part in strip.chunk(factor, dim=3)
    ]
    logits = change_resolution(model, (4 * factor, 6 * factor))(images)
    torch.testing.assert_close(logits, torch.stack(parts).mean(0), rtol=0, atol=1e-12)


@pytest.mark.parametrize("variant", ENLARGED_COUNTS)
def test_enlarged_counts_are_the_known_ones(variant):
    num_parameters, giga_multiply_adds = ENLARGED_COUNTS[variant]
    with torch.device("meta"):
        enlarged = change_resolution(build_mixer(variant, 0), 448)
    assert sum(parameter.numel() for parameter in enlarged.parameters()) == num_parameters
    dimensions = {**enlarged.dimensions, "num_classes": 1000}
    assert num_multiply_adds(**dimensions) / 1e9 == pytest.approx(giga_multiply_adds, abs=5e-5)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_head_dtype_and_mode_are_kept_and_nothing_is_shared(dtype):
    model = tiny_model(dtype).eval()
    enlarged = change_resolution(model, (8, 12))
    assert {parameter.dtype for parameter in enlarged.parameters()} == {dtype}
    assert torch.equal(enlarged.head.weight, model.head.weight)
    assert torch.equal(enlarged.head.bias, model.head.bias)
    assert enlarged.head_bias == -3.0
    assert not enlarged.training
    assert all(parameter.requires_grad for parameter in enlarged.parameters())
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with torch.no_grad():
        for parameter in enlarged.parameters():
            parameter.add_(1)
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())


def test_part_order_lists_the_tokens_of_each_part_together():
    # The 4 x 6 grid of tokens, cut into four parts of 2 x 3.
    parts = part_order((2, 3), 2).view(4, 6).tolist()
    assert parts == [
        [0, 1, 2, 6, 7, 8],
        [3, 4, 5, 9, 10, 11],
        [12, 13, 14, 18, 19, 20],
        [15, 16, 17, 21, 22, 23],
    ]


@pytest.mark.parametrize("image_size", [(6, 9), (8, 6), (4, 12), (2, 3), 8])
def test_other_than_one_whole_factor_is_refused_with_the_reason(image_size):
    with pytest.raises(ValueError, match=r"K times \(4, 6\).*cut into K x K parts.*choose"):
        change_resolution(tiny_model(), image_size)


def test_a_headless_model_can_be_enlarged():
    model = MlpMixer(4, **{**TINY, "num_classes": 0})
    assert change_resolution(model, 8)(torch.ones(1, 3, 8, 8)).shape == (1, 8)
