"""The optimizer's pure parts: learning-rate schedule and parameter groups."""

import math
from collections.abc import Iterable
from typing import Any, Literal

import torch
from torch import nn

from mixer_dist.config import OptimizerConfig

DROPS = (0.3, 0.6, 0.9)  # of a staircase, as shares of all steps


def learning_rate(
    step: int,
    *,
    peak: float,
    warmup_steps: int,
    total_steps: int,
    decay: Literal["linear", "cosine", "staircase"],
    end: float = 0.0,
) -> float:
    """The rate of the update after `step` steps: linear warmup times a decay from peak to end.

    The first update of a run with warmup has rate 0, as in the official code (big_vision).
    `staircase` divides by 10 after 30, 60 and 90% of all steps (Kolesnikov et al. 2020, 3.3).
    """
    warmup = min(1.0, step / warmup_steps) if warmup_steps else 1.0
    if decay == "staircase":
        num_drops = sum(step >= share * total_steps for share in DROPS)
        return max(end, peak * 0.1**num_drops) * warmup
    progress = (step - warmup_steps) / max(1, total_steps - warmup_steps)
    progress = min(max(progress, 0.0), 1.0)
    remaining = 1 - progress if decay == "linear" else (1 + math.cos(math.pi * progress)) / 2
    return (end + (peak - end) * remaining) * warmup


def scheduled_rate(step: int, total_steps: int, optimizer: OptimizerConfig) -> float:
    """The learning rate that a configuration gives a step."""
    return learning_rate(
        step,
        peak=optimizer.learning_rate,
        warmup_steps=optimizer.warmup_steps,
        total_steps=total_steps,
        decay=optimizer.decay,
        end=optimizer.end_learning_rate,
    )


def parameter_groups(
    parameters: Iterable[tuple[str, nn.Parameter]], weight_decay: float
) -> list[dict[str, Any]]:
    """Weight matrices with decay; biases and LayerNorms without (big_vision: `.*/kernel`)."""
    named = list(parameters)
    kernels = [p for _, p in named if p.ndim > 1]
    others = [p for _, p in named if p.ndim <= 1]
    return [
        {"params": kernels, "weight_decay": weight_decay},
        {"params": others, "weight_decay": 0.0},
    ]


def build_optimizer(
    parameters: Iterable[tuple[str, nn.Parameter]], config: OptimizerConfig
) -> torch.optim.Optimizer:
    """AdamW, or SGD with momentum, in one fused kernel that heeds `found_inf`."""
    groups, rate = parameter_groups(parameters, config.weight_decay), config.learning_rate
    if config.name == "sgd":
        return torch.optim.SGD(groups, lr=rate, momentum=config.momentum, fused=True)
    return torch.optim.AdamW(groups, lr=rate, betas=config.betas, eps=config.epsilon, fused=True)


def create_moments(optimizer: torch.optim.Optimizer, tensors: Iterable[torch.Tensor]) -> None:
    """Give each tensor its moments now: DeepSpeed fails to link those of a first step."""
    for tensor in tensors:
        if isinstance(optimizer, torch.optim.SGD):
            # From zeros the first step gives what PyTorch gives without: the gradient.
            names, optimizer.state[tensor] = ["momentum_buffer"], {}
        else:
            step = torch.zeros((), device=tensor.device)
            names, optimizer.state[tensor] = ["exp_avg", "exp_avg_sq"], {"step": step}
        for name in names:
            optimizer.state[tensor][name] = torch.zeros_like(tensor, requires_grad=False)
