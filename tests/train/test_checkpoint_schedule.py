"""Saves go on beside training: a slow store delays the next save, a failing one costs one save."""

from pathlib import Path

import pytest

from mixer_dist.checkpoint.catalog import list_checkpoints
from mixer_dist.metrics import read_events, read_metrics
from mixer_dist.run_dir import RunDir
from mixer_dist.storage import Storage
from tests.train import schedule_cases

STEPS = 20


def overrides(digits: Path, run_dir: RunDir, engine: str = "fsdp", **changes: object) -> list[str]:
    """A run of 20 tiny steps with a checkpoint every 5."""
    return [
        f"run_dir={run_dir.url}", f"engine.name={engine}", f"total_steps={STEPS}",
        "global_batch_size=16", "micro_batch_size=8", "model.num_blocks=1", "model.hidden_dim=16",
        "checkpoint.every_steps=5", "logging.every_steps=5", "optimizer.warmup_steps=5",
        f"data.train.0.manifest={digits}/train/manifest.json",
        *(f"{key}={value}" for key, value in changes.items()),
    ]  # fmt: skip


@pytest.fixture
def run_dir(tmp_path: Path) -> RunDir:
    return RunDir(str(tmp_path / "run"))


def committed(run_dir: RunDir) -> list[int]:
    """Steps with a checkpoint."""
    checkpoints, _ = list_checkpoints(Storage(), run_dir)
    return sorted(checkpoint.manifest.step for checkpoint in checkpoints)


def events(run_dir: RunDir, kind: str) -> list[dict]:
    return [event for event in read_events(Storage(), run_dir, 1) if event["event"] == kind]


@pytest.mark.parametrize("engine", ["fsdp", "zero2"])
def test_training_goes_on_while_a_save_is_slow(ranks, digits, run_dir, engine):
    arguments = overrides(digits, run_dir, engine)
    codes = ranks.run(2, schedule_cases.pretrain_with_a_slow_save, arguments, 5, 13)
    assert codes == [0, 0]
    first, *others, last = committed(run_dir)
    assert (first, last) == (5, STEPS)
    assert others and min(others) > 13  # the save of step 10, once there was room
    assert [line["step"] for line in read_metrics(Storage(), run_dir)] == list(range(1, STEPS + 1))


def test_a_failed_save_is_told_and_made_up_for(ranks, digits, run_dir):
    arguments = overrides(digits, run_dir)
    codes = ranks.run(2, schedule_cases.pretrain_with_a_failing_save, arguments, 10)
    assert codes == [0, 0]
    assert committed(run_dir) == [5, 15, STEPS]
    assert [event["rank"] for event in events(run_dir, "save_failed")] == [0]
    assert "no space left" in events(run_dir, "save_failed")[0]["reason"]


def test_a_run_whose_last_save_fails_has_failed(ranks, digits, run_dir):
    """Else its last steps would be lost without a word."""
    arguments = overrides(digits, run_dir)
    codes = ranks.run(2, schedule_cases.pretrain_with_a_failing_save, arguments, STEPS)
    assert codes == [1, 1]
    assert committed(run_dir) == [5, 10, 15]
    assert not events(run_dir, "finish")
    assert ranks.run(2, schedule_cases.pretrain, arguments) == [0, 0]
    assert committed(run_dir)[-1] == STEPS


def test_a_save_under_way_is_abandoned_after_the_grace_time(ranks, digits, run_dir):
    arguments = overrides(digits, run_dir, **{"checkpoint.grace_s": 0.2})
    codes = ranks.run(2, schedule_cases.pretrain_that_fails_during_a_save, arguments, 7)
    assert codes == [1, 1]
    assert committed(run_dir) == []
    assert not list(Path(run_dir.checkpoints).rglob("*.tmp"))
    assert ranks.run(2, schedule_cases.pretrain_unhurriedly, arguments) == [0, 0]
    assert committed(run_dir) == [5, 10, 15, STEPS]
