"""Status tells how a run is doing in five lines, whatever state it is in, and reads little."""

import json
import os
import time
from pathlib import Path
from typing import Any

import pytest

from mixer_dist import cli
from mixer_dist.config import RunConfig
from mixer_dist.metrics import Line, to_json_line
from mixer_dist.operations.recent import NUM_FILES, read_recent
from mixer_dist.operations.status import Status, status_of
from mixer_dist.operations.status_lines import status_lines
from mixer_dist.run_dir import Attempt, RunDir, write_attempt
from mixer_dist.storage import Storage
from tests.ranks import ROOT

BATCH, TOTAL_STEPS = 64, 1000
CONFIG = RunConfig.model_validate(
    {
        "run_dir": "unused",
        "total_steps": TOTAL_STEPS,
        "global_batch_size": BATCH,
        "micro_batch_size": BATCH,
        "model": {"variant": "S/32", "num_classes": 10},
        "data": {"train": [{"manifest": "manifest.json"}]},
        "optimizer": {"learning_rate": 1e-3},
    }
)
NOW = time.time()


@pytest.fixture
def run_dir(tmp_path: Path) -> RunDir:
    return RunDir(str(tmp_path / "run"))


def begin(run_dir: RunDir, attempt: int, at: float, step: int = 0) -> None:
    """An attempt's record and its first event; `at` is in seconds before now."""
    record = Attempt(
        attempt=attempt, attempt_id=f"id-{attempt}", resumed_from=step, dataset="d", config=CONFIG
    )
    write_attempt(Storage(), run_dir, record)
    os.utime(run_dir.attempt_file(attempt), (NOW - at, NOW - at))  # it tells when a start was
    add_event(run_dir, attempt, "resume" if step else "start", at, began=NOW - at - 10, step=step)


def add_event(run_dir: RunDir, attempt: int, kind: str, at: float, **details: Any) -> None:
    path = Path(run_dir.events_file(attempt, 0))
    path.parent.mkdir(parents=True, exist_ok=True)
    event = {"event": kind, "time": NOW - at, "rank": 0, **details}
    with path.open("a") as stream:
        stream.write(to_json_line(event))


def train(
    run_dir: RunDir, attempt: int, first: int, last: int, until: float, part: int = 0, **other: Any
) -> None:
    """Steps of one second, the last of which ends `until` seconds before now, in one file."""
    lines: list[Line] = [
        {
            "attempt": attempt, "step": step, "position": step * BATCH, "loss": 3 - step / 1000,
            "global_batch_size": BATCH, "images_per_s": float(BATCH), "data_wait_share": 0.25,
            "update_skipped": False, "time": NOW - until - (last - step), **other,
        }
        for step in range(first, last + 1)
    ]  # fmt: skip
    path = Path(run_dir.metrics_file(attempt, part))
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(map(to_json_line, lines)))


def status(run_dir: RunDir, now: float = NOW) -> Status:
    return status_of(read_recent(Storage(), run_dir), now)


def test_a_run_that_trains(run_dir):
    begin(run_dir, 1, at=510)
    train(run_dir, 1, 1, 500, until=10)
    found = status(run_dir)
    assert (found.position.step, found.position.total_steps) == (500, TOTAL_STEPS)
    assert found.life.state == "training"
    assert found.life.age_s == pytest.approx(10)
    assert found.speed.images_per_s == pytest.approx(BATCH)
    assert found.speed.data_wait_share == pytest.approx(0.25)
    assert found.speed.end == pytest.approx(NOW + 500)
    assert found.checkpoint is None
    assert found.health.goodput == pytest.approx(499 * 0.75 / 510, rel=0.01)
    lines = status_lines(found)
    assert len(lines) == 5
    assert "500 of 1,000 (50.0%)" in lines[0]
    assert "falling" in lines[0]
    end = time.strftime("%a %d %b %Y, %H:%M", time.localtime(NOW + 500))
    assert end in lines[1]
    assert "no checkpoint yet" in lines[2]
    assert "0 restarts" in lines[3]


def test_a_run_that_has_just_begun(run_dir):
    begin(run_dir, 1, at=5)
    found = status(run_dir)
    assert (found.position.step, found.life.state, found.speed.end) == (0, "starting", None)
    assert len(status_lines(found)) == 5


def test_a_run_that_fell_silent(run_dir):
    begin(run_dir, 1, at=1000)
    train(run_dir, 1, 1, 100, until=900)
    found = status(run_dir, now=NOW + 900)
    assert found.life.state == "silent"
    assert found.speed.end is None
    assert found.health.goodput == pytest.approx(99 * 0.75 / 1910, rel=0.01)  # up to now
    assert "30 min ago" in status_lines(found)[4]


