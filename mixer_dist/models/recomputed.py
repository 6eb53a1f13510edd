"""Linear maps of a LayerNorm or a GELU that keep what these begin with, not what they give.

Both are cheap to compute again in the backward pass, as no matrix product is part of them. Of a
Mixer block that halves the memory between the passes: x and the hidden layer stay, once each.

D outputs of a map. Over tokens x is (S, B, C), the result (D, B, C); over channels (S, B, D).
"""

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from mixer_dist.models.gelu import gelu, gelu_and_gradient
from mixer_dist.models.products import product

LAYER_NORM_EPSILON = 1e-6  # Flax's default; torch's own default, 1e-5, is another model


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

    def forward(self, source: Normed | Tensor) -> Tensor:
        """Return weight @ LayerNorm(x) + bias of a `Normed`, weight @ GELU(x) + bias of x."""
        return _linear(source, self.weight, self.bias, over_tokens=True)


class ChannelLinear(nn.Linear):
    """A linear map over the last axis; `initialize` sets its values."""

    def reset_parameters(self) -> None:
        """Draw nothing: building a model must leave the global random state as it was."""


class RecomputedChannelLinear(ChannelLinear):
    """A linear map over the last axis of a LayerNorm or a GELU."""

    def forward(self, source: Normed | Tensor) -> Tensor:
        """Return LayerNorm(x) @ weight.T + bias of a `Normed`, GELU(x) @ weight.T + bias of x."""
        return _linear(source, self.weight, self.bias, over_tokens=False)


def _linear(source: Normed | Tensor, weight: Tensor, bias: Tensor, *, over_tokens: bool) -> Tensor:
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
        return _product(value, weight, bias, over_tokens)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, norm_weight, norm_bias, weight, *statistics = ctx.saved_tensors
        of_value = _gradient_of_input(grad, weight, ctx.over_tokens)
        if norm_weight is None:
            value, of_x = gelu_and_gradient(x, of_value)
            of_norm = None, None
        else:
            value = _layer_norm(x, norm_weight, norm_bias)[0]
            of_x, *of_norm = torch.ops.aten.native_layer_norm_backward(
                of_value, x, x.shape[-1:], *statistics, norm_weight, norm_bias, [True] * 3
            )
        return of_x, *of_norm, *_gradients_of_parameters(grad, value, ctx.over_tokens), None


def _layer_norm(x: Tensor, weight: Tensor, bias: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The normed x, its means and its reciprocal deviations."""
    return torch.native_layer_norm(x, x.shape[-1:], weight, bias, LAYER_NORM_EPSILON)


def _product(value: Tensor, weight: Tensor, bias: Tensor, over_tokens: bool) -> Tensor:
    if over_tokens:
        mixed = product(weight, value.flatten(1), bias.unsqueeze(1))  # (D, B*C), of a view
        return mixed.view(-1, *value.shape[1:])
    return product(value.flatten(0, 1), weight.t(), bias).view(*value.shape[:2], -1)


def _gradient_of_input(grad: Tensor, weight: Tensor, over_tokens: bool) -> Tensor:
    if over_tokens:
        of_input = product(weight.t(), grad.flatten(1))
        return of_input.view(-1, *grad.shape[1:])
    return product(grad.flatten(0, 1), weight).view(*grad.shape[:2], -1)


def _gradients_of_parameters(
    grad: Tensor, value: Tensor, over_tokens: bool
) -> tuple[Tensor, Tensor]:
    """Of weight and bias."""
    if over_tokens:
        grad = grad.flatten(1)  # (D, B*C)
        return product(grad, value.flatten(1).t()), grad.sum(1)
    grad = grad.flatten(0, 1)  # (S*B, D)
    return product(grad.t(), value.flatten(0, 1)), grad.sum(0)
