"""What runs on each rank in test_preemption.py."""

import os
import signal
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from mixer_dist import cli, distributed
from mixer_dist.data.batch import Batch
from mixer_dist.storage import Storage
from mixer_dist.train import start
from mixer_dist.train.checkpoint_schedule import CheckpointSchedule

STUCK_S = 60.0


def pretrain(arguments: list[str]) -> int:
    """The verb, on one rank; its exit code."""
    return cli.main(["pretrain", "configs/quickstart.yaml", *arguments])


def signalled_after(arguments: list[str], step: int, number: int, rank: int) -> int:
    """One rank gets a signal when it has done a step."""
    original: Any = CheckpointSchedule.step_done

    def step_done(self: CheckpointSchedule, batch: Batch) -> None:
        original(self, batch)
        if batch.step + 1 == step and distributed.rank() == rank:
            os.kill(os.getpid(), number)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(CheckpointSchedule, "step_done", step_done)
        return pretrain(arguments)


def signalled_at_the_start(arguments: list[str]) -> int:
    """Every rank gets SIGTERM while it looks for a checkpoint."""
    original = start.newest_verified

    def newest_verified(*given: Any) -> Any:
        os.kill(os.getpid(), signal.SIGTERM)
        return original(*given)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(start, "newest_verified", newest_verified)
        return pretrain(arguments)


def signalled_twice(arguments: list[str], step: int) -> int:
    """SIGUSR2 after a step; once more while the store hangs during the save that this causes."""
    original: Any = Storage.write_parts

    def write_parts(self: Storage, url: str, parts: Any) -> None:
        if "pieces" not in url:
            return original(self, url, parts)

        def stuck() -> Any:
            for _ in range(1 if distributed.rank() == 0 else 2):  # rank 0 has had one
                threading.Timer(0.2, os.kill, (os.getpid(), signal.SIGUSR2)).start()
                time.sleep(0.05)  # else the two would be one
            for part in parts():
                yield part
                self._stopped.wait(STUCK_S)

        return original(self, url, stuck)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Storage, "write_parts", write_parts)
        return signalled_after(arguments, step, signal.SIGUSR2, rank=0)


def leftovers(run_dir: str) -> list[str]:
    """Files that were being written."""
    return [str(path) for path in Path(run_dir).rglob("*.tmp")]
