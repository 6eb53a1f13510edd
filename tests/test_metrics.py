"""Metrics and events: whole files, and one line a step however often a run was started."""

import json
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mixer_dist import metrics
from mixer_dist.config import StorageConfig, load_config
from mixer_dist.errors import CheckpointError, ConfigError
from mixer_dist.metrics import EventLog, MetricsLog, read_metrics, to_json_line
from mixer_dist.run_dir import (
    Attempt,
    RunDir,
    attempt_numbers,
    check_not_superseded,
    read_attempt,
    write_attempt,
)
from mixer_dist.storage import Storage

CONFIG = load_config(Path(__file__).resolve().parents[1] / "configs" / "quickstart.yaml")
STORAGE = Storage()


@pytest.fixture
def run_dir(tmp_path: Path) -> RunDir:
    return RunDir(str(tmp_path / "run"))


def begin(run_dir: RunDir, number: int, resumed_from: int, storage: Storage = STORAGE) -> Attempt:
    attempt = Attempt(
        attempt=number, attempt_id=f"id-{number}", resumed_from=resumed_from, dataset="0" * 64,
        config=CONFIG,
    )  # fmt: skip
    write_attempt(storage, run_dir, attempt)
    return attempt


def log_steps(
    run_dir: RunDir, attempt: int, first: int, last: int, storage: Storage = STORAGE
) -> None:
    """Lines of steps first to last, both included, as that attempt saw them."""
    log = MetricsLog(storage, run_dir, attempt)
    for step in range(first, last + 1):
        log.add({"attempt": attempt, "step": step, "loss": 1.0 / step})
    log.flush()


def files(folder: str) -> dict[str, list[dict]]:
    return {
        path.name: [json.loads(line) for line in path.read_text().splitlines()]
        for path in sorted(Path(folder).glob("*.jsonl"))
    }


def found(run_dir: RunDir, storage: Storage = STORAGE) -> list[tuple[int, int]]:
    return [(line["step"], line["attempt"]) for line in read_metrics(storage, run_dir)]


def test_a_line_is_strict_json():
    """NaN is no JSON: one such line would make the file unreadable to other tools."""

    def refuse(constant: str) -> None:
        raise AssertionError(constant)

    nothing = {"loss": float("nan"), "grad_norm": float("inf"), "low": float("-inf")}
    values = {"step": 3, "learning_rate": 1e-7, "update_skipped": True, "key": 'a "b"\n'}
    line = to_json_line(nothing | values)
    assert line.endswith("\n") and line.count("\n") == 1
    read = json.loads(line, parse_constant=refuse)
    assert read == dict.fromkeys(nothing) | values


def test_lines_are_written_when_it_is_time_and_the_file_is_whole(run_dir, monkeypatch):
    log = MetricsLog(STORAGE, run_dir, 3)
    log.add({"step": 1})
    assert files(run_dir.metrics) == {}
    log.flush()
    assert files(run_dir.metrics) == {"attempt-0003-000.jsonl": [{"step": 1}]}
    log.add({"step": 2})
    monkeypatch.setattr(metrics, "FLUSH_S", 0.0)
    log.add({"step": 3})
    steps = [{"step": step} for step in (1, 2, 3)]
    eventually(lambda: files(run_dir.metrics) == {"attempt-0003-000.jsonl": steps})


def eventually(is_so: Callable[[], bool]) -> None:
    """Wait until a background thread has made it so."""
    for _ in range(500):
        if is_so():
            return
        time.sleep(0.01)
    raise AssertionError("it never came about")


def test_a_store_that_is_down_delays_nobody_and_loses_nothing(run_dir, monkeypatch):
    storage = Storage({"": StorageConfig(deadline_s=60)})
    Path(run_dir.url).mkdir()
    in_the_way = Path(run_dir.events)
    in_the_way.write_text("")  # no folder can be made here
    log = EventLog(storage, run_dir, 1, 0)
    log.write("start")  # returns, though the write is tried again for a minute
    log.write("save")
    in_the_way.unlink()
    log.close()
    lines = files(run_dir.events_folder(1))["rank-00000.jsonl"]
    assert [line["event"] for line in lines] == ["start", "save"]


