"""Starts that cannot go well end with one clear line, and leave what is saved as it was."""

import json
import shutil
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest

from mixer_dist import cli
from mixer_dist.checkpoint.restore import list_checkpoints, verified
from mixer_dist.errors import SupersededError
from mixer_dist.metrics import attempt_lines
from mixer_dist.operations.recent import read_recent
from mixer_dist.operations.status import status_of
from mixer_dist.operations.status_lines import status_lines
from mixer_dist.run_dir import RunDir
from mixer_dist.storage import Storage
from tests.ranks import Ranks, free_port, receive
from tests.system.restart_cases import (
    STEPS,
    Outcome,
    metrics,
    overrides,
    pretrain,
    rewrite_manifest,
)

STORAGE = Storage()


@pytest.fixture(scope="module")
def saved(digits, tmp_path_factory) -> Path:
    """A run that failed after its checkpoint at step 3."""
    run_dir = tmp_path_factory.mktemp("saved") / "run"
    pretrain(overrides(digits / "test/manifest.json", run_dir), fail_at=5)
    return run_dir


@pytest.fixture
def run_dir(saved, tmp_path) -> Path:
    """A copy of it that a test may continue."""
    return Path(shutil.copytree(saved, tmp_path / "run"))


@pytest.fixture
def arguments(digits, run_dir) -> list[str]:
    """What the run was started with."""
    return overrides(digits / "test/manifest.json", run_dir)


def content(run_dir: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in run_dir.rglob("*") if path.is_file()}


def assert_one_line(outcome: Outcome, code: int, *expected: str) -> None:
    assert outcome.code == code
    assert "Traceback" not in outcome.text
    [line] = [line for line in outcome.text.splitlines() if line.startswith("mixer-dist: ")]
    for part in expected:
        assert part in line


def test_other_data_are_refused(arguments, run_dir, digits):
    before = content(run_dir)
    other = [*arguments, f"data.train.0.manifest={digits}/train/manifest.json"]
    assert_one_line(pretrain(other), 2, str(run_dir), "dataset: ", "choose another run_dir")
    assert content(run_dir) == before


def test_the_same_data_elsewhere_are_the_same(arguments, digits, tmp_path):
    shutil.copytree(digits / "test", tmp_path / "moved")
    moved = [*arguments, f"data.train.0.manifest={tmp_path}/moved/manifest.json"]
    assert pretrain(moved).code == 0


def test_another_model_is_refused(arguments, run_dir):
    before = content(run_dir)
    outcome = pretrain([*arguments, "model.channels_mlp_dim=64"])
    assert_one_line(outcome, 2, "model.channels_mlp_dim: 384 -> 64")
    assert content(run_dir) == before


def test_a_checkpoint_of_a_newer_version_is_refused_not_overtaken(
    ranks, arguments, run_dir, capsys
):
    """An older checkpoint that can be read is there too, but going on from it would lose steps."""
    newer = run_dir / "checkpoints/step-00000006"
    shutil.copytree(run_dir / "checkpoints/step-00000003", newer)
    rewrite_manifest(newer / "manifest.json", version=2, new_key=1)
    before = content(run_dir)
    first, second = ranks.run(2, pretrain, arguments)
    assert_one_line(first, 2, str(newer), "newer mixer_dist", "version 2, this one reads up to 1")
    assert second.code == 2
    assert cli.main(["checkpoint", "verify", str(newer)]) == 2
    assert "written by a newer mixer_dist" in capsys.readouterr().err
    assert content(run_dir) == before


def test_a_lost_record_of_the_attempt_that_saved_is_named(arguments, run_dir):
    (run_dir / "attempts/0001.yaml").unlink()
    outcome = pretrain(arguments)
    assert_one_line(outcome, 2, "attempts/0001.yaml is missing: restore the file")


def test_a_run_dir_that_nobody_may_write_is_refused(arguments):
    """/sys takes no folders, not even from root."""
    outcome = pretrain([*arguments, "run_dir=/sys/kernel/run"])
    assert_one_line(outcome, 2, "/sys/kernel/run")


def test_a_full_disk_is_refused_at_the_start(ranks, arguments, run_dir):
    before = content(run_dir)
    outcome = ranks.run(1, partial(pretrain, file_bytes=0), arguments)[0]
    assert_one_line(outcome, 2, f"cannot write in {run_dir}", "File too large")
    assert content(run_dir) == before


