"""Linear maps of a LayerNorm or a GELU that keep what these begin with, not what they give.

Both are cheap to compute again in the backward pass, as no matrix product is part of them. Of a
Mixer block that halves the memory between the passes: x and the hidden layer stay, once each.
On a GPU `fused` does the same in fewer passes over memory; this is what it is compared with.
"""

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from mixer_dist.models import fused
from mixer_dist.models.fused import LAYER_NORM_EPSILON, Branch, Hidden
from mixer_dist.models.gelu import gelu, gelu_and_gradient
from mixer_dist.models.products import (
    gradient_of_bias,
    gradient_of_input,
    gradient_of_weight,
    mapped,
)


class Normed(NamedTuple):
    """LayerNorm(x) over the last axis, not computed yet."""

    x: Tensor
    weight: Tensor
    bias: Tensor


class LazyLayerNorm(nn.LayerNorm):
    """A LayerNorm that leaves the arithmetic to the linear map that follows."""

    def __init__(self, num_features: int) -> None:
        super().__init__(num_features, eps=LAYER_NORM_EPSILON)

    def forward(self, x: Tensor) -> Normed:  # type: ignore[override]
        """Return x with copies of weight and bias: the originals may be freed after this."""
        return Normed(x, self.weight.clone(), self.bias.clone())


class TokenLinear(nn.Module):
    """A linear map over the token axis, shared by all channels."""

    def __init__(self, in_features: int, out_features: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(out_features, in_features))
        self.bias = nn.Parameter(torch.empty(out_features))

    def forward(self, source: Normed | Hidden | Tensor) -> Tensor | Hidden | Branch:
        """Return weight @ LayerNorm(x) + bias of a `Normed`, weight @ GELU(x) + bias of x."""
        return _linear(source, self.weight, self.bias, over_tokens=True)


class ChannelLinear(nn.Linear):
    """A linear map over the last axis; `initialize` sets its values."""

    def reset_parameters(self) -> None:
        """Draw nothing: building a model must leave the global random state as it was."""


class RecomputedChannelLinear(ChannelLinear):
    """A linear map over the last axis of a LayerNorm or a GELU."""

    def forward(  # type: ignore[override]
        self, source: Normed | Hidden | Tensor
    ) -> Tensor | Hidden | Branch:
        """Return LayerNorm(x) @ weight.T + bias of a `Normed`, GELU(x) @ weight.T + bias of x."""
        return _linear(source, self.weight, self.bias, over_tokens=False)


def _linear(
    source: Normed | Hidden | Tensor, weight: Tensor, bias: Tensor, *, over_tokens: bool
) -> Tensor | Hidden | Branch:
    if isinstance(source, Hidden):
        return fused.branch_of(source, weight, bias, over_tokens)
    if isinstance(source, Normed) and fused.is_faster(source.x):
        return fused.hidden_of(*source, weight, bias, over_tokens)
    x, *norm = source if isinstance(source, Normed) else (source, None, None)
    result: Tensor = _Recomputed.apply(  # type: ignore[no-untyped-call]
        x, *norm, weight, bias, over_tokens
    )
    return result


class _Recomputed(torch.autograd.Function):
    """A linear map of LayerNorm(x), or of GELU(x) where there is no norm."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        norm_weight: Tensor | None,
        norm_bias: Tensor | None,
        weight: Tensor,
        bias: Tensor,
        over_tokens: bool,
    ) -> Tensor:
        statistics: list[Tensor] = []
        if norm_weight is None or norm_bias is None:
            value = gelu(x)
        else:
            value, *statistics = _layer_norm(x, norm_weight, norm_bias)
        ctx.save_for_backward(x, norm_weight, norm_bias, weight, *statistics)
        ctx.over_tokens = over_tokens
        return mapped(value, weight, bias, over_tokens)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, norm_weight, norm_bias, weight, *statistics = ctx.saved_tensors
        over_tokens = ctx.over_tokens
        of_value = gradient_of_input(grad, weight, over_tokens)
        if norm_weight is None:
            value, of_x = gelu_and_gradient(x, of_value)
            of_norm = None, None
        else:
            value = _layer_norm(x, norm_weight, norm_bias)[0]
            of_x, *of_norm = torch.ops.aten.native_layer_norm_backward(
                of_value, x, x.shape[-1:], *statistics, norm_weight, norm_bias, [True] * 3
            )
        of_weight = gradient_of_weight(grad, value, over_tokens)
        return of_x, *of_norm, of_weight, gradient_of_bias(grad, over_tokens), None


def _layer_norm(x: Tensor, weight: Tensor, bias: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The normed x, its means and its reciprocal deviations."""
    return torch.native_layer_norm(x, x.shape[-1:], weight, bias, LAYER_NORM_EPSILON)
