"""What a run does when one of its ranks dies, hangs, slows down or holds spoiled values."""

import json
import signal
import socket
from pathlib import Path

import pytest

from mixer_dist import cli
from mixer_dist.checkpoint.catalog import list_checkpoints
from mixer_dist.metrics import read_events, read_metrics
from mixer_dist.run_dir import RunDir
from mixer_dist.storage import Storage
from tests.system import failure_cases
from tests.system.failure_cases import endings

STEPS = 24
STORAGE = Storage()
HOST = socket.gethostname()


@pytest.fixture
def run_dir(tmp_path: Path) -> RunDir:
    return RunDir(str(tmp_path / "run"))


@pytest.fixture
def log(tmp_path: Path) -> str:
    return str(tmp_path / "log")


@pytest.fixture
def arguments(digits: Path, run_dir: RunDir) -> list[str]:
    return arguments_of(digits, run_dir)


def arguments_of(digits: Path, run_dir: RunDir) -> list[str]:
    """A run of 24 tiny steps, a checkpoint every 6."""
    return [
        f"run_dir={run_dir.url}", "engine.name=fsdp", f"total_steps={STEPS}",
        "global_batch_size=16", "micro_batch_size=8", "model.num_blocks=1", "model.hidden_dim=16",
        "checkpoint.every_steps=6", "logging.every_steps=3", "optimizer.warmup_steps=2",
        "engine.hang_timeout_s=5", f"data.train.0.manifest={digits}/train/manifest.json",
    ]  # fmt: skip


def said(log: str, rank: int) -> str:
    return Path(f"{log}-{rank}").read_text()


def committed(run_dir: RunDir) -> list[int]:
    """Steps with a checkpoint."""
    return sorted(found.manifest.step for found in list_checkpoints(STORAGE, run_dir)[0])


def events(run_dir: RunDir, kind: str, attempt: int = 1) -> list[dict]:
    return [e for e in read_events(STORAGE, run_dir, attempt) if e["event"] == kind]


@pytest.mark.parametrize(("dead", "world_size"), [(2, 3), (0, 2)])
def test_a_killed_rank_is_named_and_ends_the_others(
    ranks, arguments, run_dir, log, dead, world_size
):
    case = (failure_cases.signalled, arguments, log, dead, 8, signal.SIGKILL)
    codes = endings(ranks, world_size, *case)
    assert codes == [-signal.SIGKILL if rank == dead else 1 for rank in range(world_size)]
    for witness in [0] if dead else [1]:
        assert f"mixer-dist: rank {dead} (host {HOST}) is gone\n" in said(log, witness)
        assert "Traceback" not in said(log, witness)
    assert committed(run_dir) == [6]


def test_a_rank_that_fails_says_why_and_ends_the_others(ranks, arguments, run_dir, log):
    assert endings(ranks, 3, failure_cases.failing, arguments, log, 1, 8) == [1, 1, 1]
    assert "mixer-dist: a shard is gone" in said(log, 1)
    assert "a shard is gone" not in said(log, 0) + said(log, 2)
    assert "Traceback" not in said(log, 0) + said(log, 1) + said(log, 2)


def test_who_waits_for_whom_is_said_when_a_data_stage_hangs(ranks, arguments, run_dir, log):
    assert endings(ranks, 3, failure_cases.without_data, arguments, log, 1, 8) == [1, 1, 1]
    line = (
        f"rank 1 (host {HOST}) is waiting for the data of step 8; "
        "ranks 0, 2 wait for that, computing step 8\n"
    )
    assert line in said(log, 0)
    assert "in hang\n" in said(log, 1)  # where its main thread stands
    folder = Path(run_dir.hangs_folder(1))
    assert {path.name for path in folder.iterdir()} == {f"rank-0000{n}.txt" for n in range(3)}
    assert "in train_step" in (folder / "rank-00002.txt").read_text()
    [event] = events(run_dir, "abort")
    assert (event["ranks"], event["hosts"]) == ([1], [HOST])


@pytest.mark.parametrize("frozen", [0, 1])
def test_a_frozen_rank_is_named_by_the_others(ranks, arguments, run_dir, log, frozen):
    case = (failure_cases.signalled, arguments, log, frozen, 8, signal.SIGSTOP)
    codes = endings(ranks, 2, *case)
    assert codes == [-signal.SIGKILL if rank == frozen else 1 for rank in range(2)]
    assert f"rank {frozen} (host {HOST}) does not answer" in said(log, 1 - frozen)
    stacks = Path(run_dir.hangs_folder(1), f"rank-0000{1 - frozen}.txt").read_text()
    assert "in train" in stacks


def test_a_hang_of_one_process_alone_is_ended(ranks, arguments, run_dir, log):
    assert endings(ranks, 1, failure_cases.without_data, arguments, log, 0, 8) == [1]
    assert f"rank 0 (host {HOST}) is waiting for the data of step 8\n" in said(log, 0)


