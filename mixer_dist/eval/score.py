"""What an evaluation task finds about a model."""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torchmetrics import MeanMetric


@dataclass(frozen=True)
class Score:
    """The accuracy, and whatever else a kind of task tells."""

    per_seed: tuple[float, ...]
    """The accuracy with each seed; one number where nothing is drawn."""
    num_judged: int
    """Images of the test split that count."""
    num_classes: int
    """Chance is one in so many."""
    seeds: tuple[int, ...] = ()
    details: Mapping[str, Any] = field(default_factory=dict)

    @property
    def accuracy(self) -> float:
        """Mean over seeds."""
        return float(np.mean(self.per_seed))

    @property
    def standard_error(self) -> float:
        return standard_error(self.per_seed, self.num_judged)


def mean_over_ranks(parts: Iterable[Tensor]) -> float:
    """The mean of all values of all ranks. All ranks must call this."""
    mean = MeanMetric().set_dtype(torch.float64)
    for part in (torch.zeros(0), *parts):  # a rank may have no images
        mean.update(part.to("cpu", torch.float64))
    return float(mean.compute())


def standard_error(per_seed: tuple[float, ...], num_judged: int) -> float:
    """Of a mean accuracy: over its seeds, or for a single one that of a share of images."""
    if len(per_seed) > 1:
        return float(np.std(per_seed, ddof=1) / math.sqrt(len(per_seed)))
    [share] = per_seed
    return math.sqrt(share * (1 - share) / num_judged)
