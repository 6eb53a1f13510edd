"""A signal asks a run to stop: it saves once, ends with 75, and goes on where it was."""

import signal
from pathlib import Path

import pytest

from mixer_dist.checkpoint.catalog import list_checkpoints
from mixer_dist.metrics import read_events, read_metrics
from mixer_dist.run_dir import RunDir
from mixer_dist.storage import Storage
from tests.system import preemption_cases

STEPS = 24
STORAGE = Storage()


@pytest.fixture
def run_dir(tmp_path: Path) -> RunDir:
    return RunDir(str(tmp_path / "run"))


def overrides(digits: Path, run_dir: RunDir, every_steps: int = 100) -> list[str]:
    """A run of 24 tiny steps."""
    return [
        f"run_dir={run_dir.url}", "engine.name=fsdp", f"total_steps={STEPS}",
        "global_batch_size=16", "micro_batch_size=8", "model.num_blocks=1", "model.hidden_dim=16",
        f"checkpoint.every_steps={every_steps}", "logging.every_steps=5",
        "optimizer.warmup_steps=5", f"data.train.0.manifest={digits}/train/manifest.json",
    ]  # fmt: skip


def committed(run_dir: RunDir) -> list[int]:
    """Steps with a checkpoint."""
    return sorted(found.manifest.step for found in list_checkpoints(STORAGE, run_dir)[0])


def kinds(run_dir: RunDir, attempt: int) -> list[str]:
    """Of the events of rank 0, without what a busy machine adds."""
    events = read_events(STORAGE, run_dir, attempt)
    return [e["event"] for e in events if e["rank"] == 0 and e["event"] != "straggler"]


@pytest.mark.parametrize(("number", "rank"), [(signal.SIGUSR2, 1), (signal.SIGTERM, 0)])
def test_one_signalled_rank_stops_all_after_one_save(ranks, digits, run_dir, number, rank):
    arguments = overrides(digits, run_dir)
    codes = ranks.run(2, preemption_cases.signalled_after, arguments, 7, number, rank)
    assert codes == [75, 75]
    assert committed(run_dir) == [8]  # the answer of the vote comes with the next step
    assert kinds(run_dir, 1) == ["start", "save", "preempt"]
    assert ranks.run(3, preemption_cases.pretrain, arguments) == [0, 0, 0]
    lines = read_metrics(STORAGE, run_dir)
    assert [line["step"] for line in lines] == list(range(1, STEPS + 1))
    assert [line["attempt"] for line in lines] == [1] * 8 + [2] * (STEPS - 8)


def test_a_signal_beside_a_due_save_saves_once(ranks, digits, run_dir):
    arguments = overrides(digits, run_dir, every_steps=8)
    codes = ranks.run(2, preemption_cases.signalled_after, arguments, 7, signal.SIGUSR2, 0)
    assert codes == [75, 75]
    assert committed(run_dir) == [8]
    assert kinds(run_dir, 1).count("save") == 1


def test_a_signal_during_the_start_is_not_lost(ranks, digits, run_dir):
    codes = ranks.run(2, preemption_cases.signalled_at_the_start, overrides(digits, run_dir))
    assert codes == [75, 75]
    assert committed(run_dir) == [2]


def test_a_second_signal_drops_the_save_and_spoils_nothing(ranks, digits, run_dir):
    arguments = overrides(digits, run_dir, every_steps=5)
    codes = ranks.run(2, preemption_cases.signalled_after, arguments, 7, signal.SIGUSR2, 0)
    assert (codes, committed(run_dir)) == ([75, 75], [5, 8])
    codes = ranks.run(2, preemption_cases.signalled_twice, arguments, 9)
    assert codes == [75, 75]
    assert committed(run_dir) == [5, 8]
    assert not preemption_cases.leftovers(run_dir.url)
    assert ranks.run(1, preemption_cases.pretrain, arguments) == [0]
    steps = [line["step"] for line in read_metrics(STORAGE, run_dir)]
    assert steps == list(range(1, STEPS + 1))
