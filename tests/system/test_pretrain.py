"""The whole run on real shards: killed, resumed elsewhere, and still the same run."""

import json
import os
import signal
import time
from pathlib import Path

import pytest

from mixer_dist import cli
from mixer_dist.metrics import read_metrics
from mixer_dist.run_dir import RunDir, attempt_numbers, read_attempt
from mixer_dist.storage import Storage
from tests.ranks import free_port

STEPS = 40
KILLED_AFTER = 20


def overrides(digits: Path, run_dir: Path, engine: str) -> list[str]:
    """The quickstart's run with mixup and stochastic depth, 40 steps of 48 images."""
    return [
        f"run_dir={run_dir}", f"engine.name={engine}", f"total_steps={STEPS}",
        "global_batch_size=48", "micro_batch_size=8", "augment.mixup=0.4",
        "model.stochastic_depth=0.2", "model.num_blocks=2", "model.hidden_dim=32",
        "checkpoint.every_steps=10", "logging.every_steps=5", "optimizer.warmup_steps=5",
        f"data.train.0.manifest={digits}/train/manifest.json",
    ]  # fmt: skip


def pretrain(arguments: list[str]) -> int:
    """The verb, on one rank; its exit code."""
    return cli.main(["pretrain", "configs/quickstart.yaml", *arguments])


@pytest.fixture(scope="module")
def uninterrupted(ranks, digits, tmp_path_factory):
    """Metrics of the run on one process."""
    run_dir = tmp_path_factory.mktemp("whole") / "run"
    assert ranks.run(1, pretrain, overrides(digits, run_dir, "single")) == [0]
    return metrics(run_dir)


def metrics(run_dir: Path) -> list[dict]:
    return read_metrics(Storage(), RunDir(str(run_dir)))


def run_and_kill(ranks, world_size: int, arguments: list[str], run_dir: Path) -> None:
    """Start ranks, and end them all without warning once a checkpoint is committed."""
    port = free_port()
    started = [ranks.start(world_size, r, port, pretrain, arguments) for r in range(world_size)]
    manifest = run_dir / "checkpoints" / f"step-{KILLED_AFTER:08d}" / "manifest.json"
    give_up = time.monotonic() + 100
    while not manifest.exists() and time.monotonic() < give_up:
        time.sleep(0.02)
    for process, _ in started:
        os.kill(process.pid, signal.SIGKILL)
        process.join()
    assert manifest.exists()


def test_killed_under_zero2_and_resumed_under_fsdp_it_is_the_same_run(
    ranks, digits, tmp_path, uninterrupted
):
    run_dir = tmp_path / "run"
    run_and_kill(ranks, 2, overrides(digits, run_dir, "zero2"), run_dir)
    assert ranks.run(3, pretrain, overrides(digits, run_dir, "fsdp")) == [0, 0, 0]
    found = metrics(run_dir)
    assert [line["step"] for line in found] == list(range(1, STEPS + 1))
    for line, expected in zip(found, uninterrupted, strict=True):
        assert line["batch_digest"] == expected["batch_digest"]
        assert line["learning_rate"] == expected["learning_rate"]
        assert line["loss"] == pytest.approx(expected["loss"], rel=1e-5)
    assert {line["attempt"] for line in found} == {1, 2}


def test_killed_and_resumed_on_the_same_ranks_it_is_bitwise_the_same(ranks, digits, tmp_path):
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    assert ranks.run(2, pretrain, overrides(digits, whole, "zero1")) == [0, 0]
    run_and_kill(ranks, 2, overrides(digits, killed, "zero1"), killed)
    assert ranks.run(2, pretrain, overrides(digits, killed, "zero1")) == [0, 0]
    for line, expected in zip(metrics(killed), metrics(whole), strict=True):
        assert (line["loss"], line["grad_norm"]) == (expected["loss"], expected["grad_norm"])
    files = [f"{run}/checkpoints/step-{STEPS:08d}/manifest.json" for run in (whole, killed)]
    manifests = [json.loads(Path(file).read_text()) for file in files]
    assert manifests[0]["parameters"] == manifests[1]["parameters"]
    hashes = [[f["sha256"] for f in manifest["files"]] for manifest in manifests]
    assert hashes[0] == hashes[1]


def pretrain_without_torchrun(arguments: list[str], environment: dict[str, str]) -> int:
    """The verb in a process that knows of no torchrun."""
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE"):
        del os.environ[name]
    os.environ.update(environment)
    return pretrain(arguments)


@pytest.mark.parametrize(
    "environment",
    [{}, {"SLURM_STEP_NUM_TASKS": "1", "SLURM_PROCID": "0", "SLURM_LOCALID": "0"}],
    ids=["plain python", "srun"],
)
def test_zero_trains_without_torchrun(ranks, digits, tmp_path, environment):
    arguments = [*overrides(digits, tmp_path / "run", "zero2"), "total_steps=6"]
    assert ranks.run(1, pretrain_without_torchrun, arguments, environment) == [0]


def test_a_finished_run_is_left_alone(ranks, digits, tmp_path):
    arguments = [*overrides(digits, tmp_path / "run", "single"), "total_steps=6"]
    assert ranks.run(1, pretrain, arguments) == [0]
    before = metrics(tmp_path / "run")
    assert ranks.run(1, pretrain, arguments) == [0]
    assert metrics(tmp_path / "run") == before


def test_it_trains_from_a_bucket_into_a_bucket(ranks, digits_s3, s3, tmp_path):
    run_dir = f"{s3.new_bucket()}/run"
    storage = {"s3://": {"endpoint_url": s3.endpoint_url, "checksum": "when_required"}}
    arguments = [
        *overrides(tmp_path, tmp_path, "fsdp"), f"storage={json.dumps(storage)}",
        f"run_dir={run_dir}", f"data.train.0.manifest={digits_s3}/train/manifest.json",
        "total_steps=10",
    ]  # fmt: skip
    assert ranks.run(2, pretrain, arguments) == [0, 0]
    found = read_metrics(s3.storage(), RunDir(run_dir))
    assert [line["step"] for line in found] == list(range(1, 11))


def test_the_resolved_config_of_each_start_is_kept(ranks, digits, tmp_path):
    run_dir = RunDir(str(tmp_path / "run"))
    arguments = [*overrides(digits, tmp_path / "run", "single"), "total_steps=6"]
    ranks.run(1, pretrain, [*arguments, "micro_batch_size=auto"])
    (number,) = attempt_numbers(Storage(), run_dir)
    attempt = read_attempt(Storage(), run_dir, number)
    assert attempt.resumed_from == 0
    assert attempt.config.data.order.lanes == 48
    assert attempt.config.data.order.round_samples == 48
    assert attempt.config.micro_batch_size == 48  # as all fit
