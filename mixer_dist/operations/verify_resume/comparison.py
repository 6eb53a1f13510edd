"""Two runs of one configuration, step by step and value by value."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from mixer_dist.checkpoint.catalog import Checkpoint, read_checkpoint
from mixer_dist.checkpoint.load import read_pieces
from mixer_dist.checkpoint.pieces import Piece
from mixer_dist.metrics import Line
from mixer_dist.run_dir import RunDir
from mixer_dist.storage import Storage

SMALLEST = 1e-60  # of a squared norm that is divided by


@dataclass(frozen=True)
class Steps:
    """What two runs wrote down of their steps."""

    num_steps: int
    num_same_data: int
    """Steps with the same batch_digest: the same samples, from the same places."""
    num_same_losses: int
    """To the last bit."""
    loss_distance: float
    """Largest relative difference of a loss; inf where one is missing."""
    first_difference: int | None
    """The first step that is not the same in data and loss."""


@dataclass(frozen=True)
class Values:
    """Parameters and moments of two checkpoints."""

    num_values: int
    num_same: int
    """To the last bit."""
    distance: float
    """The norm of the difference relative to that of the values, the largest of weights and each
    moment: of single tensors it would tell little, as some hold but rounding in the first steps."""


def compare_steps(lines: Sequence[Line], others: Sequence[Line], num_steps: int) -> Steps:
    """The metrics of two runs, up to a step."""
    pairs = list(_pairs(lines, others, num_steps))
    same_data = [a["batch_digest"] == b["batch_digest"] for a, b in pairs]
    distances = [_distance(a["loss"], b["loss"]) for a, b in pairs]
    is_same = [data and not distance for data, distance in zip(same_data, distances, strict=True)]
    return Steps(
        num_steps=num_steps,
        num_same_data=sum(same_data),
        num_same_losses=distances.count(0.0),
        loss_distance=max(distances),
        first_difference=None if all(is_same) else is_same.index(False) + 1,
    )


def compare_values(storage: Storage, run_dir: RunDir, other: RunDir, step: int) -> Values:
    """The checkpoints of two runs at a step, one tensor after the other."""
    checkpoints = [read_checkpoint(storage, each.checkpoint(step)) for each in (run_dir, other)]
    num_values = num_same = 0
    kinds = checkpoints[0].manifest.kinds
    difference, size = dict.fromkeys(kinds, 0.0), dict.fromkeys(kinds, 0.0)
    for kind, fqn, shape in _tensors(checkpoints[0]):
        a, b = (_values(storage, checkpoint, kind, fqn, shape) for checkpoint in checkpoints)
        num_values += a.numel()
        num_same += int((a.view(torch.int32) == b.view(torch.int32)).sum())
        difference[kind] += float((a - b).double().square().sum())
        size[kind] += float(b.double().square().sum())
    distances = [math.sqrt(difference[kind] / max(size[kind], SMALLEST)) for kind in kinds]
    return Values(num_values, num_same, max(d if math.isfinite(d) else math.inf for d in distances))


def _pairs(
    lines: Sequence[Line], others: Sequence[Line], num_steps: int
) -> Iterator[tuple[Line, Line]]:
    """The lines of each step; a step that was not written down is like no other."""
    missing = {"batch_digest": None, "loss": math.nan}
    of_a, of_b = ({line["step"]: line for line in found} for found in (lines, others))
    for step in range(1, num_steps + 1):
        yield of_a.get(step, missing), of_b.get(step, missing | {"batch_digest": ""})


def _distance(loss: float | None, other: float | None) -> float:
    """The relative difference; a loss that was not finite is null in the metrics."""
    if loss == other:
        return 0.0
    if loss is None or other is None or math.isnan(loss) or math.isnan(other):
        return math.inf
    return abs(loss - other) / max(abs(loss), abs(other))


def _tensors(checkpoint: Checkpoint) -> Iterator[tuple[str, str, tuple[int, ...]]]:
    for fqn, entry in checkpoint.manifest.parameters.items():
        for kind in checkpoint.manifest.kinds:
            yield kind, fqn, tuple(entry.shape)


def _values(
    storage: Storage, checkpoint: Checkpoint, kind: str, fqn: str, shape: tuple[int, ...]
) -> Tensor:
    values = torch.empty(math.prod(shape))
    read_pieces(storage, checkpoint, [Piece(kind, fqn, 0, values.numel(), values)])
    return values
