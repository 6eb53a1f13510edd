"""What a report says of evaluations: which is best, what it took, and the numbers as tables."""

import csv
import hashlib
import io
import json
import sys
from dataclasses import replace

import pytest

from mixer_dist import cli
from mixer_dist.checkpoint.pins import pinned_steps
from mixer_dist.errors import RefusedError
from mixer_dist.eval.report.best import standings
from mixer_dist.eval.report.effort import Efforts
from mixer_dist.eval.report.history import read_history
from mixer_dist.eval.report.measured import panels_of
from mixer_dist.eval.report.records import result_rows, to_csv
from mixer_dist.eval.report.scalars import Sinks
from mixer_dist.goodput import Span
from mixer_dist.run_dir import RunDir
from tests.eval.judged_run import run_of, write_checkpoint
from tests.eval.reported_runs import BATCH, STORAGE, add_evaluation, begin, train

SHOTS = {
    "1": {"accuracy": 0.2, "standard_error": 0.01, "per_seed": [0.2]},
    "5": {"accuracy": 0.4, "standard_error": 0.02, "per_seed": [0.4]},
}


@pytest.fixture
def run_dir(tmp_path) -> RunDir:
    """Thirty steps; three tasks, of which one has several shots and one a loss."""
    run_dir = RunDir(str(tmp_path / "run"))
    begin(run_dir, 1, resumed_from=0, engine="fsdp", world_size=4)
    train(run_dir, 1, range(1, 31))
    add_evaluation(run_dir, "digits", 0, [0.9], checkpoint="untrained")
    add_evaluation(run_dir, "digits", 10, [0.6, 0.8], standard_error=0.1)
    add_evaluation(run_dir, "digits", 20, [0.7], standard_error=0.03)
    add_evaluation(run_dir, "digits", 30, [0.5])
    add_evaluation(run_dir, "shots", 10, [0.4], per_shots=SHOTS)
    for step, loss in ((10, 1.5), (20, 0.5), (30, 0.75)):
        add_evaluation(run_dir, "val", step, [0.3], kind="upstream", shots=None, loss=loss)
    return run_dir


def refusal(capsys, *argv: str) -> str:
    """The one line on stderr of a command that is refused."""
    assert cli.main(argv) == 2
    [line] = capsys.readouterr().err.splitlines()
    return str(line)


def test_newest_and_best_of_each_task_by_each_of_its_numbers(run_dir):
    found = {
        str(s.criterion): (s.newest.step, s.best.step)
        for s in standings(read_history(STORAGE, run_dir).evaluations)
    }
    assert found == {
        "digits:accuracy": (30, 0),
        "shots:1-shot": (10, 10), "shots:5-shot": (10, 10),
        "val:accuracy": (30, 30),  # all are equal: the latest
        "val:loss": (30, 20),
    }  # fmt: skip


def test_gpu_hours_are_ranks_times_hours_without_the_time_between_attempts():
    spans = [
        Span(0.0, 7200.0, 1, {"productive": 7200.0}),
        Span(7200.0, 90_000.0, None, {"down": 82_800.0}),
        Span(90_000.0, 93_600.0, 2, {"start_up": 1800.0, "productive": 1800.0}),
    ]
    lines = [
        {"step": step, "time": at, "global_batch_size": batch}
        for step, at, batch in ((1, 3600.0, 10), (2, 7200.0, 10), (3, 91_800.0, 30))
    ]
    efforts = Efforts(lines, spans, {1: 8, 2: 2})
    told = [efforts.at(step) for step in range(5)]
    assert [effort.gpu_hours for effort in told] == [0.0, 8.0, 16.0, 17.0, None]
    assert [effort.samples for effort in told] == [0, 10, 20, 50, None]
    assert efforts.gpu_hours == 18.0
    unknown = Efforts(lines, spans, {1: 8, 2: None})
    assert [unknown.at(step).gpu_hours for step in (2, 3)] == [16.0, None]


def test_rows_are_the_results(run_dir):
    history = read_history(STORAGE, run_dir)
    rows = list(csv.DictReader(io.StringIO(to_csv(list(result_rows(history, "r"))).decode())))
    assert len(rows) == len(history.evaluations) == 8
    for row in rows:
        url = run_dir.evaluation(row["task"], int(row["step"]))
        result = json.loads(STORAGE.read(url))
        assert float(row["accuracy"]) == result["accuracy"]
        assert [float(x) for x in row["per_seed"].split()] == result["per_seed"]
        assert row["loss"] == str(result.get("loss", ""))
        assert row["standard_error"] == str(result.get("standard_error", ""))
        assert int(row["samples"]) == BATCH * result["step"]
        assert (row["run"], row["kind"]) == ("r", result["kind"])
    [shots] = [row for row in rows if row["task"] == "shots"]
    assert (shots["accuracy_1_shot"], shots["standard_error_5_shot"]) == ("0.2", "0.02")


