"""What runs in a process of its own in test_gpu.py."""

from typing import NamedTuple

import torch

from mixer_dist import distributed
from tests.tiny import NONE, Changes, take_steps, tiny_batch, tiny_config, tiny_engine


class Outcome(NamedTuple):
    """Where a short run took place and what it gave."""

    device: str
    losses: list[float]
    num_updates: int


def short_run(engine: str, precision: str, changes: Changes = NONE) -> Outcome:
    """Six steps at world size 1 on the GPU."""
    with distributed.connected(60):
        config = tiny_config(engine, precision, **changes)
        trained = tiny_engine(config)
        losses = take_steps(trained, config, 0, 6)
        return Outcome(distributed.device().type, losses, trained.num_updates)


def cpu_losses(precision: str, changes: Changes) -> list[float]:
    """The same steps on the CPU, computed by one process."""
    torch.cuda.is_available = lambda: False  # type: ignore[assignment]
    return short_run("single", precision, changes).losses


def steps_ahead_of_the_gpu(engine: str) -> int:
    """Updates, of which the last three raise where the host waits for the device."""
    with distributed.connected(60):
        config = tiny_config(engine, "bf16")
        trained = tiny_engine(config)
        take_steps(trained, config, 0, 3)  # what is set up once may wait
        batches = [tiny_batch(config, step).pinned() for step in range(3, 6)]
        torch.cuda.set_sync_debug_mode("error")
        for batch in batches:
            trained.train_step(batch.to(distributed.device()), 1e-3)
        torch.cuda.set_sync_debug_mode("default")
        return trained.num_updates
