"""The table of a comparison: a row a run."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from operator import attrgetter

from mixer_dist.eval.report import page, wording
from mixer_dist.eval.report.best import Criterion, Standing, standing
from mixer_dist.eval.report.chosen import Chosen
from mixer_dist.eval.report.evaluation import ACCURACY, Evaluation
from mixer_dist.eval.report.history import History
from mixer_dist.eval.report.page import Column
from mixer_dist.eval.report.shared import Runs
from mixer_dist.train.description import num_parameters


@dataclass(frozen=True)
class _Field:
    """A column, and what a run has in it."""

    column: Column
    cell: Callable[[History], str]


def runs_table(runs: Runs, criteria: Sequence[Criterion], chosen: Mapping[str, Chosen]) -> str:
    """HTML: what a run is, newest and best by each criterion, and the checkpoint chosen by one."""
    fields = [*_FIELDS, *(field for criterion in criteria for field in _judged(criterion))]
    columns = [Column("Run"), *(field.column for field in fields)]
    rows = [[name, *(f.cell(history) for f in fields)] for name, history in runs.items()]
    if chosen:
        columns.append(Column(f"Best by {next(iter(chosen.values())).criterion}"))
        rows = [[*row, _chosen_cell(chosen.get(row[0]))] for row in rows]
    return page.table(columns, rows)


def _model(history: History) -> str:
    return wording.model(history.config.model) if history.config else wording.NOT_KNOWN


def _parameters(history: History) -> str:
    return wording.count(num_parameters(history.config) if history.config else None)


def _step(history: History) -> str:
    of_all = f" of {history.total_steps:,}" if history.total_steps else ""
    return f"{history.last_step:,}{of_all}"


def _samples(history: History) -> str:
    return wording.count(history.efforts.at(history.last_step).samples)


_FIELDS = (
    _Field(Column("Model"), _model),
    _Field(Column("Parameters", True), _parameters),
    _Field(Column("Step", True), _step),
    _Field(Column("Samples seen", True), _samples),
    _Field(Column("GPU-hours", True), lambda history: wording.brief(history.efforts.gpu_hours)),
    _Field(Column("Last loss", True), lambda history: wording.brief(history.last_loss)),
)


def _judged(criterion: Criterion) -> list[_Field]:
    """Its newest and its best result."""
    name = criterion.task if criterion.metric == ACCURACY else str(criterion)
    return [
        _Field(
            Column(f"{name}, newest", True), lambda h: _cell(h, criterion, attrgetter("newest"))
        ),
        _Field(Column(f"{name}, best", True), lambda h: _cell(h, criterion, attrgetter("best"))),
    ]


def _cell(history: History, criterion: Criterion, which: Callable[[Standing], Evaluation]) -> str:
    found = standing(history.evaluations, criterion)
    if found is None:
        return wording.NOT_KNOWN
    evaluation = which(found)
    return f"{wording.measured(evaluation.measures, criterion.metric)} (step {evaluation.step:,})"


def _chosen_cell(chosen: Chosen | None) -> str:
    return wording.choice(chosen) if chosen else wording.NOT_KNOWN
