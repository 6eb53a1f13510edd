"""A Mixer block on a GPU: what lies between its matrix products, in single passes over memory.

The same functions as `recomputed`, which keeps as much. A GPU waits for memory there, not for
arithmetic, so each activation is read and written as seldom as it can be: a bias is added by what
reads the map's result next, as no library adds one to rows for nothing; backward, a GELU or a
LayerNorm, its gradient and the sums over it come of one pass, which takes the skip's gradient too.

S tokens, B batch, C channels, D outputs of a map.
"""

from functools import cache
from importlib import import_module
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from mixer_dist.models.products import (
    gradient_of_bias,
    gradient_of_input,
    gradient_of_weight,
    mapped,
)

if TYPE_CHECKING:
    from types import ModuleType

LAYER_NORM_EPSILON = 1e-6  # Flax's default; torch's own default, 1e-5, is another model
DTYPES = (torch.float32, torch.bfloat16)


class Hidden(NamedTuple):
    """A hidden layer whose bias is not added yet."""

    x: Tensor
    """(D, B, C) over tokens, (S, B, D) over channels."""
    bias: Tensor
    residual: Tensor
    """What the branch began with, (S, B, C)."""


class Branch(NamedTuple):
    """A branch of a block whose bias and skip are not added yet."""

    x: Tensor
    """(S, B, C)."""
    bias: Tensor
    residual: Tensor
    over_tokens: bool


def is_faster(x: Tensor) -> bool:
    """Whether this, and not `recomputed`, shall be used for x; without values, as on a GPU."""
    is_plain = x.dtype in DTYPES and not torch.compiler.is_compiling()
    return is_plain and (x.is_meta or (x.is_cuda and _has_triton()))


def hidden_of(
    x: Tensor,
    norm_weight: Tensor,
    norm_bias: Tensor,
    weight: Tensor,
    bias: Tensor,
    over_tokens: bool,
) -> Hidden:
    """The map of LayerNorm(x)."""
    hidden, residual = _NormMap.apply(  # type: ignore[no-untyped-call]
        x, norm_weight, norm_bias, weight, over_tokens
    )
    return Hidden(hidden, bias.clone(), residual)  # the original may be freed after the module


def branch_of(hidden: Hidden, weight: Tensor, bias: Tensor, over_tokens: bool) -> Branch:
    """The map of GELU(x + bias) of a hidden layer."""
    mixed = _GeluMap.apply(  # type: ignore[no-untyped-call]
        hidden.x, hidden.bias, weight, over_tokens
    )
    return Branch(mixed, bias.clone(), hidden.residual, over_tokens)


def added(branch: Branch, mask: Tensor | None) -> Tensor:
    """residual + mask * (x + bias), with a mask (B,) of {0, 1}."""
    dense = None if mask is None else mask.contiguous()  # a batch's lie image by image
    result: Tensor = _AddBranch.apply(  # type: ignore[no-untyped-call]
        branch.residual, branch.x, branch.bias, dense, branch.over_tokens
    )
    return result


class _NormMap(torch.autograd.Function):
    """weight @ LayerNorm(x), and x itself, so that the skip's gradient is met here."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        norm_weight: Tensor,
        norm_bias: Tensor,
        weight: Tensor,
        over_tokens: bool,
    ) -> tuple[Tensor, Tensor]:
        value, *statistics = _kernels(x).layer_norm(x, norm_weight, norm_bias, LAYER_NORM_EPSILON)
        ctx.save_for_backward(x, norm_weight, norm_bias, weight, *statistics)
        ctx.over_tokens = over_tokens
        return mapped(value, weight, None, over_tokens), x.view_as(x)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor, of_residual: Tensor) -> tuple[Tensor | None, ...]:
        x, norm_weight, norm_bias, weight, *statistics = ctx.saved_tensors
        of_value = gradient_of_input(grad, weight, ctx.over_tokens)
        value, of_x, *of_norm = _kernels(x).layer_norm_backward(
            of_value, of_residual.contiguous(), x, norm_weight, norm_bias, *statistics
        )
        return of_x, *of_norm, gradient_of_weight(grad, value, ctx.over_tokens), None


class _GeluMap(torch.autograd.Function):
    """weight @ GELU(x + bias)."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, bias: Tensor, weight: Tensor, over_tokens: bool) -> Tensor:
        ctx.save_for_backward(x, bias, weight)
        ctx.over_tokens = over_tokens
        value = _kernels(x).gelu(x, bias, over_tokens)
        return mapped(value, weight, None, over_tokens)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, bias, weight = ctx.saved_tensors
        of_value = gradient_of_input(grad, weight, ctx.over_tokens)
        value, of_x, of_bias = _kernels(x).gelu_backward(of_value, x, bias, ctx.over_tokens)
        return of_x, of_bias, gradient_of_weight(grad, value, ctx.over_tokens), None


class _AddBranch(torch.autograd.Function):
    """residual + mask * (x + bias)."""

    @staticmethod
    def forward(
        ctx: Any,
        residual: Tensor,
        x: Tensor,
        bias: Tensor,
        mask: Tensor | None,
        over_tokens: bool,
    ) -> Tensor:
        ctx.save_for_backward(mask)
        ctx.over_tokens = over_tokens
        return _kernels(x).add_branch(residual, x, bias, mask, over_tokens)  # type: ignore[no-any-return]

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        (mask,) = ctx.saved_tensors
        grad = grad.contiguous()
        of_x = grad if mask is None else grad * mask.to(grad.dtype).view(1, -1, 1)
        return grad, of_x, gradient_of_bias(of_x, ctx.over_tokens), None, None


@cache
def _has_triton() -> bool:
    return find_spec("triton") is not None


def _kernels(x: Tensor) -> "ModuleType":
    """Those of a GPU, or their stand-ins where x has no values."""
    return _imported("kernel_shapes" if x.is_meta else "kernels")


@cache
def _imported(name: str) -> "ModuleType":
    """Imported where it is used: a machine without a GPU needs no Triton."""
    return import_module(f"mixer_dist.models.{name}")