def test_panels_have_a_curve_for_each_number_of_shots_and_one_of_the_loss(run_dir):
    panels = {panel.title: panel for panel in panels_of(read_history(STORAGE, run_dir))}
    assert [series.name for series in panels["shots"].series] == ["1-shot", "5-shot"]
    [loss] = panels["val: loss"].series
    assert [(point.effort.step, point.value) for point in loss.points] == [
        (10, 1.5), (20, 0.5), (30, 0.75)
    ]  # fmt: skip
    [digits] = panels["digits"].series
    assert [(p.value, p.error) for p in digits.points[1:3]] == [(70.0, 10.0), (70.0, 3.0)]


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (["--best", "digts"], "tasks that have results: digits, shots, val"),
        (["--best", "digits:top5"], "metrics of digits: accuracy"),
        (["--best", "shots:2-shot"], "metrics of shots: accuracy, 1-shot, 5-shot"),
        (["--pin"], "--best TASK"),
        (["--best", "val:loss", "--pin"], "step-00000020, the best by val:loss, is no longer"),
    ],
)
def test_what_cannot_be_chosen_is_one_line_and_nothing_is_written(
    capsys, run_dir, options, expected
):
    assert expected in refusal(capsys, "report", run_dir.url, *options)
    assert "report" not in STORAGE.names(run_dir.url)
    assert "pins" not in STORAGE.names(run_dir.url)


@pytest.fixture
def judged(tmp_path) -> tuple[RunDir, str]:
    """A run whose only checkpoint was judged, and the hash of its manifest."""
    config = run_of(tmp_path)
    manifest = STORAGE.read(f"{write_checkpoint(config)}/manifest.json")
    return RunDir(config.run_dir), hashlib.sha256(manifest).hexdigest()


def test_the_best_checkpoint_is_pinned(capsys, judged):
    run_dir, sha256 = judged
    add_evaluation(run_dir, "digits", 0, [0.5], checkpoint_sha256=sha256)
    assert cli.main(["report", run_dir.url, "--best", "digits", "--pin", "--json"]) == 0
    [run] = json.loads(capsys.readouterr().out)["runs"]
    assert run["best"]["checkpoint"] == run_dir.checkpoint(0)
    assert (run["best"]["step"], run["best"]["value"], run["best"]["is_pinned"]) == (0, 0.5, True)
    assert pinned_steps(STORAGE, run_dir) == {0}


def test_a_checkpoint_that_was_written_anew_is_not_pinned(capsys, judged):
    run_dir, _ = judged
    add_evaluation(run_dir, "digits", 0, [0.5], checkpoint_sha256="0" * 64)
    line = refusal(capsys, "report", run_dir.url, "--best", "digits", "--pin")
    assert "written anew since digits judged it" in line
    assert pinned_steps(STORAGE, run_dir) == set()


def test_scalars_lie_beside_the_trainers_and_a_second_report_replaces_them(run_dir):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    history = read_history(STORAGE, run_dir)
    for _ in range(2):
        Sinks(tensorboard=True).write(STORAGE, {"run": history})
    board = EventAccumulator(f"{run_dir.tensorboard}/evaluations")
    board.Reload()
    assert [(e.step, e.value) for e in board.Scalars("val/loss")] == [
        (10, 1.5), (20, 0.5), (30, 0.75)
    ]  # fmt: skip
    assert [e.step for e in board.Scalars("digits/accuracy")] == [0, 10, 20, 30]
    assert board.Scalars("shots/1-shot")[0].value == pytest.approx(0.2)


def test_wandb_that_is_not_installed_is_one_line(capsys, run_dir, monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", None)  # as where it is missing
    line = refusal(capsys, "report", run_dir.url, "--wandb", "mixer")
    assert "pip install 'mixer_dist[wandb]'" in line
    assert "report" not in STORAGE.names(run_dir.url)


def test_tensorboard_is_for_local_runs(run_dir):
    history = replace(read_history(STORAGE, run_dir), run_dir=RunDir("s3://bucket/run"))
    with pytest.raises(RefusedError, match=r"local run_dir, got s3://bucket/run"):
        Sinks(tensorboard=True).check({"run": history})
