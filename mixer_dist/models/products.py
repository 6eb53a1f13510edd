"""Matrix products over tokens or channels, by whichever of PyTorch's libraries is faster.

On a CPU with AVX-512 that is oneDNN: for a Mixer's shapes, in fp32 on an AMD EPYC of Zen 4, it
takes a tenth less time than MKL, which `torch.mm` calls. Held to AVX2 it was no faster than MKL.

D outputs of a map. Over tokens x is (S, B, C), the result (D, B, C); over channels (S, B, D).
"""

from functools import cache

import torch
from torch import Tensor


def mapped(x: Tensor, weight: Tensor, bias: Tensor | None, over_tokens: bool) -> Tensor:
    """Return weight @ x, plus a bias (D,), over the first axis of x or over its last."""
    if over_tokens:
        rows = None if bias is None else bias.unsqueeze(1)
        return product(weight, x.flatten(1), rows).view(-1, *x.shape[1:])  # (D, B*C), of a view
    return product(x.flatten(0, 1), weight.t(), bias).view(*x.shape[:2], -1)


def gradient_of_input(grad: Tensor, weight: Tensor, over_tokens: bool) -> Tensor:
    """Of what was mapped, for `grad`, that of the result."""
    if over_tokens:
        return product(weight.t(), grad.flatten(1)).view(-1, *grad.shape[1:])
    return product(grad.flatten(0, 1), weight).view(*grad.shape[:2], -1)


def gradient_of_weight(grad: Tensor, x: Tensor, over_tokens: bool) -> Tensor:
    """Of a map of x, for `grad`, that of the result."""
    if over_tokens:
        return product(grad.flatten(1), x.flatten(1).t())
    return product(grad.flatten(0, 1).t(), x.flatten(0, 1))


def gradient_of_bias(grad: Tensor, over_tokens: bool) -> Tensor:
    """Of a map's bias (D,), for `grad`, that of the result."""
    return grad.flatten(1).sum(1) if over_tokens else grad.flatten(0, 1).sum(0)


def product(left: Tensor, right: Tensor, bias: Tensor | None = None) -> Tensor:
    """Return left (M, K) @ right (K, N), plus a bias of (N,) or (M, 1)."""
    if not _is_faster_by_onednn(left):
        return left @ right if bias is None else torch.addmm(bias, left, right)
    if bias is None or bias.dim() == 1:
        return _onednn(left, right, bias)
    return _onednn(left, right, None).add_(bias)


def _onednn(left: Tensor, right: Tensor, bias: Tensor | None) -> Tensor:
    result: Tensor = torch.ops.mkldnn._linear_pointwise(left, right.t(), bias, "none", [], "")
    return result


def _is_faster_by_onednn(left: Tensor) -> bool:
    if torch.compiler.is_compiling() or not _has_onednn():
        return False
    is_plain = left.device.type == "cpu" and left.dtype == torch.float32
    return is_plain and left.is_contiguous()  # it would copy a transposed tensor first


@cache
def _has_onednn() -> bool:
    is_built = hasattr(torch.ops.mkldnn, "_linear_pointwise")
    return is_built and torch.backends.cpu.get_cpu_capability() == "AVX512"
