"""Training state as flat ranges of fp32 tensors, whatever engine holds it.

A *piece* is the range [start, stop) of a flattened `param.<fqn>` or of a moment: `exp_avg.<fqn>`
and `exp_avg_sq.<fqn>` under AdamW, `momentum.<fqn>` under SGD. Its tensor is a live view of what
the optimizer updates: saving copies out of it, restoring copies into it, neither needs a gather.
"""

from collections.abc import Callable, Iterator, Mapping
from math import prod
from typing import NamedTuple

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor

KINDS = {"adamw": ("param", "exp_avg", "exp_avg_sq"), "sgd": ("param", "momentum")}
"""Of tensors, by the optimizer's name; a parameter comes first."""

_STATE_KEYS = {"momentum": "momentum_buffer"}  # where PyTorch has another name

Read = Callable[[str, int, int], Tensor]
"""read(name, start, stop) gives elements [start, stop) of a tensor, 1-D fp32."""


class Range(NamedTuple):
    """Part of a parameter on this rank: `tensor[offset:]` of the optimizer holds [start, stop)."""

    fqn: str
    start: int
    stop: int
    tensor: Tensor
    offset: int


class Piece(NamedTuple):
    """A range of one tensor of the training state, and the fp32 memory that holds it."""

    kind: str
    fqn: str
    start: int
    stop: int
    tensor: Tensor

    @property
    def name(self) -> str:
        """The tensor it is a part of."""
        return f"{self.kind}.{self.fqn}"


def pieces_of(
    held: Range, optimizer: torch.optim.Optimizer, optimizer_name: str
) -> Iterator[Piece]:
    """The pieces of one range: the parameter's and its moments'."""
    state = optimizer.state[held.tensor]
    for kind in KINDS[optimizer_name]:
        whole = held.tensor if kind == "param" else state[_STATE_KEYS.get(kind, kind)]
        view = local(whole).view(-1).narrow(0, held.offset, held.stop - held.start)
        if view.dtype != torch.float32:
            raise TypeError(f"{kind}.{held.fqn} is kept in {view.dtype}; pieces are float32")
        yield Piece(kind, held.fqn, held.start, held.stop, view)


def local(tensor: Tensor) -> Tensor:
    """This rank's memory of a tensor, detached."""
    return (tensor.to_local() if isinstance(tensor, DTensor) else tensor).detach()


def owners(shapes: Mapping[str, tuple[int, ...]], num_replicas: int) -> dict[str, int]:
    """Which replica saves each parameter: the largest first, to whoever has least so far."""
    load = [0] * num_replicas
    owner: dict[str, int] = {}
    for fqn in sorted(shapes, key=lambda fqn: (-prod(shapes[fqn]), fqn)):
        owner[fqn] = load.index(min(load))
        load[owner[fqn]] += prod(shapes[fqn])
    return owner
