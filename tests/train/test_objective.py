"""The loss of a micro-batch: the official losses, mixup within pairs, filling without effect."""

import math

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from mixer_dist.data.batch import Batch
from mixer_dist.train.objective import (
    image_losses,
    mixed_with_pair,
    normalized,
    summed_loss,
    target_matrix,
)


def one_hot_losses(kind: str, logit: float, num_classes: int = 1000) -> Tensor:
    targets = target_matrix(torch.tensor([3, 7]), num_classes)
    return image_losses(torch.full((2, num_classes), logit), targets, kind)


def test_losses_at_initialisation_are_the_papers():
    """1000 classes: sigmoid with a head bias of -6.9, softmax with none."""
    assert one_hot_losses("sigmoid", -6.9).tolist() == pytest.approx([7.907] * 2, abs=5e-4)
    assert one_hot_losses("softmax", 0.0).tolist() == pytest.approx([math.log(1000)] * 2, rel=1e-6)


@pytest.mark.parametrize("kind", ["sigmoid", "softmax"])
def test_losses_are_their_formulas(kind):
    rng = np.random.default_rng(0)
    logits, targets = rng.normal(size=(5, 7)) * 4, rng.uniform(size=(5, 7))
    if kind == "sigmoid":  # a sum over classes, no mean
        p = 1 / (1 + np.exp(-logits))
        expected = -(targets * np.log(p) + (1 - targets) * np.log(1 - p)).sum(1)
    else:
        expected = -(targets * np.log(np.exp(logits) / np.exp(logits).sum(1)[:, None])).sum(1)
    as_float32 = [torch.from_numpy(values).float() for values in (logits, targets)]
    found = image_losses(*as_float32, kind)
    assert found.dtype == torch.float32
    np.testing.assert_allclose(found.numpy(), expected, rtol=1e-5)


@pytest.mark.parametrize("kind", ["sigmoid", "softmax"])
def test_losses_are_computed_in_fp32_whatever_the_model(kind):
    logits = torch.randn(4, 1000, generator=torch.Generator().manual_seed(0)).bfloat16()
    targets = target_matrix(torch.tensor([1, 2, 3, 4]), 1000)
    found = image_losses(logits, targets, kind)
    assert found.dtype == torch.float32
    assert torch.equal(found, image_losses(logits.float(), targets, kind))


@pytest.mark.parametrize("kind", ["sigmoid", "softmax"])
def test_extreme_logits_give_finite_losses(kind):
    logits = torch.tensor([[1e4, -1e4], [-1e4, 1e4]])
    found = image_losses(logits, target_matrix(torch.tensor([0, 0]), 2), kind)
    assert found[0] == 0 and found[1] >= 1e4 and torch.isfinite(found).all()


def test_pixels_become_numbers_between_minus_one_and_one():
    pixels = torch.tensor([0, 51, 255], dtype=torch.uint8)
    assert normalized(pixels, torch.float32).tolist() == pytest.approx([-1.0, -0.6, 1.0])
    assert normalized(pixels, torch.bfloat16).dtype == torch.bfloat16


def test_targets_are_one_hot_or_given():
    assert target_matrix(torch.tensor([2, 0]), 3).tolist() == [[0, 0, 1], [1, 0, 0]]
    multi_hot = torch.tensor([[1.0, 0.0, 1.0]])
    assert target_matrix(multi_hot, 3) is multi_hot


def test_mixup_mixes_each_with_its_neighbour():
    values = torch.arange(12.0).view(6, 2)
    mixed = mixed_with_pair(values, 0.75)
    for index in range(6):
        assert torch.equal(mixed[index], 0.75 * values[index] + 0.25 * values[index ^ 1])
    assert mixed_with_pair(values, 1.0) is values


class Linear(nn.Module):
    """A model that keeps what it was given."""

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.head = nn.Linear(12, num_classes)

    def forward(self, images: Tensor, masks: Tensor | None) -> Tensor:
        self.images, self.masks = images, masks
        return self.head(images.flatten(1))


def batch_of(num_images: int, labels: Tensor, weights: list[float], **others) -> Batch:
    generator = torch.Generator().manual_seed(1)
    return Batch(
        images=torch.randint(
            0, 256, (num_images, 3, 2, 2), generator=generator, dtype=torch.uint8
        ),
        labels=labels,
        weights=torch.tensor(weights),
        positions=torch.arange(num_images),
        **others,
    )  # fmt: skip


@pytest.mark.parametrize("kind", ["sigmoid", "softmax"])
@pytest.mark.parametrize("multi_hot", [False, True])
def test_images_and_labels_are_mixed_alike(kind, multi_hot):
    labels = torch.tensor([0, 1, 2, 2])
    hot = torch.eye(3)[labels]
    if multi_hot:
        labels = hot = hot + torch.eye(3)[[1, 2, 0, 0]]
    batch = batch_of(4, labels, [1.0] * 4, mixup=0.7)
    model = Linear(3)
    pair = [1, 0, 3, 2]
    images = batch.images.float() / 127.5 - 1
    images = 0.7 * images + 0.3 * images[pair]
    logits = model.head(images.flatten(1))
    expected = image_losses(logits, 0.7 * hot + 0.3 * hot[pair], kind).sum()
    torch.testing.assert_close(summed_loss(model, batch, kind, torch.float32), expected)
    torch.testing.assert_close(model.images, images)


def test_filling_adds_nothing_to_loss_and_gradient():
    model = Linear(3)
    labels = torch.tensor([0, 1, 2, 2])
    full = batch_of(4, labels, [1.0, 1.0, 0.0, 0.0], mixup=0.7)
    part = next(iter(full.micro_batches(2)))
    gradients = []
    for batch in (full, part):
        model.zero_grad()
        loss = summed_loss(model, batch, "sigmoid", torch.float32)
        loss.backward()
        gradients.append((loss.detach(), model.head.weight.grad.clone()))
    torch.testing.assert_close(gradients[0], gradients[1])
    nothing = batch_of(4, labels, [0.0] * 4)
    assert summed_loss(model, nothing, "sigmoid", torch.float32) == 0


def test_micro_batches_sum_to_the_batch():
    model, labels = Linear(3), torch.tensor([0, 1, 2, 2, 1, 0])
    batch = batch_of(6, labels, [1.0] * 6, mixup=0.6, depth_masks=torch.ones(2, 2, 6))
    parts = [summed_loss(model, m, "softmax", torch.float32) for m in batch.micro_batches(2)]
    assert len(parts) == 3
    torch.testing.assert_close(sum(parts), summed_loss(model, batch, "softmax", torch.float32))


def test_the_model_gets_its_own_precision():
    model = Linear(3).bfloat16()
    masks = torch.tensor([[[1, 0], [1, 1]]], dtype=torch.uint8)
    batch = batch_of(2, torch.tensor([0, 1]), [1.0, 1.0], depth_masks=masks)
    loss = summed_loss(model, batch, "sigmoid", torch.bfloat16)
    assert loss.dtype == torch.float32
    assert model.images.dtype == model.masks.dtype == torch.bfloat16
    assert torch.equal(model.masks, masks.bfloat16())
    summed_loss(model, batch_of(2, torch.tensor([0, 1]), [1.0] * 2), "sigmoid", torch.bfloat16)
    assert model.masks is None
