"""Spikes of the loss and of the gradient norm, by a z-score that outliers do not spoil."""

from collections.abc import Iterable

import torch
from torch import Tensor

MAD_TO_SIGMA = 0.6745  # a normal distribution's median absolute deviation, of its sigma


def robust_z(value: Tensor, recent: Tensor) -> Tensor:
    """How far a value lies above the median of recent ones, in sigmas; NaN while one is missing."""
    median = recent.median()
    deviation = (recent - median).abs().median()
    return MAD_TO_SIGMA * (value - median) / deviation


def recent_values(values: Iterable[float], window: int, device: torch.device) -> Tensor:
    """The last `window` values, with NaN before them where there are not so many yet."""
    last = [float("nan")] * window + list(values)
    return torch.tensor(last[len(last) - window :], dtype=torch.float32, device=device)


class UpdateGuard:
    """Decides on the device which updates are left out; a pure function of the norms so far."""

    def __init__(self, recent: Tensor, threshold: float) -> None:
        """`recent` (window,): gradient norms of the last updates; `threshold` inf: no spikes."""
        self._recent = recent
        self._threshold = threshold

    def __call__(self, grad_norm: Tensor) -> Tensor:
        """1 where the update with this global norm is to be skipped, else 0; no dimension."""
        grad_norm = grad_norm.to(torch.float32)
        is_spike = robust_z(grad_norm, self._recent) > self._threshold
        is_skipped = is_spike | ~torch.isfinite(grad_norm)
        longer = torch.cat([self._recent, grad_norm.view(1)])
        self._recent = torch.where(is_skipped, longer[:-1], longer[1:])
        return is_skipped.to(torch.float32)
