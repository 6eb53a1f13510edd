"""Of workers that need the same features at once, one computes them, whatever becomes of it."""

import logging
import time
from pathlib import Path

from mixer_dist.checkpoint.holders import Lease, leaseholders
from mixer_dist.config import RunConfig
from mixer_dist.eval import feature_turn, features
from mixer_dist.eval.evaluate import evaluate
from mixer_dist.run_dir import RunDir
from mixer_dist.storage import Storage
from tests.eval.judged_run import run_of, write_checkpoint
from tests.ranks import free_port, receive

STORAGE = Storage()
TASKS = ("fewshot", "knn", "linear")


def judged_with_a_count(config: RunConfig, task: str) -> tuple[float, int]:
    """The accuracy of a task, and how many datasets this worker computed features of, slowly."""
    compute, computed = features._compute, []

    def slowly(*args):
        time.sleep(2)
        computed.append(1)
        return compute(*args)

    features._compute, feature_turn.POLL_S = slowly, 0.1
    return evaluate(config, task)["accuracy"], len(computed)


def test_three_workers_compute_the_features_of_two_datasets_once(ranks, tmp_path):
    config = run_of(tmp_path, *({"kind": task} for task in TASKS))
    write_checkpoint(config)
    workers = [ranks.start(1, 0, free_port(), judged_with_a_count, config, task) for task in TASKS]
    outcomes = [receive(*worker) for worker in workers]
    assert all(kind == "value" for kind, _ in outcomes), outcomes
    assert sum(count for _, (_, count) in outcomes) == 2
    assert all(0 < accuracy <= 1 for _, (accuracy, _) in outcomes)
    leases = list(Path(config.run_dir).glob("leases/features-*/*"))
    assert not leases


def test_the_turn_of_a_worker_that_was_lost_passes_on(tmp_path, caplog, monkeypatch):
    config = run_of(tmp_path, {"kind": "knn"}, pool={"lease_s": 2.0})
    write_checkpoint(config)
    monkeypatch.setattr(feature_turn, "POLL_S", 0.1)
    folders, turn_of = [], feature_turn.Turn

    def noted(folder, lease_s):
        folders.append(RunDir(config.run_dir).leases_of_features(folder.key.folder))
        if len(folders) == 1:
            Lease(STORAGE, folders[0], "lost", lease_s).renew()
        return turn_of(folder, lease_s)

    monkeypatch.setattr(feature_turn, "Turn", noted)
    began = time.monotonic()
    with caplog.at_level(logging.INFO):
        evaluate(config, "knn")
    assert time.monotonic() - began > 2
    assert caplog.text.count("another worker computes these features") == 1
    assert leaseholders(STORAGE, folders[0]) == []