@pytest.mark.parametrize(
    ("event", "details", "state", "said"),
    [
        ("preempt", {"signal": "SIGUSR2"}, "preempted", "stopped on request by SIGUSR2"),
        ("preempt", {"signal": ""}, "preempted", "stopped on request; last"),
        ("fail", {"reason": "10 steps in a row"}, "failed", "failed: 10 steps in a row"),
        ("abort", {"reason": "rank 3 is gone"}, "failed", "failed: rank 3 is gone"),
    ],
)
def test_a_run_that_ended_says_why(run_dir, event, details, state, said):
    begin(run_dir, 1, at=200)
    train(run_dir, 1, 1, 100, until=90)
    add_event(run_dir, 1, event, 80, **details)
    found = status(run_dir)
    assert found.life.state == state
    assert said in status_lines(found)[4]


def test_an_attempt_after_a_failure_is_a_new_start(run_dir):
    begin(run_dir, 1, at=200)
    train(run_dir, 1, 1, 100, until=90)
    add_event(run_dir, 1, "fail", 80, reason="the disk is full")
    begin(run_dir, 2, at=5, step=100)
    add_event(run_dir, 2, "straggler", 1, slow_rank=3, host="n2", phase="compute")
    found = status(run_dir)
    assert (found.life.state, found.health.num_restarts) == ("starting", 1)
    assert found.health.stragglers == ("rank 3 (n2)",)


def test_a_finished_run_that_is_started_again_is_finished(run_dir):
    begin(run_dir, 1, at=1100)
    train(run_dir, 1, 1, TOTAL_STEPS, until=90)
    add_event(run_dir, 1, "finish", 80, step=TOTAL_STEPS)
    record = Attempt(
        attempt=2, attempt_id="id-2", resumed_from=TOTAL_STEPS, dataset="d", config=CONFIG
    )
    write_attempt(Storage(), run_dir, record)  # it finds nothing to do
    assert status(run_dir).life.state == "finished"


def test_steps_that_a_restart_does_again_do_not_count_as_done(run_dir):
    begin(run_dir, 1, at=400)
    train(run_dir, 1, 1, 200, until=150)
    begin(run_dir, 2, at=100, step=120)
    train(run_dir, 2, 121, 130, until=50, loss=None, update_skipped=True)
    found = status(run_dir)
    assert found.position.step == 130
    assert found.position.loss == pytest.approx(3 - 0.09, abs=0.05)  # the last finite ones
    assert found.health.num_skipped_updates == 10


class CountingStorage(Storage):
    """Storage that notes what it reads."""

    def __init__(self) -> None:
        super().__init__()
        self.urls: list[str] = []

    def read(self, url: str, num_bytes: int | None = None) -> bytes:
        self.urls.append(url)
        return super().read(url, num_bytes)


def test_of_a_long_run_just_the_newest_files_are_read(run_dir):
    for attempt in range(1, 31):
        first = 20 * (attempt - 1)
        begin(run_dir, attempt, at=50 * (31 - attempt), step=first)
        for part in range(2):
            train(
                run_dir, attempt, first + 10 * part + 1, first + 10 * part + 10,
                until=50 * (31 - attempt) - 20 - 10 * part, part=part,
            )  # fmt: skip
    storage = CountingStorage()
    found = status_of(read_recent(storage, run_dir), NOW)
    assert found.position.step == 600
    assert found.health.num_restarts == 29
    assert not found.health.is_whole_run
    assert found.health.goodput == pytest.approx(19 * 0.75 / 50, abs=0.05)
    assert sum("/metrics/" in url for url in storage.urls) == NUM_FILES
    assert len(storage.urls) < 20
    assert "of the last " in status_lines(found)[3]


def test_a_place_without_a_run_is_one_line(capsys, tmp_path):
    assert cli.main(["status", str(tmp_path)]) == 2
    error = capsys.readouterr().err
    assert "attempts/0001.yaml" in error
    assert len(error.splitlines()) == 1


def pretrain(arguments: list[str]) -> int:
    """The verb, on one rank; its exit code."""
    return cli.main(["pretrain", str(ROOT / "configs/quickstart.yaml"), *arguments])


def test_a_real_run_in_a_bucket(ranks, s3, digits_s3, capsys):
    run_dir = f"{s3.new_bucket()}/run"
    storage = {"s3://": {"endpoint_url": s3.endpoint_url, "checksum": "when_required"}}
    arguments = [
        f"run_dir={run_dir}", "engine.name=single", "total_steps=12", "global_batch_size=16",
        "micro_batch_size=8", "model.num_blocks=1", "model.hidden_dim=8",
        "checkpoint.every_steps=5", "logging.every_steps=3", "optimizer.warmup_steps=2",
        f"data.train.0.manifest={digits_s3}/train/manifest.json", f"storage={json.dumps(storage)}",
    ]  # fmt: skip
    assert ranks.run(1, pretrain, arguments) == [0]
    options = ["--endpoint-url", s3.endpoint_url, "--checksum", "when_required"]
    assert cli.main(["status", run_dir, *options, "--region", "eu-west-1", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["position"]["step"], found["life"]["state"]) == (12, "finished")
    assert found["checkpoint"]["step"] == 12
    assert found["checkpoint"]["url"] == f"{run_dir}/checkpoints/step-00000012"
    assert cli.main(["status", run_dir, *options]) == 0
    assert len(capsys.readouterr().out.splitlines()) == 5
