"""What runs on each rank in test_failures.py: small real runs in which one rank goes wrong."""

import os
import signal
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from mixer_dist import cli, distributed
from mixer_dist.data.batch import Batch
from mixer_dist.data.stream import TrainStream
from mixer_dist.errors import DataError
from mixer_dist.models.recomputed import RecomputedChannelLinear
from mixer_dist.train.checkpoint_schedule import CheckpointSchedule
from tests.ranks import Ranks, free_port

DEADLINE_S = 120.0
FOREVER_S = 1000.0


def endings(ranks: Ranks, world_size: int, function: Callable[..., int], *args: Any) -> list[int]:
    """The exit code of each rank, negative for a signal; what is left of a frozen one is killed."""
    port = free_port()
    started = [ranks.start(world_size, rank, port, function, *args) for rank in range(world_size)]
    give_up = time.monotonic() + DEADLINE_S
    while sum(process.is_alive() for process, _ in started) > is_frozen(started, give_up):
        time.sleep(0.05)
    return [ending(process, pipe) for process, pipe in started]


def is_frozen(started: list[Any], give_up: float) -> int:
    """How many ranks will not end by themselves."""
    if time.monotonic() > give_up:
        return len(started)
    return sum(process.is_alive() and state_of(process.pid) == "T" for process, _ in started)


def state_of(pid: int) -> str:
    """T where the process is stopped."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return "gone"


def ending(process: Any, pipe: Any) -> int:
    """The code that the verb gave, or that the process ended with."""
    process.kill()
    process.join()
    try:
        return int(pipe.recv()[1]) if pipe.poll() else process.exitcode
    except EOFError:
        return int(process.exitcode)


def pretrain(arguments: list[str], log: str) -> int:
    """The verb, with all that it says in `log` and the rank's number; its exit code."""
    output = os.open(f"{log}-{distributed.rank()}", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(output, 1)
    os.dup2(output, 2)
    return cli.main(["pretrain", "configs/quickstart.yaml", *arguments])


def signalled(arguments: list[str], log: str, rank: int, step: int, number: int) -> int:
    """A rank gets a signal after a step, once the checkpoint before it is committed."""

    def signal_itself(schedule: CheckpointSchedule) -> None:
        schedule._saver.ends_by(time.monotonic() + DEADLINE_S)
        os.kill(os.getpid(), number)

    if distributed.rank() == rank:
        after_step(step, signal_itself)
    return pretrain(arguments, log)


def failing(arguments: list[str], log: str, rank: int, step: int) -> int:
    """A rank alone meets an error after a step."""

    def fail(_: CheckpointSchedule) -> None:
        raise DataError("a shard is gone")

    if distributed.rank() == rank:
        after_step(step, fail)
    return pretrain(arguments, log)


def without_data(arguments: list[str], log: str, rank: int, step: int) -> int:
    """A rank's data stage hangs before a step."""

    def hang(batch: Batch) -> Batch:
        time.sleep(FOREVER_S if batch.step + 1 == step else 0)
        return batch

    if distributed.rank() == rank:
        change_batches(hang)
    return pretrain(arguments, log)


def slow(arguments: list[str], log: str, slow_rank: int, hungry_rank: int) -> int:
    """One rank computes slowly, another one gets its data slowly."""

    def starve(batch: Batch) -> Batch:
        time.sleep(0.1)
        return batch

    if distributed.rank() == hungry_rank:
        change_batches(starve)
    if distributed.rank() == slow_rank:
        slow_down(RecomputedChannelLinear, 0.04)  # above a busy machine's own scatter
    return pretrain(arguments, log)


def spiking(arguments: list[str], log: str, step: int, fail_at: int = -1) -> int:
    """The images of one step weigh a hundred times as much; the run may be killed after a step."""

    def spike(batch: Batch) -> Batch:
        return replace(batch, weights=batch.weights * (100 if batch.step + 1 == step else 1))

    change_batches(spike)
    if fail_at > 0:
        after_step(fail_at, lambda _: os.kill(os.getpid(), signal.SIGKILL))
    return pretrain(arguments, log)


def flipping(arguments: list[str], log: str, rank: int, step: int) -> int:
    """A bit of a weight flips on one rank before the save after a step."""

    def flip(schedule: CheckpointSchedule) -> None:
        _, tensor = list(schedule._engine.replicas())[1]
        words = tensor.detach().view(-1).view(torch.int32)
        words[3] ^= 1 << 7

    if distributed.rank() == rank:
        after_step(step, flip)
    return pretrain(arguments, log)


def after_step(step: int, action: Callable[[CheckpointSchedule], None]) -> None:
    """Do something between a step and the save that may follow; for this process's lifetime."""
    original: Any = CheckpointSchedule.step_done

    def step_done(self: CheckpointSchedule, batch: Batch) -> None:
        if batch.step + 1 == step:
            action(self)
        original(self, batch)

    CheckpointSchedule.step_done = step_done  # type: ignore[method-assign]


def change_batches(change: Callable[[Batch], Batch]) -> None:
    """Have each batch changed before the trainer gets it; for this process's lifetime."""
    original: Any = TrainStream.__iter__

    def changed(self: TrainStream) -> Iterator[Batch]:
        return map(change, original(self))

    TrainStream.__iter__ = changed  # type: ignore[method-assign]


def slow_down(module: Any, seconds: float) -> None:
    """Have a module's forward take longer; for this process's lifetime."""
    original = module.forward

    def forward(self: Any, x: torch.Tensor) -> torch.Tensor:
        time.sleep(seconds)
        return original(self, x)

    module.forward = forward