def test_an_attempt_without_lines_writes_no_file(run_dir):
    MetricsLog(STORAGE, run_dir, 1).flush()
    assert files(run_dir.metrics) == {}


def test_files_are_rolled_so_that_rewriting_stays_cheap(run_dir, monkeypatch):
    assert metrics.ROLL_BYTES == 4 * 10**6
    monkeypatch.setattr(metrics, "ROLL_BYTES", 100)
    log = MetricsLog(STORAGE, run_dir, 1)
    written = {}
    for step in range(1, 41):
        log.add({"step": step})  # 12 or 13 bytes a line
        if step % 3 == 0:
            log.flush()
            for name, lines in list(files(run_dir.metrics).items())[:-1]:
                assert written.setdefault(name, lines) == lines  # finished files stay
    log.flush()
    parts = files(run_dir.metrics)
    assert list(parts) == [f"attempt-0001-{part:03d}.jsonl" for part in range(len(parts))]
    assert 4 <= len(parts) <= 6 and all(len(lines) <= 12 for lines in parts.values())
    assert [line["step"] for lines in parts.values() for line in lines] == list(range(1, 41))
    begin(run_dir, 1, 0)
    assert [line["step"] for line in read_metrics(STORAGE, run_dir)] == list(range(1, 41))


def test_events_are_written_at_once_and_apart_for_each_rank(run_dir):
    log, other = (EventLog(STORAGE, run_dir, 2, rank) for rank in (0, 1))
    log.write("start", step=0)
    folder = f"{run_dir.events}/attempt-0002"
    eventually(lambda: Path(folder, "rank-00000.jsonl").exists())
    assert [event["event"] for event in files(folder)["rank-00000.jsonl"]] == ["start"]
    other.write("bad_sample", position=5, reason="damaged", size=float("nan"))
    log.write("finish", step=9)
    log.close()
    other.close()
    assert [event["event"] for event in files(folder)["rank-00000.jsonl"]] == ["start", "finish"]
    [bad] = files(folder)["rank-00001.jsonl"]
    assert bad.pop("time") > 0
    assert bad == {
        "event": "bad_sample", "rank": 1, "position": 5, "reason": "damaged", "size": None,
    }  # fmt: skip


def test_a_resumed_run_never_doubles_a_step(run_dir):
    begin(run_dir, 1, 0)
    log_steps(run_dir, 1, 1, 10)
    begin(run_dir, 2, 6)
    log_steps(run_dir, 2, 7, 9)
    begin(run_dir, 3, 8)
    log_steps(run_dir, 3, 9, 12)
    by_attempt = [*[(s, 1) for s in range(1, 7)], (7, 2), (8, 2), *[(s, 3) for s in range(9, 13)]]
    assert found(run_dir) == by_attempt


def test_a_dead_timeline_vanishes_before_the_new_one_has_lines(run_dir):
    begin(run_dir, 1, 0)
    log_steps(run_dir, 1, 1, 10)
    begin(run_dir, 2, 4)
    assert found(run_dir) == [(step, 1) for step in range(1, 5)]


def test_a_run_that_fell_back_further_than_its_last_start_forgets_both(run_dir):
    """The checkpoint it had resumed from turned out to be damaged."""
    begin(run_dir, 1, 0)
    log_steps(run_dir, 1, 1, 10)
    begin(run_dir, 2, 10)
    log_steps(run_dir, 2, 11, 20)
    begin(run_dir, 3, 5)
    log_steps(run_dir, 3, 6, 7)
    assert found(run_dir) == [*[(step, 1) for step in range(1, 6)], (6, 3), (7, 3)]


