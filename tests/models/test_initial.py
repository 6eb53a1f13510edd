"""Initial values: the official distributions, from seed and name alone."""

import math

import pytest
import torch
from torch.nn import functional as F

from mixer_dist.models.initial import initial_value, initialize
from mixer_dist.models.mixer import MlpMixer, build_mixer
from tests.models.tiny_mixer import TINY, random_images, to_torch


def test_initial_logits_equal_the_head_bias_exactly():
    model = MlpMixer((8, 12), **TINY, head_bias=-6.9)
    logits = model(to_torch(random_images((8, 12)), torch.float32))
    assert torch.equal(logits, torch.full_like(logits, -6.9))


def test_initial_losses_are_the_known_ones():
    labels = F.one_hot(torch.tensor([3]), 1000).double()
    sigmoid, softmax = (
        MlpMixer(8, **{**TINY, "num_classes": 1000}, head_bias=bias)(torch.ones(1, 3, 8, 8))
        for bias in (-6.9, 0.0)
    )
    loss = F.binary_cross_entropy_with_logits(sigmoid.double(), labels, reduction="sum")
    assert loss.item() == pytest.approx(7.907, abs=5e-4)
    assert F.cross_entropy(softmax.double(), labels).item() == pytest.approx(math.log(1000))


def test_initial_kernels_are_truncated_lecun_normal_and_the_rest_constant():
    for name, value in build_mixer("S/32", 10).state_dict().items():
        if name.startswith("head.") or name.endswith("bias"):
            assert not value.any(), name
        elif value.dim() == 1:
            assert (value == 1).all(), name
        else:
            deviation = value.std().item()
            assert deviation * math.sqrt(value.shape[1]) == pytest.approx(1, abs=0.02), name
            assert value.abs().max().item() / deviation <= 2.31, name
            assert abs(value.mean().item()) < 0.02 * deviation, name


def test_initial_values_depend_on_seed_and_name_alone():
    small, large = (MlpMixer(8, **{**TINY, "num_blocks": n}).state_dict() for n in (1, 3))
    assert all(torch.equal(small[name], large[name]) for name in small)
    fc1 = [large[f"blocks.{block}.channel_mixing.fc1.weight"] for block in range(3)]
    assert not torch.equal(fc1[0], fc1[1])
    model = MlpMixer(8, **TINY, head_bias=2.0).bfloat16()
    initialize(model, seed=1, head_bias=model.head_bias)
    assert not torch.equal(model.stem.weight, large["stem.weight"].bfloat16())
    assert (model.head.bias == 2).all()
    initialize(model, seed=0, head_bias=model.head_bias)
    assert torch.equal(model.stem.weight, large["stem.weight"].bfloat16())


def test_a_seed_keeps_its_meaning():
    value = initial_value("stem.weight", (2, 3), seed=7, head_bias=0.0)
    expected = torch.tensor([[-0.842194, -0.184185, -0.403320], [0.353478, 0.005870, -0.366055]])
    torch.testing.assert_close(value, expected, rtol=1e-5, atol=1e-6)


def test_building_draws_no_global_random_numbers():
    before = torch.random.get_rng_state()
    MlpMixer(8, **TINY)
    assert torch.equal(torch.random.get_rng_state(), before)
