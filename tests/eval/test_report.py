"""A report holds the run's numbers as they are, and can be mailed to anyone."""

import base64
import io
import json
import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mixer_dist.errors import DataError, MissingError
from mixer_dist.eval.report import curves as figures
from mixer_dist.eval.report.report import Report, Wanted, write_report
from mixer_dist.run_dir import RunDir
from tests.eval.reported_runs import BATCH, STORAGE, Page, add_evaluation, begin, train

HOSTILE = '<img src=x onerror="alert(1)">&$\\frac'  # also no mathematics for matplotlib


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory: pytest.TempPathFactory) -> RunDir:
    """Twice the steps 21 to 25, since the second attempt went on from step 20."""
    run_dir = RunDir(str(tmp_path_factory.mktemp("runs") / "mixer<b>&run"))
    begin(run_dir, 1, resumed_from=0, engine="fsdp", world_size=4)
    train(run_dir, 1, range(1, 26), skipped=7)
    begin(run_dir, 2, resumed_from=20, engine="zero2", world_size=2)
    train(run_dir, 2, range(21, 31))
    add_evaluation(run_dir, "digits", 0, [0.12, 0.15, 0.18], checkpoint="untrained")
    add_evaluation(run_dir, "digits", 20, [0.5, 0.625, 0.75], standard_error=0.0722)
    add_evaluation(run_dir, HOSTILE, 20, [0.5], num_classes=1000)
    return run_dir


@pytest.fixture(scope="module")
def report(run_dir: RunDir) -> Report:
    return write_report(STORAGE, [run_dir.url], Wanted())


@pytest.fixture(scope="module")
def page(report: Report) -> Page:
    return Page(STORAGE.read(report.page).decode())


def inked_share(png: bytes) -> float:
    """Share of pixels that are not the background's; the corner is background."""
    pixels = np.asarray(Image.open(io.BytesIO(png)).convert("RGB")).astype(int)
    return float((np.abs(pixels - pixels[0, 0]).sum(-1) > 60).mean())


def test_the_files_lie_in_the_run_directory(run_dir, report):
    pictures = ["curves", "evaluations-gpu-hours", "evaluations-samples", "evaluations", "goodput"]
    others = ["index.html", "metrics.jsonl", "results.csv", "results.json"]
    names = [*(f"{name}.png" for name in pictures), *others]
    assert STORAGE.names(run_dir.report) == sorted(names)
    assert report.files == {name: f"{run_dir.report}/{name}" for name in names}
    assert report.page == report.files["index.html"]


def test_the_answer_is_the_run_in_numbers(report):
    [run] = report.runs
    assert (run["last_step"], run["total_steps"], report.num_evaluations) == (30, 40, 3)
    assert run["last_loss"] == pytest.approx(2.030)
    assert run["samples"] == 30 * BATCH


def test_merged_metrics_have_each_step_once_as_the_living_attempt_did_it(report):
    lines = [json.loads(line) for line in STORAGE.read(report.files["metrics.jsonl"]).splitlines()]
    assert [line["step"] for line in lines] == list(range(1, 31))
    assert [line["attempt"] for line in lines] == [1] * 20 + [2] * 10
    assert [line["step"] for line in lines if line["loss"] is None] == [7]


def test_curves_know_where_an_update_was_skipped_and_an_attempt_resumed(report):
    lines = [json.loads(line) for line in STORAGE.read(report.files["metrics.jsonl"]).splitlines()]
    curves = figures.to_curves(lines)
    assert curves.skips.tolist() == [7]
    assert curves.resumes.tolist() == [20]
    assert np.flatnonzero(np.isnan(curves.loss)).tolist() == [6]


def test_the_table_has_every_result_with_error_range_and_chance(page):
    rows = [[*row[:3], *row[5:]] for row in page.rows if len(row) == 9]
    assert ["digits", "5-shot", "0", "15.00 %", "12.00 – 18.00 %", "3", "10 %"] in rows
    assert ["digits", "5-shot", "20", "62.50 ± 7.22 %", "50.00 – 75.00 %", "3", "10 %"] in rows
    assert [HOSTILE, "5-shot", "20", "50.00 %", "–", "1", "0.1 %"] in rows


def test_attempts_and_progress_are_told(page):
    assert ["1", "fsdp", "4", "bf16", "the start"] in page.rows
    assert ["2", "zero2", "2", "bf16", "step 20"] in page.rows
    text = " ".join(page.text)
    assert "step 30 of 40" in text
    assert "Mixer-S/32, 224 px, 10 classes" in text
    assert ("progress", {"value": "0.7500", "max": "1"}) in page.elements


def test_the_table_tells_where_the_time_went(report, page):
    [run] = report.runs
    assert sum(run["seconds"].values()) == pytest.approx(run["wall_s"])
    assert run["num_lost_steps"] == 5
    shares = {row[0]: row[1] for row in page.rows if len(row) == 3}
    assert shares["training: steps that count"] == f"{run['goodput']:.1%}"
    assert shares["in all"] == "100.0%"


def test_names_from_the_run_stay_text(run_dir, page):
    assert run_dir.url in page.text
    assert not {"b", "script", "link", "iframe"} & {tag for tag, _ in page.elements}
    assert all("onerror" not in attributes for _, attributes in page.elements)


def test_the_page_holds_all_it_shows(page):
    addresses = [
        value
        for _, attributes in page.elements
        for name, value in attributes.items()
        if name in ("src", "srcset", "href")
    ]
    assert len(addresses) == 5 * 4  # light and dark, wide and narrow
    assert all(address.startswith("data:image/png;base64,") for address in addresses)