def test_lines_that_were_lost_leave_a_gap(run_dir):
    """A kill between two writes loses up to 30 s of an attempt that got no further checkpoint."""
    begin(run_dir, 1, 0)
    log_steps(run_dir, 1, 1, 3)
    begin(run_dir, 2, 5)
    log_steps(run_dir, 2, 6, 7)
    assert found(run_dir) == [(1, 1), (2, 1), (3, 1), (6, 2), (7, 2)]


@settings(derandomize=True, database=None, deadline=None, max_examples=15)
@given(starts=st.lists(st.tuples(st.floats(0, 1), st.integers(0, 6)), min_size=1, max_size=5))
def test_however_a_run_was_started_each_step_is_that_of_its_last_timeline(tmp_path_factory, starts):
    run_dir = RunDir(str(tmp_path_factory.mktemp("run")))
    timeline: list[int] = []  # the attempt that made each step
    for attempt, (share, num_steps) in enumerate(starts, 1):
        resumed_from = int(share * len(timeline))
        timeline = timeline[:resumed_from] + [attempt] * num_steps
        begin(run_dir, attempt, resumed_from)
        log_steps(run_dir, attempt, resumed_from + 1, resumed_from + num_steps)
    assert found(run_dir) == list(enumerate(timeline, 1))


def test_other_files_beside_the_metrics_do_not_matter(run_dir):
    begin(run_dir, 1, 0)
    log_steps(run_dir, 1, 1, 2)
    log_steps(run_dir, 7, 1, 9)  # of an attempt that never recorded itself
    (Path(run_dir.metrics) / "notes.txt").write_text("mine")
    (Path(run_dir.attempts) / "0001.yaml.bak").write_text("old")
    assert found(run_dir) == [(1, 1), (2, 1)]


def test_a_run_without_metrics_has_no_lines(run_dir):
    assert read_metrics(STORAGE, run_dir) == []
    begin(run_dir, 1, 0)
    assert read_metrics(STORAGE, run_dir) == []


def test_a_bucket_holds_a_run_as_a_disk_does(s3):
    storage, run_dir = s3.storage(), RunDir(f"{s3.new_bucket()}/runs/a")
    begin(run_dir, 1, 0, storage)
    log_steps(run_dir, 1, 1, 3, storage)
    begin(run_dir, 2, 2, storage)
    log_steps(run_dir, 2, 3, 4, storage)
    assert found(run_dir, storage) == [(1, 1), (2, 1), (3, 2), (4, 2)]
    assert storage.names(run_dir.metrics) == ["attempt-0001-000.jsonl", "attempt-0002-000.jsonl"]


def test_an_attempt_records_the_whole_configuration(run_dir):
    written = begin(run_dir, 12, 340)
    assert read_attempt(STORAGE, run_dir, 12) == written
    assert (Path(run_dir.url) / "attempts" / "0012.yaml").is_file()
    assert written.config == CONFIG


def test_attempts_are_counted_past_9999(run_dir):
    for number in (10_000, 9_999, 2):
        begin(run_dir, number, 0)
    assert attempt_numbers(STORAGE, run_dir) == [2, 9_999, 10_000]


def test_a_trainer_that_was_overtaken_notices(run_dir):
    first = begin(run_dir, 1, 0)
    check_not_superseded(STORAGE, run_dir, first)
    second = begin(run_dir, 2, 0)
    check_not_superseded(STORAGE, run_dir, second)
    with pytest.raises(CheckpointError, match="attempt 1 is superseded by attempt 2"):
        check_not_superseded(STORAGE, run_dir, first)
    twin = second.model_copy(update={"attempt_id": "of another trainer that chose 2 as well"})
    with pytest.raises(CheckpointError, match="superseded"):
        check_not_superseded(STORAGE, run_dir, twin)


def test_an_attempt_file_that_is_not_one_is_named(run_dir):
    begin(run_dir, 1, 0)
    path = Path(run_dir.attempt_file(1))
    path.write_text(path.read_text().replace("resumed_from: 0", "resumed_from: zero"))
    with pytest.raises(ConfigError, match=r"0001\.yaml: resumed_from: must be"):
        read_attempt(STORAGE, run_dir, 1)
