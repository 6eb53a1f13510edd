"""The model's own head on features of a validation split: loss and accuracy.

An image may have several labels (ImageNet-ReaL): any of them is right; images without one are left
out. M images, m of a block, C channels, K classes.
"""

from collections.abc import Iterator
from typing import Literal

import torch
from torch import Tensor, nn

from mixer_dist.errors import DataError
from mixer_dist.eval.feature_set import FeatureSet
from mixer_dist.train.objective import image_losses


def check_labels(test: FeatureSet, num_classes: int) -> None:
    """DataError where no image has a label, or one has a label that the head does not know."""
    largest = int(test.labels.values.max(initial=-1))
    if largest < 0:
        raise DataError("no image of the test split has a label: relabel it")
    if largest >= num_classes:
        raise DataError(
            f"label {largest} is not in 0..{num_classes - 1}, the classes of the model's head: "
            "choose the split that belongs to the pretraining data"
        )


def upstream_outcomes(
    head: nn.Module,
    test: FeatureSet,
    num_classes: int,
    loss: Literal["sigmoid", "softmax"],
    rank: int,
    world_size: int,
) -> Iterator[tuple[Tensor, Tensor]]:
    """Of a rank's share of labelled images: losses (m,), and which are classified right (m,)."""
    device = next(head.parameters()).device
    for block, features in test.blocks(rank, world_size):
        targets = torch.from_numpy(test.labels.targets(block.start, block.stop, num_classes))
        is_labelled = targets.any(1)
        logits = head(torch.from_numpy(features).to(device, torch.float32)).cpu()[is_labelled]
        targets = targets[is_labelled]
        is_right = targets.gather(1, logits.argmax(1, keepdim=True))[:, 0] > 0
        yield image_losses(logits, targets, loss), is_right
