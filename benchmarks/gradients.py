"""python benchmarks/gradients.py [--compile]: gradients of a block of ours beside a plain one's.

The plain block is the paper's formula in PyTorch's own layers, whose gradients autograd finds. In
float64 ours may differ by 1e-10; compiled, in fp32, by 1e-5 of a gradient's largest element. The
compiler needs g++ and about a minute. Prints a Markdown table; ends with 1 where a bar is missed.
"""

import argparse
import sys
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # works from a bare checkout

from mixer_dist.models.fused import LAYER_NORM_EPSILON
from mixer_dist.models.initial import initialize
from mixer_dist.models.mixer import VARIANTS, MixerBlock, Mlp
from mixer_dist.models.recomputed import LazyLayerNorm

NUM_TOKENS, NUM_IMAGES = 196, 2
EXACT_BAR, COMPILED_BAR = 1e-10, 1e-5

Forward = Callable[[Tensor], Tensor]


def main() -> int:
    """Compare and print; 1 where a bar is missed."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--variant", choices=VARIANTS, default="S/16")
    parser.add_argument("--compile", action="store_true", help="compare the compiled block too")
    given = parser.parse_args()
    print("| path | largest difference | of the largest element | bar |\n|---|---|---|---|")
    block = drawn_block(given.variant)
    missed = not is_within("custom, float64", block.double(), block, EXACT_BAR)
    if given.compile:
        compiled = torch.compile(block.float())
        missed |= not is_within("compiled, fp32", block, compiled, COMPILED_BAR)
    return int(missed)


def is_within(name: str, block: MixerBlock, forward: Forward, bar: float) -> bool:
    """Print a row of the table; whether `forward` stays within the bar of the plain block."""
    expected = gradients(block.double(), lambda x: plain_forward(block, x), torch.float64)
    dtype = torch.float64 if bar == EXACT_BAR else torch.float32
    found = gradients(block.to(dtype), forward, dtype)
    differences = [float((a - b).abs().max()) for a, b in zip(found, expected, strict=True)]
    shares = [d / float(b.abs().max()) for d, b in zip(differences, expected, strict=True)]
    print(f"| {name} | {max(differences):.1e} | {max(shares):.1e} | {bar:.0e} |", flush=True)
    return (max(differences) if dtype == torch.float64 else max(shares)) <= bar


def gradients(block: MixerBlock, forward: Forward, dtype: torch.dtype) -> list[Tensor]:
    """In float64, of the input and of each parameter, for drawn gradients of the output."""
    generator = torch.Generator().manual_seed(1)
    shape = (NUM_TOKENS, NUM_IMAGES, block.token_norm.weight.numel())  # (S, B, C)
    x, of_output = torch.randn(2, *shape, generator=generator, dtype=torch.float64).to(dtype)
    x.requires_grad_()
    block.zero_grad()
    forward(x).backward(of_output)
    return [tensor.grad.double() for tensor in (x, *block.parameters())]


def drawn_block(variant: str) -> MixerBlock:
    """A block with values of which none is 0 or 1, as they are in training."""
    sizes = VARIANTS[variant]
    block = MixerBlock(NUM_TOKENS, sizes.hidden_dim, sizes.tokens_mlp_dim, sizes.channels_mlp_dim)
    initialize(block, seed=0, head_bias=0.0)
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for parameter in block.parameters():
            if parameter.dim() == 1:
                parameter.add_(torch.randn(parameter.shape, generator=generator), alpha=0.1)
    return block


def plain_forward(block: MixerBlock, x: Tensor) -> Tensor:
    """The block's output as PyTorch's own layers give it, token mixing on the transposed x."""
    tokens = plain_norm(block.token_norm, x).transpose(0, 2)  # (C, B, S)
    x = x + plain_mlp(block.token_mixing, tokens).transpose(0, 2)
    return x + plain_mlp(block.channel_mixing, plain_norm(block.channel_norm, x))


def plain_norm(norm: LazyLayerNorm, x: Tensor) -> Tensor:
    """LayerNorm over the last axis."""
    return F.layer_norm(x, x.shape[-1:], norm.weight, norm.bias, LAYER_NORM_EPSILON)


def plain_mlp(mlp: Mlp, x: Tensor) -> Tensor:
    """Two linear maps of the last axis."""
    hidden = F.gelu(F.linear(x, mlp.fc1.weight, mlp.fc1.bias), approximate="tanh")
    return F.linear(hidden, mlp.fc2.weight, mlp.fc2.bias)


if __name__ == "__main__":
    sys.exit(main())
