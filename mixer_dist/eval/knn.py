"""Weighted nearest neighbours by cosine on frozen features.

N training images, M of the test split, n and m of a block, C channels, K classes.
"""

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from mixer_dist import distributed
from mixer_dist.eval.feature_set import Features, FeatureSet


class Neighbours(NamedTuple):
    """The nearest training images so far of a block of test images, at most k each."""

    cosines: Tensor
    """(m, ≤ k)."""
    labels: Tensor
    """(m, ≤ k)."""

    def joined(self, cosines: Tensor, labels: Tensor, k: int) -> "Neighbours":
        """The nearest of these and of others, (m, n) and (n,)."""
        both = torch.cat([self.cosines, cosines], 1)
        of_both = torch.cat([self.labels, labels.expand(len(cosines), -1)], 1)
        best = both.topk(min(k, both.shape[1]), 1)
        return Neighbours(best.values, of_both.gather(1, best.indices))

    def predicted(self, temperature: float, num_classes: int) -> Tensor:
        """The class with most votes, (m,)."""
        votes = torch.zeros(len(self.cosines), num_classes, device=self.cosines.device)
        weights = ((self.cosines - 1) / temperature).exp()
        return votes.scatter_add_(1, self.labels, weights).argmax(1)


def knn_is_correct(
    train: FeatureSet, test: FeatureSet, k: int, temperature: float, rank: int, world_size: int
) -> Tensor:
    """Which of a rank's share of test images are classified right, in one pass over train."""
    device = distributed.device()
    labels = torch.from_numpy(train.labels.single()).to(device)
    wanted = torch.from_numpy(test.labels.single()).to(device)
    num_classes = int(max(labels.max(), wanted.max())) + 1
    mine = [(block, _directions(features)) for block, features in test.blocks(rank, world_size)]
    found = [_none(len(queries), device) for _, queries in mine]
    for block, features in train.blocks() if mine else ():
        keys = _directions(features)
        for number, (_, queries) in enumerate(mine):
            found[number] = found[number].joined(queries @ keys.T, labels[block], k)
    right = [
        near.predicted(temperature, num_classes) == wanted[block]
        for near, (block, _) in zip(found, mine, strict=True)
    ]
    return torch.cat([torch.zeros(0, dtype=torch.bool, device=device), *right])


def _none(num_images: int, device: torch.device) -> Neighbours:
    empty = torch.empty(num_images, 0, device=device)
    return Neighbours(empty, empty.to(torch.int64))


def _directions(features: Features) -> Tensor:
    """Unit vectors (n, C)."""
    rows = torch.from_numpy(features).to(distributed.device(), torch.float32)
    return F.normalize(rows, dim=1)
