"""GELU by blocks is PyTorch's own GELU, whatever the size, and so is its gradient."""

import pytest
import torch
from torch.nn import functional as F

from mixer_dist.models.gelu import BLOCK, gelu, gelu_and_gradient

SIZES = [(1,), (3, 2, 5), (BLOCK,), (2, BLOCK // 2 + 7)]


def drawn(shape, dtype):
    """x and a gradient, over the range in which GELU bends."""
    generator = torch.Generator().manual_seed(0)
    x, grad = torch.randn(2, *shape, generator=generator, dtype=torch.float64)
    return (4 * x).to(dtype), grad.to(dtype)


def expected(x, grad):
    """PyTorch's own, in float64."""
    x = x.double().clone().requires_grad_()
    value = F.gelu(x, approximate="tanh")
    value.backward(grad.double())
    return value.detach(), x.grad


@pytest.mark.parametrize("shape", SIZES)
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-13), (torch.float32, 1e-5)])
def test_values_and_gradients_are_pytorchs(shape, dtype, tolerance):
    x, grad = drawn(shape, dtype)
    value, of_x = expected(x, grad)
    found, found_of_x = gelu_and_gradient(x, grad.clone())
    assert (found - value).abs().max() < tolerance
    assert (found_of_x - of_x).abs().max() < tolerance


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_what_is_computed_again_is_what_was_computed_before(dtype):
    x, grad = drawn((2, BLOCK // 2 + 7), dtype)
    before = gelu(x)
    assert torch.equal(gelu_and_gradient(x, grad)[0], before)


def test_other_layouts_and_large_values_are_taken_too():
    x = torch.tensor([[-1e4, -30.0, 0.0], [30.0, 1e4, 1.0]])
    value, of_x = gelu_and_gradient(x, torch.ones_like(x))
    assert torch.equal(gelu(x.t()), value.t())
    assert value.tolist()[0] == [0, 0, 0]
    assert value.tolist()[1][:2] == [30, 1e4]
    assert of_x.flatten().tolist()[:5] == [0, 0, 0.5, 1, 1]
