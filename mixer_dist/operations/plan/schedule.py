"""How long the run takes, what it costs, and what its checkpoints do."""

from dataclasses import dataclass

from mixer_dist.operations.plan.partition import sizes_of
from mixer_dist.operations.plan.setup import Setup
from mixer_dist.train.description import STATE_BYTES

DAY_S, HOUR_S = 86_400.0, 3_600.0


@dataclass(frozen=True)
class Schedule:
    """From the first step to the last."""

    days: float
    gpu_hours: float
    cost: float | None
    """In the currency of the price, if one is given."""
    checkpoint_bytes: int
    checkpoint_s: float
    """In which one is written, beside training."""
    checkpoint_every_s: float


def schedule(setup: Setup, step_s: float, price_per_gpu_hour: float | None) -> Schedule:
    """The whole run at this speed."""
    config = setup.config
    gpu_hours = config.total_steps * step_s * setup.num_gpus / HOUR_S
    num_bytes = STATE_BYTES * sizes_of(config).whole
    return Schedule(
        days=config.total_steps * step_s / DAY_S,
        gpu_hours=gpu_hours,
        cost=None if price_per_gpu_hour is None else gpu_hours * price_per_gpu_hour,
        checkpoint_bytes=num_bytes,
        checkpoint_s=num_bytes / (setup.num_nodes * setup.rates.save_bytes_per_s),
        checkpoint_every_s=config.checkpoint.every_steps * step_s,
    )
