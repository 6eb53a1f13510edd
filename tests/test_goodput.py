"""Every second of a run counts once, under what it was used for."""

import json
import os
import signal
import time

import pytest

from mixer_dist import cli
from mixer_dist.goodput import AttemptRecord, Goodput, goodput
from mixer_dist.metrics import Line, attempt_lines, read_events
from mixer_dist.operations.recent import newest_committed
from mixer_dist.run_dir import RunDir, attempt_numbers, read_attempt
from mixer_dist.storage import Storage
from tests.system.restart_cases import overrides, pretrain

STEP_S = 10.0
T0 = 1.7e9


def event(kind: str, at: float, **details: float) -> Line:
    return {"event": kind, "time": T0 + at, "rank": 0, **details}


def start(at: float, began: float, step: int = 0) -> Line:
    return event("resume" if step else "start", at, began=T0 + began, step=step)


def report(steps: range, at: float, wait: float = 0.0, skipped: int | None = None) -> list[Line]:
    """The lines of an interval that ends at a time."""
    return [
        {
            "step": step, "time": T0 + at, "global_batch_size": 64, "images_per_s": 64 / STEP_S,
            "data_wait_share": wait, "update_skipped": step == skipped,
        }
        for step in steps
    ]  # fmt: skip


def three_attempts() -> list[AttemptRecord]:
    """Killed at step 40 with 20 saved, preempted at step 50 with a save of its own, then done."""
    first = AttemptRecord(
        1, 0,
        [start(30, 0), event("save", 255, step=20, stall_s=4.0)],
        [*report(range(1, 2), 50), *report(range(2, 11), 140, wait=0.2),
         *report(range(11, 21), 240), *report(range(21, 31), 340), *report(range(31, 41), 440)],
    )  # fmt: skip
    second = AttemptRecord(
        2, 20,
        [start(620, 600, 20), event("save", 960, step=50, stall_s=1.0), event("preempt", 961)],
        [*report(range(21, 22), 650), *report(range(22, 31), 740, skipped=25),
         *report(range(31, 41), 840), *report(range(41, 51), 940)],
    )  # fmt: skip
    third = AttemptRecord(
        3, 50,
        [start(1010, 1000, 50), event("finish", 1130)],
        [*report(range(51, 52), 1020), *report(range(52, 61), 1110)],
    )  # fmt: skip
    return [first, second, third]


def test_each_kind_gets_its_seconds():
    spent = goodput(three_attempts())
    assert spent.seconds == pytest.approx(
        {
            # 9 steps less the wait, 10, then 9 of which one was skipped, 10 and 10; 9 at last
            "productive": 72 + 100 + 80 + 100 + 100 + 90,
            "data_wait": 18,
            "checkpoint": 21 + 20,  # the saves that preemption and the end wait for
            "lost": 200 + 10,  # the stall after step 20 lies in steps that were done again
            "start_up": 50 + 50 + 20,
            "down": 160 + 39,
        }
    )
    assert spent.num_lost_steps == 20
    assert spent.wall_s == 1130
    assert spent.share == pytest.approx(542 / 1130)


def test_the_time_adds_up_without_a_gap():
    spans = goodput(three_attempts(), end=T0 + 1500).spans
    assert (spans[0].start, spans[-1].stop) == (T0, T0 + 1500)
    assert [span.stop for span in spans[:-1]] == [span.start for span in spans[1:]]
    for span in spans:
        assert sum(span.seconds.values()) == pytest.approx(span.stop - span.start)


def test_work_is_lost_from_the_earliest_step_that_anyone_went_back_to():
    """The third attempt went back further than the second, whose checkpoint was damaged."""
    lines = [*report(range(1, 2), 10), *report(range(2, 11), 100), *report(range(11, 21), 200)]
    attempts = [
        AttemptRecord(1, 0, [start(0, 0)], lines),
        AttemptRecord(2, 20, [start(200, 200, 20)],
                      [*report(range(21, 22), 210), *report(range(22, 31), 300)]),
        AttemptRecord(3, 10, [start(300, 300, 10)],
                      [*report(range(11, 12), 310), *report(range(12, 21), 400)]),
    ]  # fmt: skip
    spent = goodput(attempts)
    assert spent.num_lost_steps == 10 + 10
    assert spent.seconds["lost"] == pytest.approx(100 + 90)
    assert spent.seconds["productive"] == pytest.approx(90 + 90)