def test_the_pictures_of_the_page_are_the_files(report, page):
    shown = [a["src"] for tag, a in page.elements if tag == "img"]
    pictures = [base64.b64decode(address.partition(",")[2]) for address in shown]
    names = ["curves", "evaluations", "evaluations-samples", "evaluations-gpu-hours", "goodput"]
    assert pictures == [STORAGE.read(report.files[f"{name}.png"]) for name in names]
    assert all(0.005 < inked_share(png) < 0.3 for png in pictures[:-1])
    assert 0.3 < inked_share(pictures[-1]) < 0.9  # areas, not lines


def test_a_run_that_has_just_begun_has_sentences_and_no_pictures(tmp_path):
    run_dir = RunDir(str(tmp_path))
    begin(run_dir, 1, resumed_from=0, engine="ddp", world_size=8)
    report = write_report(STORAGE, [run_dir.url], Wanted())
    assert STORAGE.names(run_dir.report) == ["index.html", "metrics.jsonl", "results.json"]
    [run] = report.runs
    assert (run["last_step"], run["last_loss"], report.num_evaluations) == (0, None, 0)
    text = Page(STORAGE.read(report.page).decode()).text
    assert "No step has been recorded yet." in text
    assert "No checkpoint has been evaluated yet." in text


def test_an_attempt_that_left_no_event_has_an_unknown_number_of_ranks(tmp_path):
    run_dir = RunDir(str(tmp_path))
    begin(run_dir, 1, resumed_from=0, engine="ddp", world_size=8)
    STORAGE.delete(run_dir.events_file(1, 0))
    html = STORAGE.read(write_report(STORAGE, [run_dir.url], Wanted()).page).decode()
    assert ["1", "ddp", "–", "bf16", "the start"] in Page(html).rows


def test_an_untrained_network_alone_is_reported(tmp_path):
    run_dir = RunDir(str(tmp_path))
    add_evaluation(run_dir, "digits", 0, [0.1])
    report = write_report(STORAGE, [run_dir.url], Wanted())
    [run] = report.runs
    assert (run["total_steps"], run["gpu_hours"], report.num_evaluations) == (None, None, 1)
    assert "evaluations-samples.png" not in report.files  # nothing tells how many there were
    assert "there are evaluations only" in STORAGE.read(report.page).decode()


def test_an_empty_directory_is_refused_and_stays_empty(tmp_path):
    with pytest.raises(MissingError, match=r"attempts/0001\.yaml") as caught:
        write_report(STORAGE, [str(tmp_path)], Wanted())
    assert caught.value.exit_code == 2
    assert list(tmp_path.iterdir()) == []


def test_a_result_that_is_none_is_named(tmp_path):
    run_dir = RunDir(str(tmp_path))
    add_evaluation(run_dir, "digits", 20, [0.5], accuracy=None)
    with pytest.raises(DataError, match=re.escape(run_dir.evaluation("digits", 20))):
        write_report(STORAGE, [run_dir.url], Wanted())
    assert not Path(run_dir.report).exists()


def test_another_runs_results_are_left_out_and_named(tmp_path, caplog):
    run_dir = RunDir(str(tmp_path))
    begin(run_dir, 1, 0, "fsdp", 2)
    add_evaluation(run_dir, "digits", 20, [0.5], run_id="id-1")
    add_evaluation(run_dir, "digits", 30, [0.9], run_id="another")
    report = write_report(STORAGE, [run_dir.url], Wanted())
    assert report.num_evaluations == 1
    assert f"{run_dir.evaluation('digits', 30)} is the result of another run" in caplog.text


def test_a_report_can_lie_in_a_bucket(s3):
    storage, run_dir = s3.storage(), RunDir(f"{s3.new_bucket()}/run")
    begin(run_dir, 1, resumed_from=0, engine="ddp", world_size=8, storage=storage)
    report = write_report(storage, [run_dir.url], Wanted())
    assert storage.names(run_dir.report) == ["index.html", "metrics.jsonl", "results.json"]
    assert storage.read(report.files["metrics.jsonl"]) == b""


def test_a_long_curve_keeps_its_spikes_and_its_gaps():
    steps = np.arange(1, 1_000_001, dtype=np.float64)
    values = np.sin(steps / 1e5)
    values[123_456], values[654_321] = 50.0, -50.0
    values[400_000:420_000] = np.nan
    kept_steps, kept = figures.thinned(steps, values)
    assert len(kept) <= figures.MAX_POINTS
    assert (np.nanmax(kept), np.nanmin(kept)) == (50.0, -50.0)
    assert (np.diff(kept_steps) >= 0).all()
    assert np.isnan(kept[(kept_steps > 402_000) & (kept_steps < 418_000)]).all()


def test_the_smoothed_curve_ignores_single_nulls_and_spikes():
    values = np.full(1000, 3.0)
    values[100], values[200] = np.nan, 1e9
    steps = np.arange(1, 1001, dtype=np.float64)
    shown_steps, medians = figures.smoothed(steps, values)
    assert set(medians) == {3.0}
    assert (shown_steps[0], shown_steps[-1]) == (1, 1000)


@pytest.mark.parametrize(("steps", "value"), [([5.0, 6.0, 7.0], np.nan), ([1.0], 2.5)])
def test_the_shortest_and_the_sickest_run_can_be_drawn(steps, value):
    values = np.full(len(steps), value)
    skips = np.array(steps)[np.isnan(values)]
    curves = figures.Curves(np.array(steps), *[values] * 5, skips=skips, resumes=skips[:0])
    assert inked_share(figures.curves_png(curves, "softmax", 1.0, figures.Look())) > 0.005
