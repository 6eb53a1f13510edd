"""The Mixer's initial values, each parameter a pure function of the seed and its own name."""

import hashlib
import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn


def initialize(model: nn.Module, seed: int, *, head_bias: float) -> None:
    """Set every parameter to the official initial value for `seed`, in the model's own dtype."""
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            value = initial_value(name, parameter.shape, seed=seed, head_bias=head_bias)
            parameter.copy_(value)


def initial_value(name: str, shape: Sequence[int], *, seed: int, head_bias: float) -> Tensor:
    """Return one parameter's initial value as an fp32 CPU tensor, a pure function of the arguments.

    Kernels: LeCun normal, cut at two sigma; head kernel and biases: 0; LayerNorm: 1 and 0; head
    bias: `head_bias` (google-research/big_vision, models/mlp_mixer.py and train.py).
    """
    if name == "head.bias":
        return torch.full(tuple(shape), head_bias, dtype=torch.float32, device="cpu")
    if name == "head.weight" or name.endswith(".bias"):
        return torch.zeros(tuple(shape), dtype=torch.float32, device="cpu")
    if len(shape) == 1:
        return torch.ones(tuple(shape), dtype=torch.float32, device="cpu")
    return _lecun_normal(shape, _generator(seed, name))


def _lecun_normal(shape: Sequence[int], generator: torch.Generator) -> Tensor:
    """Draw a kernel (out, in): standard deviation 1/sqrt(in), cut where Flax's lecun_normal cuts.

    Drawn by inverting the distribution function: torch's own trunc_normal_ has changed its
    algorithm between releases, and a seed should keep its meaning.
    """
    cut_sigmas = 2.0
    shrinkage = 0.87962566103423978  # standard deviation of a unit normal cut at two sigma
    edge = math.erf(cut_sigmas / math.sqrt(2.0))
    values = torch.empty(tuple(shape), dtype=torch.float32, device="cpu")
    values.uniform_(-edge, edge, generator=generator).erfinv_()
    return values.mul_(math.sqrt(2.0 / shape[1]) / shrinkage)


def _generator(seed: int, name: str) -> torch.Generator:
    """Return the random stream of one parameter, independent of all others."""
    digest = hashlib.sha256(f"{seed}/{name}".encode()).digest()
    generator = torch.Generator(device="cpu")
    return generator.manual_seed(int.from_bytes(digest[:8], "little") >> 1)  # 63 bits