def test_slow_ranks_are_named_with_what_is_slow(ranks, arguments, run_dir, log):
    assert endings(ranks, 3, failure_cases.slow, arguments, log, 1, 2) == [0, 0, 0]
    assert f"rank 1 (host {HOST}) computes slowly: " in said(log, 0)
    assert f"rank 2 (host {HOST}) waits for data " in said(log, 0)
    found = {(e["slow_rank"], e["phase"]): e for e in events(run_dir, "straggler")}
    assert found.keys() >= {(1, "compute"), (2, "data")}
    assert found[1, "compute"]["factor"] > 3
    assert said(log, 0).count(f"rank 1 (host {HOST}) computes slowly") == 1  # in 8 intervals


SPIKES = ["numerics.spike_z=50", "numerics.on_spike=skip", "numerics.window=8"]


def losses(run_dir: RunDir) -> list[float]:
    return [line["loss"] for line in read_metrics(STORAGE, run_dir)]


@pytest.fixture(scope="module")
def spiked(ranks, digits, tmp_path_factory) -> RunDir:
    """A run of one process with a spike at step 14."""
    folder = tmp_path_factory.mktemp("spiked")
    run_dir = RunDir(str(folder / "run"))
    arguments = [*arguments_of(digits, run_dir), *SPIKES]
    assert endings(ranks, 1, failure_cases.spiking, arguments, str(folder / "log"), 14) == [0]
    return run_dir


def test_a_spike_is_skipped_and_named(spiked):
    skipped = [line for line in read_metrics(STORAGE, spiked) if line["update_skipped"]]
    assert [(line["step"], line["skip_reason"]) for line in skipped] == [(14, "spike")]
    [event] = events(spiked, "skip")
    assert (event["step"], event["reason"]) == (14, "spike")
    assert "grad_norm" in event["culprit"]
    newest = list_checkpoints(STORAGE, spiked)[0][0].manifest
    assert (newest.step, newest.num_updates) == (STEPS, STEPS - 1)


@pytest.mark.parametrize(("engine", "world_size"), [("ddp", 2), ("zero2", 2)])
def test_a_spike_is_skipped_alike_under_every_engine_and_after_a_kill(
    ranks, arguments, run_dir, log, spiked, engine, world_size
):
    """The window of norms is that of the steps before the kill."""
    arguments = [*arguments, *SPIKES, f"engine.name={engine}"]
    codes = endings(ranks, world_size, failure_cases.spiking, arguments, log, 14, 13)
    assert codes == [-signal.SIGKILL] * world_size
    codes = endings(ranks, world_size, failure_cases.spiking, arguments, log, 14)
    assert codes == [0] * world_size
    assert committed(run_dir)[-1] == STEPS
    assert losses(run_dir) == pytest.approx(losses(spiked), rel=1e-5)


def test_a_spike_is_only_told_where_that_is_asked_for(ranks, arguments, run_dir, log):
    arguments = [*arguments, *SPIKES, "numerics.on_spike=warn"]
    assert endings(ranks, 1, failure_cases.spiking, arguments, log, 14) == [0]
    assert not any(line["update_skipped"] for line in read_metrics(STORAGE, run_dir))
    assert "step 14: spike of the grad_norm" in said(log, 0)
    assert 14 in {event["step"] for event in events(run_dir, "spike")}


@pytest.mark.parametrize(("engine", "world_size", "named"), [("ddp", 4, [2]), ("zero2", 2, [0, 1])])
def test_a_flipped_weight_is_never_saved(ranks, arguments, run_dir, log, engine, world_size, named):
    arguments = [*arguments, f"engine.name={engine}"]
    flipped = named[-1]
    codes = endings(ranks, world_size, failure_cases.flipping, arguments, log, flipped, 12)
    assert codes == [1] * world_size
    assert committed(run_dir) == [6]
    names = ", ".join(f"rank {rank} (host {HOST})" for rank in named)
    assert f"mixer-dist: {names} hold" in said(log, 0)
    assert events(run_dir, "replicas_differ")


def test_steps_left_out_by_hand(ranks, arguments, run_dir, log, capsys):
    killed = (failure_cases.signalled, arguments, log, 0, 8, signal.SIGKILL)
    endings(ranks, 2, *killed)
    wanted = [*arguments, "data.skip_steps=[[8, 9]]"]
    again = (failure_cases.signalled, wanted, log, 0, 14, signal.SIGKILL)
    endings(ranks, 2, *again)
    assert "Left out: what steps 8 to 9 would have read, positions 112 to 143." in said(log, 0)
    assert endings(ranks, 1, failure_cases.pretrain, wanted, log) == [0]
    assert "Left out" not in said(log, 0)
    positions = [line["position"] for line in read_metrics(STORAGE, run_dir)]
    assert positions == [16 * (step + 2 * (step > 7)) for step in range(1, STEPS + 1)]
    assert cli.main(["data", "audit", run_dir.url, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["num_steps"] == STEPS and found["skipped"] == [[112, 144]]
    late = [*wanted, "data.skip_steps=[[8, 9], [20, 21]]"]
    assert endings(ranks, 1, failure_cases.pretrain, late, log) == [2]
    assert "step 20 of [20, 21] is trained already" in said(log, 0)
    assert f"after {run_dir.checkpoint(18)} away" in said(log, 0)
    assert len(list(Path(run_dir.attempts).iterdir())) == 3
