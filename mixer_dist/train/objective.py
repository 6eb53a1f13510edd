"""The loss of a micro-batch: normalise, mix pairs, forward, sum. n images, K classes."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mixer_dist.data.batch import Batch


def normalized(images: Tensor, dtype: torch.dtype) -> Tensor:
    """uint8 pixels to [-1, 1]; computed in fp32 so that every precision sees the same rounding."""
    return (images.to(torch.float32) / 127.5 - 1.0).to(dtype)


def mixed_with_pair(values: Tensor, share: float) -> Tensor:
    """Each of (n, …) keeps `share` and takes the rest from its pair, i XOR 1 (mixup)."""
    if share == 1.0:
        return values
    pairs = values.view(-1, 2, *values.shape[1:])
    return (share * pairs + (1 - share) * pairs.flip(1)).view_as(values)


def target_matrix(labels: Tensor, num_classes: int) -> Tensor:
    """Labels as (n, K) float32."""
    if labels.ndim == 2:
        return labels
    return F.one_hot(labels, num_classes).to(torch.float32)


def image_losses(logits: Tensor, targets: Tensor, kind: str) -> Tensor:
    """Loss of each image (n,), in fp32: sigmoid sums over classes, as the official code does."""
    logits = logits.to(torch.float32)
    if kind == "sigmoid":
        return F.binary_cross_entropy_with_logits(logits, targets, reduction="none").sum(1)
    return -(targets * F.log_softmax(logits, 1)).sum(1)


def summed_loss(model: nn.Module, batch: Batch, kind: str, dtype: torch.dtype) -> Tensor:
    """The weighted sum of a micro-batch's losses."""
    images = mixed_with_pair(normalized(batch.images, torch.float32), batch.mixup).to(dtype)
    masks = None if batch.depth_masks is None else batch.depth_masks.to(dtype)
    logits = model(images, masks)
    targets = mixed_with_pair(target_matrix(batch.labels, logits.shape[1]), batch.mixup)
    return (image_losses(logits, targets, kind) * batch.weights).sum()
