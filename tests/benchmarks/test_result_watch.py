"""What a benchmark of the pool counts: results that are missing, and those written twice."""

import json
from pathlib import Path

import pytest

from benchmarks.result_watch import ResultWatch
from mixer_dist.run_dir import RunDir
from mixer_dist.storage import Storage


@pytest.fixture
def run_dir(tmp_path: Path) -> RunDir:
    return RunDir(str(tmp_path))


@pytest.fixture
def watch(run_dir: RunDir) -> ResultWatch:
    return ResultWatch(Storage(), run_dir, ["fewshot", "knn"], [10, 20])


def write_result(run_dir: RunDir, task: str, step: int, moment: float) -> None:
    Storage().write(run_dir.evaluation(task, step), json.dumps({"time": moment}).encode())


def write_commits(run_dir: RunDir, moments: dict[int, float]) -> None:
    Storage().write(run_dir.attempt_file(1), b"")
    lines = [{"event": "save", "step": step, "time": moment} for step, moment in moments.items()]
    text = "".join(json.dumps(line) + "\n" for line in lines)
    Storage().write(run_dir.events_file(1, 0), text.encode())


def test_a_result_that_is_not_there_is_missing(run_dir, watch):
    for key in sorted(watch.expected - {("knn", 20)}):
        write_result(run_dir, *key, moment=1.0)
    assert watch.look() == 3
    assert watch.missing == {("knn", 20)}
    assert watch.is_wrong


def test_a_result_that_is_written_anew_between_two_looks_is_a_duplicate(run_dir, watch):
    for key in watch.expected:
        write_result(run_dir, *key, moment=1.0)
    watch.look()
    watch.look()
    assert not watch.is_wrong
    write_result(run_dir, "fewshot", 10, moment=2.0)
    watch.look()
    assert watch.duplicated == {("fewshot", 10)}
    assert watch.is_wrong


def test_seconds_count_from_the_commit_to_the_first_result(run_dir, watch, capsys):
    write_commits(run_dir, {10: 100.0, 20: 200.0})
    for (task, step), moment in {("fewshot", 10): 130.0, ("fewshot", 20): 240.0,
                                 ("knn", 10): 210.0}.items():  # fmt: skip
        write_result(run_dir, task, step, moment)
    watch.look()
    watch.print_tables()
    rows = [[cell.strip() for cell in line.strip("|").split("|")]
            for line in capsys.readouterr().out.splitlines()]  # fmt: skip
    assert rows[2:] == [
        ["fewshot", "2", "2", "0", "0", "1", "35", "40"],
        ["knn", "2", "1", "0", "1", "0", "110", "110"],
        ["all", "4", "3", "0", "1", "1", "40", "110"],
    ]
