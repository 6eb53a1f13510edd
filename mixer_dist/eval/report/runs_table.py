"""The tables of a comparison: a row a run."""

from collections.abc import Mapping, Sequence

from mixer_dist.eval.report import page, wording
from mixer_dist.eval.report.best import Criterion, Standing, standing
from mixer_dist.eval.report.chosen import Chosen
from mixer_dist.eval.report.evaluation import ACCURACY, Evaluation
from mixer_dist.eval.report.history import History
from mixer_dist.eval.report.page import Column
from mixer_dist.eval.report.shared import Runs
from mixer_dist.train.description import num_parameters

Cells = tuple[Column, list[str]]
"""A column, and what each run has in it."""


def runs_table(runs: Runs) -> str:
    """HTML: what each run is, and how far it is."""
    histories = list(runs.values())
    return _table(
        (Column("Run"), list(runs)),
        (Column("Model"), [_model(h) for h in histories]),
        (Column("Parameters", True), [_parameters(h) for h in histories]),
        (Column("Step", True), [_step(h) for h in histories]),
        (Column("Samples seen", True), [_samples(h) for h in histories]),
        (Column("GPU-hours", True), [wording.brief(h.efforts.gpu_hours) for h in histories]),
        (Column("Last loss", True), [wording.brief(h.last_loss) for h in histories]),
    )


def results_table(runs: Runs, criteria: Sequence[Criterion], chosen: Mapping[str, Chosen]) -> str:
    """HTML: newest and best of each run by each criterion, and the checkpoint that is best by one.

    Empty where there is nothing of that.
    """
    columns = [cells for criterion in criteria for cells in _judged(runs, criterion)]
    if chosen:
        criterion = next(iter(chosen.values())).criterion
        picks = [wording.choice(chosen.get(name)) for name in runs]
        columns.append((Column(f"Best by {criterion}", True), picks))
    return _table((Column("Run"), list(runs)), *columns) if columns else ""


def _table(*columns: Cells) -> str:
    return page.table([column for column, _ in columns], zip(*(c for _, c in columns), strict=True))


def _judged(runs: Runs, criterion: Criterion) -> list[Cells]:
    """Newest and best of each run."""
    name = criterion.task if criterion.metric == ACCURACY else str(criterion)
    found = [standing(history.evaluations, criterion) for history in runs.values()]
    return [
        (
            Column(f"{name}, newest", True),
            [_result(s, s.newest) if s else wording.NOT_KNOWN for s in found],
        ),
        (
            Column(f"{name}, best", True),
            [_result(s, s.best) if s else wording.NOT_KNOWN for s in found],
        ),
    ]


def _result(of: Standing, evaluation: Evaluation) -> str:
    value = wording.measured(evaluation.measures, of.criterion.metric)
    return f"{value}, step {evaluation.step:,}"


def _model(history: History) -> str:
    return wording.model(history.config.model) if history.config else wording.NOT_KNOWN


def _parameters(history: History) -> str:
    return wording.count(num_parameters(history.config) if history.config else None)


def _step(history: History) -> str:
    of_all = f" of {history.total_steps:,}" if history.total_steps else ""
    return f"{history.last_step:,}{of_all}"


def _samples(history: History) -> str:
    return wording.count(history.efforts.at(history.last_step).samples)
