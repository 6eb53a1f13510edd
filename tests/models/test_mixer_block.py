"""What a block costs: matrix products, copies, and what it keeps for its gradients.

B batch, S tokens, C channels.
"""

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from tests.models.tiny_mixer import tiny_model

PRODUCTS = ("mm", "addmm", "bmm", "mkldnn::_linear_pointwise")


class Operations(TorchDispatchMode):
    """Collects the operations that run, each as (name, elements of its result)."""

    def __init__(self):
        super().__init__()
        self.seen = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        size = result.numel() if isinstance(result, Tensor) else 0
        self.seen.append((function._schema.name.removeprefix("aten::"), size))
        return result


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])  # oneDNN may take fp32's
def test_a_block_copies_no_activation_and_multiplies_twelve_times(dtype):
    block = tiny_model((8, 12), dtype).blocks[0]
    x = torch.randn(6, 2, 16, dtype=dtype, requires_grad=True)  # (S, B, C)
    gradient = torch.randn(6, 2, 16, dtype=dtype)
    with Operations() as operations:
        block(x).backward(gradient)
    copies = {"clone", "copy_", "_to_copy", "contiguous", "permute"}
    assert not [name for name, size in operations.seen if name in copies and size >= x.numel()]
    products = [name for name, _ in operations.seen if name in PRODUCTS]
    assert len(products) == 4 * 3  # each map forward, and backward for its input and its weight


def test_a_block_keeps_half_of_its_activations():
    """Of x, LayerNorm(x), the hidden layer and its GELU, twice each, the first and third."""
    block = tiny_model((8, 12)).blocks[0]
    x = torch.randn(6, 2, 16, dtype=torch.float64, requires_grad=True)
    parameters = {p.untyped_storage().data_ptr() for p in block.parameters()}
    kept = {}

    def pack(tensor):
        kept[tensor.untyped_storage().data_ptr()] = tensor.numel()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        block(x)
    num_tokens, batch, channels = x.shape
    tokens_mlp_dim, channels_mlp_dim = (
        mlp.fc1.weight.shape[0] for mlp in (block.token_mixing, block.channel_mixing)
    )
    hidden = tokens_mlp_dim * batch * channels + num_tokens * batch * channels_mlp_dim
    small = 2 * 2 * (num_tokens * batch + channels)  # means, deviations, norms' parameters
    elements = sum(size for pointer, size in kept.items() if pointer not in parameters)
    assert elements <= 2 * x.numel() + hidden + small
