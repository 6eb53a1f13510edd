"""What runs in a process of its own in test_gpu.py."""

from typing import NamedTuple

import torch

from mixer_dist import distributed
from tests.tiny import take_steps, tiny_config, tiny_engine


class Outcome(NamedTuple):
    """Where a short run took place and what it gave."""

    device: str
    losses: list[float]
    num_updates: int


def short_run(engine: str, precision: str) -> Outcome:
    """Six steps at world size 1 on the GPU."""
    with distributed.connected(60):
        config = tiny_config(engine, precision)
        trained = tiny_engine(config)
        losses = take_steps(trained, config, 0, 6)
        return Outcome(distributed.device().type, losses, trained.num_updates)


def cpu_losses(precision: str) -> list[float]:
    """The same steps on the CPU, computed by one process."""
    torch.cuda.is_available = lambda: False  # type: ignore[assignment]
    return short_run("single", precision).losses
