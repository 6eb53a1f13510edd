"""The optimizer's pure parts: learning-rate schedule and parameter groups."""

import math
from collections.abc import Iterable
from typing import Any, Literal

import torch
from torch import nn

from mixer_dist.config import OptimizerConfig


def learning_rate(
    step: int,
    *,
    peak: float,
    warmup_steps: int,
    total_steps: int,
    decay: Literal["linear", "cosine"],
    end: float = 0.0,
) -> float:
    """The rate of the update after `step` steps: linear warmup times a decay from peak to end.

    The first update of a run with warmup has rate 0, as in the official code (big_vision).
    """
    progress = (step - warmup_steps) / max(1, total_steps - warmup_steps)
    progress = min(max(progress, 0.0), 1.0)
    remaining = 1 - progress if decay == "linear" else (1 + math.cos(math.pi * progress)) / 2
    warmup = min(1.0, step / warmup_steps) if warmup_steps else 1.0
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


def build_adamw(
    parameters: Iterable[tuple[str, nn.Parameter]], config: OptimizerConfig
) -> torch.optim.AdamW:
    """AdamW in one fused kernel, its state made now: lazy state is what DeepSpeed fails to link."""
    groups = parameter_groups(parameters, config.weight_decay)
    return torch.optim.AdamW(
        groups, lr=config.learning_rate, betas=config.betas, eps=config.epsilon, fused=True
    )


def create_moments(optimizer: torch.optim.Optimizer, tensors: Iterable[torch.Tensor]) -> None:
    """Give each optimized tensor its Adam state now, as its first step would."""
    for tensor in tensors:
        optimizer.state[tensor] = {
            "step": torch.zeros((), device=tensor.device),
            "exp_avg": torch.zeros_like(tensor, requires_grad=False),
            "exp_avg_sq": torch.zeros_like(tensor, requires_grad=False),
        }
