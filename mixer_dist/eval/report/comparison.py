"""The page on which runs are compared: a row a run, and their curves on the same axes."""

from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from mixer_dist.eval.report import page
from mixer_dist.eval.report.chosen import Chosen
from mixer_dist.eval.report.curves import smoothed, to_curves
from mixer_dist.eval.report.history import History
from mixer_dist.eval.report.measured import shared_panel
from mixer_dist.eval.report.panels import Panel, Point, Series
from mixer_dist.eval.report.runs_table import results_table, runs_table
from mixer_dist.eval.report.section import Section
from mixer_dist.eval.report.shared import Runs, shared_criteria, unlike_tasks
from mixer_dist.eval.report.switched import switched

HOW_TO_READ = (
    "Curves of one colour are one run. Over steps one sees what an update is worth, over samples "
    "seen what an image is worth, over GPU-hours what the machines' time is worth. Bars, and what "
    "stands behind ±, are one standard error: two results that differ by less than about two of "
    "them may well be equal. The training loss is a moving median; it can be compared only "
    "between runs with the same data, augmentation and kind of loss."
)


def comparison_sections(
    runs: Runs, missing: Sequence[str], chosen: Mapping[str, Chosen]
) -> list[Section]:
    """Everything below the head of the page; `missing` says which runs left nothing to report."""
    left_out = [f"Left out: {reason}" for reason in missing]
    notes = [page.paragraph(note) for note in (*_notes(runs), *left_out)]
    criteria = shared_criteria(runs)
    panels = [*_loss_panels(runs), *(shared_panel(c.task, c.metric, runs) for c in criteria)]
    curves, files = switched("comparison", panels) if panels else ("", {})
    sections = [
        Section("Runs", [runs_table(runs), *notes]),
        Section("Results", [results_table(runs, criteria, chosen)]),
        Section("Curves", [curves], files),
    ]
    return [section for section in sections if any(section.parts)]


def comparison_page(runs: Runs, sections: Sequence[Section]) -> str:
    """The whole page."""
    title = f"Comparison of {len(runs)} runs"
    num_results = sum(len(history.evaluations) for history in runs.values())
    return page.document(
        title,
        page.header(title, ", ".join(runs), {"Evaluation results": f"{num_results:,}"}, None),
        "<main>",
        *[section.html for section in sections],
        "</main>",
        page.section("How to read this", page.paragraph(HOW_TO_READ), tag="footer"),
    )


def _notes(runs: Runs) -> Iterator[str]:
    """What a reader must know of what is not shown."""
    if idle := [name for name, history in runs.items() if not history.evaluations]:
        yield f"No evaluation result yet: {', '.join(idle)}."
    if unlike := unlike_tasks(runs):
        yield (
            "Not compared, since the runs were judged on other datasets or by other settings: "
            f"{', '.join(unlike)}."
        )


def _loss_panels(runs: Runs) -> Iterator[Panel]:
    """Of the training, one for each kind of loss."""
    trained = {name: history for name, history in runs.items() if history.lines and history.config}
    losses = {name: history.config.loss for name, history in trained.items() if history.config}
    for loss in dict.fromkeys(losses.values()):
        alike = [name for name in trained if losses[name] == loss]
        series = [_loss_series(name, trained[name]) for name in alike]
        yield Panel("Training loss", f"{loss} loss per image", [s for s in series if s.points])


def _loss_series(name: str, history: History) -> Series:
    curves = to_curves(history.lines)
    steps, losses = smoothed(curves.steps, curves.loss)
    efforts = map(history.efforts.at, steps.astype(int).tolist())
    pairs = zip(efforts, losses.tolist(), strict=True)
    return Series([Point(effort, loss) for effort, loss in pairs if np.isfinite(loss)], name)
