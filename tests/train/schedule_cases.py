"""What runs on each rank in test_checkpoint_schedule.py: runs whose store is slow or fails."""

import threading
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pytest

from mixer_dist import cli, distributed
from mixer_dist.checkpoint.layout import MANIFEST_NAME
from mixer_dist.data.batch import Batch
from mixer_dist.errors import DataError, StorageError
from mixer_dist.run_dir import RunDir
from mixer_dist.storage import Storage
from mixer_dist.train.checkpoint_schedule import CheckpointSchedule

STUCK_S = 60.0


def pretrain(arguments: list[str]) -> int:
    """The verb, on one rank; its exit code."""
    return cli.main(["pretrain", "configs/quickstart.yaml", *arguments])


def pretrain_with_a_slow_save(arguments: list[str], slow_step: int, done_step: int) -> int:
    """The pieces of one step are not written before training has done another one."""
    reached = threading.Event()
    run_dir = RunDir(arguments[0].removeprefix("run_dir="))
    manifest = Path(run_dir.checkpoint(slow_step)) / MANIFEST_NAME

    def step_done(self: CheckpointSchedule, batch: Batch, *, original: Any) -> None:
        is_done_step = batch.step + 1 == done_step
        if is_done_step:
            reached.set()
        original(self, batch)
        if is_done_step:
            wait_for(manifest)

    def write_parts(self: Storage, url: str, parts: Any, *, original: Any) -> None:
        if f"step-{slow_step:08d}/pieces" in url and not reached.wait(STUCK_S):
            raise AssertionError("training stood still for the save")
        original(self, url, parts)

    with pytest.MonkeyPatch.context() as patch:
        _wrap(patch, CheckpointSchedule, "step_done", step_done)
        _wrap(patch, Storage, "write_parts", write_parts)
        return pretrain(arguments)


def pretrain_with_a_failing_save(arguments: list[str], failing_step: int) -> int:
    """The last rank cannot write its pieces of one step."""

    def write_parts(self: Storage, url: str, parts: Any, *, original: Any) -> None:
        is_last = distributed.rank() == distributed.world_size() - 1
        if f"step-{failing_step:08d}/pieces" in url and is_last:
            raise StorageError(f"{url}: no space left on device")
        original(self, url, parts)

    with pytest.MonkeyPatch.context() as patch:
        _wrap(patch, Storage, "write_parts", write_parts)
        return pretrain_unhurriedly(arguments)


def pretrain_unhurriedly(arguments: list[str]) -> int:
    """With steps so long that each save is over before the next, on a busy machine too."""

    def step_done(self: CheckpointSchedule, batch: Batch, *, original: Any) -> None:
        time.sleep(0.1)
        original(self, batch)

    with pytest.MonkeyPatch.context() as patch:
        _wrap(patch, CheckpointSchedule, "step_done", step_done)
        return pretrain(arguments)


def pretrain_that_fails_during_a_save(arguments: list[str], failing_step: int) -> int:
    """Training ends with an error while pieces are half written to a store that hangs."""
    half_written, never = threading.Event(), threading.Event()

    def step_done(self: CheckpointSchedule, batch: Batch, *, original: Any) -> None:
        original(self, batch)
        if batch.step + 1 == failing_step:
            assert half_written.wait(STUCK_S)
            raise DataError("a shard is gone")

    def write_parts(self: Storage, url: str, parts: Any, *, original: Any) -> None:
        def slowly() -> Iterable[Any]:
            for part in parts():
                yield part
                half_written.set()
                never.wait(0.5)

        original(self, url, slowly if "pieces" in url else parts)

    with pytest.MonkeyPatch.context() as patch:
        _wrap(patch, CheckpointSchedule, "step_done", step_done)
        _wrap(patch, Storage, "write_parts", write_parts)
        return pretrain(arguments)


def wait_for(manifest: Path) -> None:
    """Until it is there, and a moment more, in which its save ends."""
    give_up = time.monotonic() + STUCK_S
    while not manifest.exists() and time.monotonic() < give_up:
        time.sleep(0.05)
    time.sleep(0.5)


def _wrap(patch: pytest.MonkeyPatch, owner: type, name: str, wrapper: Callable[..., None]) -> None:
    """Replace a method by one that also gets the original."""
    original = getattr(owner, name)
    patch.setattr(owner, name, lambda *args: wrapper(*args, original=original))
