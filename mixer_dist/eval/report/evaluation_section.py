"""The part of a run's page about its evaluations: curves, newest and best, every result."""

from collections.abc import Iterator

from mixer_dist.eval.report import page, wording
from mixer_dist.eval.report.best import Standing, standings
from mixer_dist.eval.report.evaluation import LOSS, Evaluation
from mixer_dist.eval.report.history import History
from mixer_dist.eval.report.measured import panels_of
from mixer_dist.eval.report.page import Column
from mixer_dist.eval.report.section import Section
from mixer_dist.eval.report.switched import switched

_STANDINGS = (
    Column("Task"), Column("Measured"), Column("Newest", True), Column("at step", True),
    Column("Best", True), Column("at step", True),
)  # fmt: skip
_RESULTS = (
    Column("Task"), Column("Measured"), Column("Step", True), Column("Samples seen", True),
    Column("GPU-hours", True), Column("Value", True), Column("Range over seeds", True),
    Column("Seeds", True), Column("Chance", True),
)  # fmt: skip


def evaluation_section(history: History) -> Section:
    """Of all tasks; a sentence where there is no result yet."""
    heading, evaluations = "Evaluations", history.evaluations
    if not evaluations:
        said = "No checkpoint has been evaluated yet."
        return Section(heading, [page.paragraph(said)])
    curves, files = switched("evaluations", panels_of(history))
    parts = [
        curves,
        page.table(_STANDINGS, map(_standing_cells, standings(evaluations))),
        page.paragraph("Every result:"),
        page.table(_RESULTS, _result_cells(history)),
    ]
    return Section(heading, parts, files)


def _standing_cells(standing: Standing) -> list[str]:
    metric, newest, best = standing.criterion.metric, standing.newest, standing.best
    return [
        standing.criterion.task,
        standing.method,
        wording.measured(newest.measures, metric),
        f"{newest.step:,}",
        wording.measured(best.measures, metric),
        f"{best.step:,}",
    ]


def _result_cells(history: History) -> Iterator[list[str]]:
    for evaluation in history.evaluations:
        effort = history.efforts.at(evaluation.step)
        for metric in evaluation.shown_metrics:
            yield [
                evaluation.task,
                evaluation.method_of(metric),
                f"{evaluation.step:,}",
                wording.count(effort.samples),
                wording.brief(effort.gpu_hours),
                wording.measured(evaluation.measures, metric),
                *_spread(evaluation, metric),
            ]


def _spread(evaluation: Evaluation, metric: str) -> list[str]:
    """Lowest and highest over seeds, their number, and chance; nothing of a loss."""
    if metric == LOSS:
        return [wording.NOT_KNOWN] * 3
    shares = evaluation.measures[metric].per_seed
    low, high = min(shares), max(shares)
    return [
        f"{100 * low:.2f} – {wording.percent(high)}" if len(shares) > 1 else wording.NOT_KNOWN,
        str(len(shares)),
        f"{100 / evaluation.num_classes:.3g} %",
    ]
