"""The functions of `kernels` on the meta device: what each reads, writes and allocates, no value.

So `plan` counts on any machine what a GPU does. Operators of their own, as one call is one kernel.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

_library = torch.library.Library("mixer_dist", "DEF")  # type: ignore[no-untyped-call]


def _operator(schema: str, function: Callable[..., Any]) -> Callable[..., Any]:
    name = _library.define(schema)  # type: ignore[no-untyped-call]
    _library.impl(name, function, "Meta")  # type: ignore[no-untyped-call]
    operator: Callable[..., Any] = getattr(torch.ops.mixer_dist, name)
    return operator


def _layer_norm(
    x: Tensor, weight: Tensor, bias: Tensor, epsilon: float
) -> tuple[Tensor, Tensor, Tensor]:
    mean, rstd = (x.new_empty(x.shape[:-1], dtype=torch.float32) for _ in range(2))
    return torch.empty_like(x), mean, rstd


gelu = _operator(
    "gelu(Tensor x, Tensor bias, bool over_tokens) -> Tensor",
    lambda x, bias, over_tokens: torch.empty_like(x),
)
gelu_backward = _operator(
    "gelu_backward(Tensor(a!) grad, Tensor x, Tensor bias, bool over_tokens)"
    " -> (Tensor, Tensor(a!), Tensor)",
    lambda grad, x, bias, over_tokens: (torch.empty_like(x), grad, torch.empty_like(bias)),
)
layer_norm = _operator(
    "layer_norm(Tensor x, Tensor weight, Tensor bias, float epsilon) -> (Tensor, Tensor, Tensor)",
    _layer_norm,
)
layer_norm_backward = _operator(
    "layer_norm_backward(Tensor(a!) grad, Tensor of_residual, Tensor x, Tensor weight, Tensor bias,"
    " Tensor mean, Tensor rstd) -> (Tensor, Tensor(a!), Tensor, Tensor)",
    lambda grad, of_residual, x, weight, bias, mean, rstd: (
        torch.empty_like(x), grad, torch.empty_like(weight), torch.empty_like(bias),
    ),
)  # fmt: skip
add_branch = _operator(
    "add_branch(Tensor residual, Tensor x, Tensor bias, Tensor? mask, bool over_tokens) -> Tensor",
    lambda residual, x, bias, mask, over_tokens: torch.empty_like(x),
)
