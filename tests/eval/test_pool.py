"""The pool on a small run: every checkpoint on every task, once, whoever is killed."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from mixer_dist import cli
from mixer_dist.config import load_config
from mixer_dist.errors import MixerError
from mixer_dist.eval.pool.pool import Pool
from mixer_dist.eval.pool.run_watch import RunWatch
from mixer_dist.run_dir import RunDir
from mixer_dist.stop_requests import StopRequests
from mixer_dist.storage import Storage
from tests.eval.forked_workers import ForkedExecutor
from tests.ranks import ROOT

PATIENCE_S = 120
STORAGE = Storage()


def wait_for(condition: Callable[[], Any]) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < deadline, "timed out"
        time.sleep(0.05)


@pytest.fixture(scope="module")
def trained(ranks, digits, tmp_path_factory) -> Path:
    """A run of 4 steps, of which 2 and 4 are saved, its configuration beside it."""
    folder = tmp_path_factory.mktemp("trained")
    manifests = {split: str(digits / split / "manifest.json") for split in ("train", "test")}
    task = {"kind": "fewshot", "resize": 32, "seeds": [0], "train": manifests["test"]}
    tree = {
        "run_dir": str(folder / "run"), "total_steps": 4,
        "global_batch_size": 8, "micro_batch_size": 8,
        "model": {"patch_size": 16, "hidden_dim": 8, "num_blocks": 1, "tokens_mlp_dim": 4,
                  "channels_mlp_dim": 4, "image_size": 32, "num_classes": 10},
        "data": {"train": [{"manifest": manifests["test"]}]},
        "optimizer": {"learning_rate": 0.001},
        "engine": {"name": "single", "precision": "fp32"},
        "checkpoint": {"every_steps": 2},
        "evals": [{**task, "name": name, "shots": shots, "test": manifests["test"]}
                  for name, shots in (("one", 1), ("five", 5))],
        "pool": {"poll_s": 0.5, "lease_s": 60, "log_dir": str(folder / "logs")},
    }  # fmt: skip
    (folder / "config.yaml").write_text(yaml.safe_dump(tree))
    assert ranks.run(1, cli.main, ["pretrain", str(folder / "config.yaml")]) == [0]
    return folder


@pytest.fixture
def run(trained, tmp_path) -> "Run":
    """A copy of it that a test may change."""
    shutil.copytree(trained / "run", tmp_path / "run")
    tree = yaml.safe_load((trained / "config.yaml").read_text())
    tree |= {"run_dir": str(tmp_path / "run")}
    tree["pool"]["log_dir"] = str(tmp_path / "logs")
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(tree))
    return Run(tmp_path)


class Run:
    def __init__(self, folder: Path) -> None:
        self.config = folder / "config.yaml"
        self.folder = folder / "run"

    def pool(self, executor: ForkedExecutor, *overrides: str) -> Pool:
        config = load_config(self.config, overrides)
        run_dir, arguments = RunDir(config.run_dir), [str(self.config), *overrides]
        watch = RunWatch(STORAGE, run_dir, config.evals, config.pool, arguments)
        return Pool([watch], executor, config.pool)

    def results(self) -> dict[str, float]:
        """Accuracies by task and step."""
        found = (self.folder / "evals").glob("*/step-*.json")
        return {
            f"{path.parent.name} {int(path.stem[5:])}": json.loads(path.read_text())["accuracy"]
            for path in found
        }

    def claims(self) -> list[Path]:
        return list(self.folder.glob("evals/*/claims/*/*.json"))

    def failures(self) -> list[str]:
        """Their tasks, steps and kinds."""
        found = self.folder.glob("evals/*/failures/*")
        return sorted(f"{path.parents[1].name} {path.name.rsplit('-', 1)[0]}" for path in found)


@pytest.fixture(scope="module")
def expected(ranks, trained) -> dict[str, float]:
    """The results of a pool that nobody disturbs."""
    shutil.copytree(trained, trained / "copy")
    run = Run(trained)
    run.pool(ForkedExecutor(ranks)).run(StopRequests())
    found = run.results()
    assert sorted(found) == ["five 2", "five 4", "one 2", "one 4"]
    assert not run.claims() and not run.failures()
    shutil.rmtree(run.folder / "evals")
    return found


def test_a_worker_that_is_killed_is_replaced_and_two_pools_agree(run, ranks, expected):
    executors = [ForkedExecutor(ranks) for _ in range(2)]
    pools = [run.pool(executor) for executor in executors]
    pools[0].round()
    wait_for(run.claims)
    executors[0].signal_all(signal.SIGKILL)
    assert not run.results()
    for pool in pools:
        pool.round()
    for pool in pools:
        pool.run(StopRequests())
    assert run.results() == expected
    assert len(run.failures()) == 1
    assert not run.claims()


def test_a_task_that_fails_holds_up_no_other_and_is_left_after_some_tries(run, ranks, expected):
    bad = ["evals.0.test=/nowhere/manifest.json", "pool.max_failures=2", "pool.max_workers=2"]
    executor = ForkedExecutor(ranks)
    with pytest.raises(
        MixerError, match=r"2 evaluations .* step 4, one \(.*/nowhere/manifest.json"
    ):
        run.pool(executor, *bad).run(StopRequests(), once=True)
    assert run.results() == {name: expected[name] for name in ("five 2", "five 4")}
    assert len(run.failures()) == 4
    assert executor.num_started == 6

    with pytest.raises(MixerError, match="2 evaluations"):  # another pool knows it too
        run.pool(executor, *bad).run(StopRequests(), once=True)
    assert executor.num_started == 6


def test_a_checkpoint_that_is_removed_is_no_failure_and_one_that_is_damaged_is(run, ranks):
    def evaluate(step: str) -> list[int]:
        words = ["evaluate", str(run.config), "--task", "one", "--claim", "worker"]
        checkpoint = run.folder / "checkpoints" / step
        return ranks.run(1, cli.main, [*words, "--checkpoint", str(checkpoint)])

    removed, damaged = sorted((run.folder / "checkpoints").glob("step-*"))
    shutil.rmtree(removed)
    for pieces in damaged.glob("pieces-*"):
        pieces.unlink()
    assert evaluate(removed.name) == [0]
    assert run.failures() == []
    assert evaluate(damaged.name) == [1]
    assert run.failures() == ["one step-00000004-failed"]
    assert not run.results() and not run.claims()


def test_a_pool_that_is_stopped_ends_its_workers_and_another_goes_on(run, expected):
    words = ["-m", "mixer_dist", "pool", str(run.config), "pool.every_steps=4", "--once"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, *words]
    with subprocess.Popen(command, cwd=ROOT, env=environment) as pool:
        wait_for(lambda: run.claims() or pool.poll() is not None)
        pool.send_signal(signal.SIGTERM)
        assert pool.wait(PATIENCE_S) == 75
    assert not run.claims() and not run.failures()
    left = {"five 4", "one 4"} - run.results().keys()  # one may have been done just before

    options = ["pool.max_workers=2"]
    shown = subprocess.run(
        [*command, *options], cwd=ROOT, env=environment, capture_output=True, text=True
    )
    assert shown.returncode == 0, shown.stderr
    assert run.results() == {name: expected[name] for name in ("five 4", "one 4")}
    assert left
    for name in left:
        assert f"step 4, {name.split()[0]}: {expected[name]:.2%}" in shown.stdout


def test_what_is_refused_is_tried_once(run, ranks, expected, digits):
    executor, other = ForkedExecutor(ranks), f"evals.1.test={digits}/train/manifest.json"
    run.pool(executor, other, "pool.every_steps=4").run(StopRequests(), once=True)
    with pytest.raises(MixerError, match=r"step 2, five .* comes from other datasets"):
        run.pool(executor).run(StopRequests(), once=True)
    [failure] = run.failures()
    assert failure.startswith("five step-00000002-refused-")
    assert run.results().keys() == expected.keys() - {"five 2"}


def test_what_cannot_be_compared_is_not_taken_for_done(run, ranks, expected, capsys):
    run.pool(ForkedExecutor(ranks), "pool.every_steps=4").run(StopRequests(), once=True)
    [result] = (run.folder / "evals" / "one").glob("step-*.json")
    found = json.loads(result.read_text())
    assert cli.main(["pool", str(run.config), "--dry-run"]) == 0
    for other, meaning in [
        (found | {"run_id": "another"}, "is of another run"),
        (found | {"config": found["config"] | {"shots": [7]}}, "comes from other settings"),
    ]:
        result.write_text(json.dumps(other))
        assert cli.main(["pool", str(run.config), "--once"]) == 2
        assert f"{result} {meaning}" in capsys.readouterr().err


def test_what_is_left_is_printed_and_nothing_done(run, capsys):
    assert cli.main(["pool", str(run.config), "--dry-run"]) == 0
    assert capsys.readouterr().out.splitlines() == [
        f"{run.folder}: 4 to do, 0 done, 0 given up",
        "  step 4, one", "  step 4, five", "  step 2, one", "  step 2, five",
    ]  # fmt: skip
    assert not (run.folder / "evals").exists()


def test_other_runs_are_looked_after_with_their_own_model(run, trained, capsys):
    words = ["pool", str(run.config), "model.hidden_dim=99", "--dry-run"]
    assert cli.main([*words, "--run", str(run.folder), "--run", str(trained / "run")]) == 0
    assert capsys.readouterr().out.count("4 to do") == 2
    assert cli.main([*words, "--run", str(run.folder.parent)]) == 2
    assert "holds no start of a run" in capsys.readouterr().err


def test_without_tasks_there_is_nothing_to_do(run, capsys):
    assert cli.main(["pool", str(run.config), "evals=[]"]) == 2
    assert "pool needs tasks" in capsys.readouterr().err