def test_a_stall_of_steps_that_count_is_the_checkpoints():
    events = [start(0, 0), event("save", 130, step=10, stall_s=4.0)]
    lines = [*report(range(1, 2), 10), *report(range(2, 11), 100), *report(range(11, 21), 200)]
    spent = goodput([AttemptRecord(1, 0, events, lines)])
    assert spent.seconds["checkpoint"] == pytest.approx(4)
    assert spent.seconds["productive"] == pytest.approx(186)


def test_a_superseded_attempt_that_writes_on_is_not_counted_twice():
    attempts = [
        AttemptRecord(1, 0, [start(0, 0)],
                      [*report(range(1, 2), 10), *report(range(2, 102), 1010)]),
        AttemptRecord(2, 1, [start(520, 510, 1)],
                      [*report(range(2, 3), 530), *report(range(3, 101), 1510)]),
    ]  # fmt: skip
    spent = goodput(attempts)
    assert spent.wall_s == 1510
    assert sum(spent.seconds.values()) == pytest.approx(1510)
    assert spent.seconds["lost"] == pytest.approx(500)


@pytest.mark.parametrize("attempts", [[], [AttemptRecord(1, 0)]])
def test_a_run_without_a_record_has_no_goodput(attempts):
    spent = goodput(attempts)
    assert (spent.spans, spent.share, spent.wall_s) == ((), None, 0.0)


def test_an_attempt_that_never_came_to_a_step_was_starting():
    spent = goodput([AttemptRecord(1, 0, [start(40, 0), event("fail", 60)])])
    assert spent.seconds["start_up"] == 60


def spent_by(run_dir: RunDir) -> Goodput:
    storage = Storage()
    return goodput(
        [
            AttemptRecord(
                number,
                read_attempt(storage, run_dir, number).resumed_from,
                read_events(storage, run_dir, number, rank=0),
                attempt_lines(storage, run_dir, number),
            )
            for number in attempt_numbers(storage, run_dir)
        ]
    )


def test_a_real_run_that_is_killed_and_goes_on(ranks, digits, tmp_path, capsys):
    """It is killed while it waits for step 8, with 3 or 6 steps saved."""
    run_dir = RunDir(str(tmp_path / "run"))
    arguments = overrides(digits / "test" / "manifest.json", tmp_path / "run")
    before = time.time()
    process, _ = ranks.start(1, 0, 0, pretrain, arguments, -1, 7, str(tmp_path / "never"))
    give_up = time.monotonic() + 100
    while not newest_committed(Storage(), run_dir) and time.monotonic() < give_up:
        time.sleep(0.05)
    os.kill(process.pid, signal.SIGKILL)
    process.join()
    (outcome,) = ranks.run(1, pretrain, arguments)
    assert outcome.code == 0, outcome.text
    spent = spent_by(run_dir)
    events = read_events(Storage(), run_dir, 2, rank=0)
    assert [e["event"] for e in events if e["event"] != "save"] == ["resume", "finish"]
    assert before - 0.1 < spent.spans[0].start < events[0]["began"] < events[0]["time"]
    assert spent.spans[-1].stop == max(e["time"] for e in events)
    assert sum(spent.seconds.values()) == pytest.approx(spent.wall_s)
    for kind in ("productive", "start_up", "down"):
        assert spent.seconds[kind] > 0, spent.seconds
    assert cli.main(["report", run_dir.url, "--json"]) == 0
    [told] = json.loads(capsys.readouterr().out)["runs"]
    assert told["seconds"] == pytest.approx(spent.seconds)
    assert told["goodput"] == pytest.approx(spent.share)
    assert cli.main(["status", run_dir.url, "--json"]) == 0
    status = json.loads(capsys.readouterr().out)
    assert status["life"]["state"] == "finished"
    assert status["health"]["goodput"] == pytest.approx(spent.share)