def test_a_disk_that_fills_up_leaves_the_last_checkpoint_to_go_on_from(ranks, arguments, run_dir):
    """There is room for metrics, but not for the weights and moments."""
    saved = content(run_dir / "checkpoints")
    outcome = ranks.run(1, partial(pretrain, file_bytes=60_000), arguments)[0]
    assert_one_line(outcome, 1, "File too large")
    assert "trying again after the next interval" in outcome.text
    steps = [line["step"] for line in attempt_lines(STORAGE, RunDir(str(run_dir)), 2)]
    assert steps == list(range(4, STEPS + 1))
    assert content(run_dir / "checkpoints") == saved
    assert pretrain(arguments).code == 0
    found = metrics(run_dir)
    assert [line["step"] for line in found] == list(range(1, STEPS + 1))
    assert [line["attempt"] for line in found] == [1] * 3 + [3] * (STEPS - 3)


@pytest.mark.parametrize(
    ("is_begun", "num_failed", "end"),
    [
        (True, 2, ", which could not be saved: the same command goes on from step 3"),
        (False, 3, ", and nothing could be saved: the same command begins anew"),
    ],
)
def test_a_stop_that_cannot_save_says_what_is_lost(
    ranks, digits, run_dir, tmp_path, is_begun, num_failed, end
):
    place = run_dir if is_begun else tmp_path / "new"
    arguments = [*overrides(digits / "test/manifest.json", place), "--until=8"]
    outcome = ranks.run(1, partial(pretrain, file_bytes=60_000), arguments)[0]
    assert_one_line(outcome, 75, f"stopped after step 8 by --until 8{end}")
    found = status_of(read_recent(STORAGE, RunDir(str(place))), time.time())
    assert f"{num_failed} saves FAILED since the last" in status_lines(found)[3]


def meanwhile(
    ranks: Ranks, arguments: list[str], run_dir: Path, gate: Path, action: Callable[[], object]
) -> Outcome:
    """A trainer that waits after step 4 until an action is done; what it comes to."""
    process, pipe = ranks.start(
        1, 0, free_port(), partial(pretrain, wait_at=4, gate=str(gate)), arguments
    )
    give_up = time.monotonic() + 100
    manifest = run_dir / "checkpoints/step-00000003/manifest.json"
    while not manifest.exists() and time.monotonic() < give_up:
        time.sleep(0.02)
    try:
        action()
    finally:
        gate.touch()
    kind, outcome = receive(process, pipe)
    assert kind == "value", outcome
    return outcome


def test_of_two_trainers_the_first_ends_and_is_never_read(ranks, digits, tmp_path, capsys):
    run_dir = tmp_path / "run"
    arguments = overrides(digits / "test/manifest.json", run_dir)

    def second_trainer() -> None:
        assert pretrain(arguments).code == 0

    first = meanwhile(ranks, arguments, run_dir, tmp_path / "gate", second_trainer)
    assert_one_line(
        first, SupersededError.exit_code, "attempt 1 is superseded by attempt 2", str(run_dir)
    )
    attempts = {line["step"]: line["attempt"] for line in metrics(run_dir)}
    assert attempts == {step: 1 if step <= 3 else 2 for step in range(1, STEPS + 1)}
    checkpoints, problems = list_checkpoints(STORAGE, RunDir(str(run_dir)))
    assert [c.manifest.step for c in checkpoints] == [12, 9, 6, 3] and not problems
    assert [c.manifest.attempt for c in checkpoints] == [2, 2, 2, 1]
    for checkpoint in checkpoints:
        assert verified(STORAGE, checkpoint.url) == checkpoint
    assert cli.main(["data", "audit", str(run_dir)]) == 0
    assert "12 of 12 steps are right" in capsys.readouterr().out


def test_a_bucket_that_vanishes_ends_the_run_with_its_name(ranks, digits, s3, tmp_path):
    bucket = s3.new_bucket()
    folder = s3.directory / bucket.removeprefix("s3://")
    place = {"endpoint_url": s3.endpoint_url, "checksum": "when_required", "deadline_s": 2}
    arguments = [
        *overrides(digits / "test/manifest.json", tmp_path / "unused"), f"run_dir={bucket}/run",
        f"storage={json.dumps({'s3://': place})}",
    ]  # fmt: skip

    def at_once() -> None:
        folder.rename(tmp_path / "vanished")  # files are still written while a tree is removed

    outcome = meanwhile(ranks, arguments, folder / "run", tmp_path / "gate", at_once)
    assert_one_line(outcome, 1, bucket)
