"""How many elements of the training state a rank keeps under each engine.

fully_shard itself cuts the parameters, in a process group that has no other processes. DeepSpeed
cannot be built without values: its cuts are computed, and benchmarks/plan_memory.py compares them
with what it really holds.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch.distributed as dist
from torch import nn
from torch.testing._internal.distributed.fake_pg import FakeStore

from mixer_dist.checkpoint.pieces import local
from mixer_dist.config import RunConfig
from mixer_dist.operations.plan.micro_batch import shallow_model
from mixer_dist.operations.plan.setup import Setup
from mixer_dist.train.build import model_dimensions
from mixer_dist.train.optim import parameter_groups
from mixer_dist.train.torch_engine import num_blocks_of_unit, partition

PERSISTENT_NUMEL = 100_000  # smaller parameters ZeRO-3 leaves gathered


@dataclass(frozen=True)
class Sizes:
    """Elements of the model's parameters."""

    block: int
    num_blocks: int
    rest: int
    """In no block."""
    persistent: int
    """In parameters so small that ZeRO-3 leaves them gathered."""

    @property
    def whole(self) -> int:
        """Of all."""
        return self.num_blocks * self.block + self.rest

    @property
    def unit_elements(self) -> list[int]:
        """What fully_shard gathers and reduces together, in the order of backward."""
        size = num_blocks_of_unit(self.block)
        num_whole, num_left = divmod(self.num_blocks, size)
        left = [num_left * self.block] * bool(num_left)
        return [*left, *[size * self.block] * num_whole, self.rest]

    @property
    def zero3_elements(self) -> list[int]:
        """What ZeRO-3 gathers together, in the order of backward."""
        return [self.block] * self.num_blocks + [self.rest]


def sizes_of(config: RunConfig) -> Sizes:
    """The elements of a run's model."""
    in_block, others, num_blocks = _parameters(config)
    small = [sum(p.numel() for p in each if p.numel() < PERSISTENT_NUMEL)
             for each in (in_block, others)]  # fmt: skip
    return Sizes(
        block=sum(p.numel() for p in in_block),
        num_blocks=num_blocks,
        rest=sum(p.numel() for p in others),
        persistent=num_blocks * small[0] + small[1],
    )


def kept_elements(setup: Setup) -> int:
    """Elements whose weights and moments rank 0 updates."""
    if setup.is_zero:
        return _kept_by_zero(setup)
    model = shallow_model(setup.config.model, num_blocks=1)
    with fake_ranks(setup.num_gpus):
        partition(model, setup.config)
        in_block = sum(local(p).numel() for p in model.blocks.parameters())
        all_but_one = sum(local(p).numel() for p in model.parameters()) - in_block
    return all_but_one + in_block * int(model_dimensions(setup.config.model)["num_blocks"])


def _kept_by_zero(setup: Setup) -> int:
    """Stage 3 cuts each parameter, stages 1 and 2 each parameter group as a whole."""
    in_block, others, num_blocks = _parameters(setup.config)
    num_gpus = setup.num_gpus
    if setup.engine == "zero3":
        parts = [sum(-(-p.numel() // num_gpus) for p in each) for each in (in_block, others)]
        return num_blocks * parts[0] + parts[1]
    named = [(str(i), p) for i, p in enumerate([*in_block * num_blocks, *others])]
    groups = [group["params"] for group in parameter_groups(named, 0.0)]
    return sum(-(-sum(p.numel() for p in group) // num_gpus) for group in groups)


def _parameters(config: RunConfig) -> tuple[list[nn.Parameter], list[nn.Parameter], int]:
    """Those of one block, those in no block, and how many blocks there are."""
    model = shallow_model(config.model, num_blocks=1)
    in_block = list(model.blocks.parameters())
    others = [p for name, p in model.named_parameters() if not name.startswith("blocks.")]
    return in_block, others, int(model_dimensions(config.model)["num_blocks"])


@contextmanager
def fake_ranks(world_size: int) -> Iterator[None]:
    """A process group of this size of which this process is rank 0, and all others are absent."""
    dist.init_process_group("fake", store=FakeStore(), rank=0, world_size=world_size)
    try:
        yield
    finally:
        dist.destroy_process_group()
