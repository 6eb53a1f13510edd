"""Blocks of fused kernels against the same blocks in float64, which take no such kernel."""

from copy import deepcopy

import pytest
import torch

from mixer_dist.models import fused
from mixer_dist.models.mixer import MixerBlock

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]

LARGEST_DIFFERENCE = {torch.float32: 2e-6, torch.bfloat16: 2e-2}  # of the largest element


def drawn_block(num_tokens, channels, tokens_mlp_dim, channels_mlp_dim):
    block = MixerBlock(num_tokens, channels, tokens_mlp_dim, channels_mlp_dim).cuda()
    generator = torch.Generator("cuda").manual_seed(0)
    for parameter in block.parameters():
        torch.nn.init.normal_(parameter, std=0.1, generator=generator)
    return block


def pass_through(block, x, masks, gradient):
    """The block's result and the gradients of x and of all parameters, in float64."""
    x = x.detach().requires_grad_()
    result = block(x, masks)
    result.backward(gradient)
    gradients = {name: parameter.grad.double() for name, parameter in block.named_parameters()}
    return {"result": result.detach().double(), "x": x.grad.double(), **gradients}


@pytest.mark.parametrize("dtype", LARGEST_DIFFERENCE)
@pytest.mark.parametrize("is_masked", [False, True])
@pytest.mark.parametrize("sizes", [(49, 512, 256, 2048), (9, 30, 14, 50), (256, 1280, 640, 5120)])
def test_a_block_and_its_gradients_are_those_of_float64(sizes, is_masked, dtype):
    block = drawn_block(*sizes).to(dtype)
    batch = 6
    x, gradient = torch.randn(2, sizes[0], batch, sizes[1], device="cuda", dtype=dtype)
    # As a batch has them: image by image, so that a branch's lie apart.
    masks = torch.randint(2, (batch, 2), device="cuda", dtype=dtype).t() if is_masked else None
    assert fused.is_faster(x)
    found = pass_through(block, x, masks, gradient)
    exact = pass_through(
        deepcopy(block).double(),
        x.double(),
        None if masks is None else masks.double(),
        gradient.double(),
    )
    for name, expected in exact.items():
        difference = (found[name] - expected).abs().max() / expected.abs().max()
        assert difference < LARGEST_DIFFERENCE[dtype], name


def test_the_same_step_gives_the_same_bits():
    block = drawn_block(196, 768, 384, 3072).to(torch.bfloat16)
    x, gradient = torch.randn(2, 196, 8, 768, device="cuda", dtype=torch.bfloat16)
    first = pass_through(block, x, None, gradient)
    block.zero_grad()
    again = pass_through(block, x, None, gradient)
    for name in first:
        assert torch.equal(first[name], again[name]), name


def test_a_block_keeps_x_and_the_hidden_layers():
    block, x = drawn_block(49, 512, 256, 2048), torch.randn(49, 64, 512, device="cuda")
    x.requires_grad_()
    block(x)  # compiles
    before = torch.cuda.memory_allocated()
    result = block(x)
    kept = torch.cuda.memory_allocated() - before - 4 * result.numel()
    hidden = 256 * 64 * 512 + 49 * 64 * 2048
    assert kept < 1.02 * 4 * (x.numel() + hidden)  # x itself was there before
