"""What runs on each rank in test_finetune.py."""

import os
from typing import Any

import pytest

from mixer_dist import cli
from mixer_dist.data.batch import Batch
from mixer_dist.train.checkpoint_schedule import CheckpointSchedule


def evaluate(arguments: list[str]) -> int:
    """The verb on the run's untrained model, on one rank; its exit code."""
    return cli.main(["evaluate", *arguments, "--task", "tuned", "--checkpoint", "untrained"])


def signalled_after(arguments: list[str], step: int, number: int) -> int:
    """This rank gets a signal when the first fine-tuning run has done a step."""
    original: Any = CheckpointSchedule.step_done

    def step_done(self: CheckpointSchedule, batch: Batch) -> None:
        original(self, batch)
        if batch.step + 1 == step:
            os.kill(os.getpid(), number)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(CheckpointSchedule, "step_done", step_done)
        return evaluate(arguments)
