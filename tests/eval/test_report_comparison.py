"""Several runs on one page: a row each, what they share, and a word on what is left out."""

import json
from pathlib import Path

import pytest

from mixer_dist import cli
from mixer_dist.errors import MissingError
from mixer_dist.eval.report.history import History, read_history
from mixer_dist.eval.report.report import Report, Wanted, write_report
from mixer_dist.eval.report.shared import shared_criteria, unlike_tasks
from mixer_dist.run_dir import RunDir
from tests.eval.reported_runs import STORAGE, Page, add_evaluation, begin, train


def run(folder: Path, num_steps: int, world_size: int = 1) -> RunDir:
    run_dir = RunDir(str(folder))
    begin(run_dir, 1, resumed_from=0, engine="ddp", world_size=world_size)
    train(run_dir, 1, range(1, num_steps + 1))
    return run_dir


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Runs a and b with a task in common, c without results, and one that never was."""
    folder = tmp_path_factory.mktemp("runs")
    a, b, _ = run(folder / "a", 10), run(folder / "b<i>", 20, world_size=2), run(folder / "c", 5)
    add_evaluation(a, "digits", 10, [0.25], standard_error=0.05)
    add_evaluation(b, "digits", 10, [0.75], standard_error=0.01)
    add_evaluation(b, "digits", 20, [0.5], standard_error=0.02)
    add_evaluation(b, "alone", 20, [0.5])
    return folder


@pytest.fixture(scope="module")
def report(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Report:
    names = ("a", "b<i>", "c", "never")
    out = str(tmp_path_factory.mktemp("out"))
    return write_report(STORAGE, [str(folder / name) for name in names], Wanted(out))


@pytest.fixture(scope="module")
def page(report: Report) -> Page:
    return Page(STORAGE.read(report.page).decode())


def test_each_run_has_a_row_with_newest_and_best(page):
    results = [row for row in page.rows if len(row) == 3]
    assert results == [
        ["Run", "digits, newest", "digits, best"],
        ["a", "25.00 ± 5.00 %, step 10", "25.00 ± 5.00 %, step 10"],
        ["b<i>", "50.00 ± 2.00 %, step 20", "75.00 ± 1.00 %, step 10"],
        ["c", "–", "–"],
    ]
    runs = {row[0]: row[1:5] for row in page.rows if len(row) == 7}
    assert runs["b<i>"] == ["Mixer-S/32, 224 px, 10 classes", "18,596,754", "20 of 40", "1,280"]


def test_what_has_nothing_to_show_is_named(folder, report, page):
    assert "No evaluation result yet: c." in page.text
    [missing] = report.missing
    assert str(folder / "never") in missing
    assert f"Left out: {missing}" in page.text


def test_the_page_holds_its_pictures_and_the_tables_hold_all_runs(report, page):
    assert sorted(report.files) == [
        "comparison-gpu-hours.png", "comparison-samples.png", "comparison.png", "index.html",
        "results.csv", "results.json",
    ]  # fmt: skip
    assert not {"script", "link", "i"} & {tag for tag, _ in page.elements}
    tables = json.loads(STORAGE.read(report.files["results.json"]))
    assert [run["run"] for run in tables["runs"]] == ["a", "b<i>", "c"]
    assert [(row["run"], row["task"], row["accuracy"]) for row in tables["results"]] == [
        ("a", "digits", 0.25), ("b<i>", "alone", 0.5), ("b<i>", "digits", 0.75),
        ("b<i>", "digits", 0.5),
    ]  # fmt: skip


def test_tasks_on_other_data_or_by_other_settings_are_not_compared(tmp_path):
    runs: dict[str, History] = {}
    for name, other in {"a": "one", "b": "another"}.items():
        run_dir = run(tmp_path / name, 1)
        add_evaluation(run_dir, "same", 1, [0.5], datasets={"test": "one"}, config={"l2": 1})
        add_evaluation(run_dir, "data", 1, [0.5], datasets={"test": other})
        add_evaluation(run_dir, "settings", 1, [0.5], config={"l2": other})
        runs[name] = read_history(STORAGE, run_dir)
    assert [str(criterion) for criterion in shared_criteria(runs)] == ["same:accuracy"]
    assert unlike_tasks(runs) == ["data", "settings"]


def test_runs_of_one_name_are_told_apart(tmp_path):
    urls = [run(tmp_path / name / "run", 1).url for name in ("x", "y")]
    report = write_report(STORAGE, [*urls, urls[0] + "/"], Wanted(str(tmp_path / "out")))
    assert [run["run"] for run in report.runs] == urls


def test_runs_of_which_none_has_anything_are_refused(tmp_path):
    urls = [str(tmp_path / name) for name in ("x", "y")]
    with pytest.raises(MissingError, match=r"x: .*y: "):
        write_report(STORAGE, urls, Wanted(str(tmp_path / "out")))
    assert list(tmp_path.iterdir()) == []


def test_the_best_of_each_run_is_told(capsys, folder, tmp_path):
    argv = ["report", *(str(folder / name) for name in ("a", "b<i>")), "--out", str(tmp_path)]
    assert cli.main([*argv, "--best", "digits"]) == 0
    told = capsys.readouterr().out
    assert f"a: best by digits:accuracy is {folder}/a/checkpoints/step-00000010 (0.25)" in told
    assert f"b<i>: best by digits:accuracy is {folder}/b<i>/checkpoints/step-00000010" in told
    assert (tmp_path / "index.html").exists()
