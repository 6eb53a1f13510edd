"""Which results of a task are its newest and its best; pure."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
from operator import attrgetter

from mixer_dist.checkpoint.retention import best_steps
from mixer_dist.config import KeepBestConfig
from mixer_dist.errors import RefusedError
from mixer_dist.eval.report.evaluation import ACCURACY, LOSS, Evaluation, Measure


@dataclass(frozen=True)
class Criterion:
    """By what checkpoints are compared."""

    task: str
    metric: str = ACCURACY

    def __str__(self) -> str:
        return f"{self.task}:{self.metric}"


@dataclass(frozen=True)
class Standing:
    """How a task stands by one of its metrics."""

    criterion: Criterion
    newest: Evaluation
    best: Evaluation

    @property
    def method(self) -> str:
        """What is measured, as a table names it."""
        return self.newest.method_of(self.criterion.metric)

    def measure(self, evaluation: Evaluation) -> Measure:
        """The number that counts."""
        return evaluation.measures[self.criterion.metric]


def to_criterion(text: str) -> Criterion:
    """From TASK or TASK:METRIC."""
    task, _, metric = text.partition(":")
    return Criterion(task, metric or ACCURACY)


def by_task(evaluations: Sequence[Evaluation]) -> dict[str, list[Evaluation]]:
    """Results that are sorted by task and step, task by task."""
    return {task: list(group) for task, group in groupby(evaluations, key=attrgetter("task"))}


def standing(evaluations: Sequence[Evaluation], criterion: Criterion) -> Standing | None:
    """Of a task's results the newest and the best; None where none has the metric.

    The best has the lowest loss, else the highest number; of equal ones it is the latest.
    """
    measured = {e.step: e for e in evaluations if e.task == criterion.task
                and criterion.metric in e.measures}  # fmt: skip
    rule = KeepBestConfig(
        task=criterion.task,
        metric=criterion.metric,
        mode="min" if criterion.metric == LOSS else "max",
    )
    values = {step: e.measures[criterion.metric].value for step, e in measured.items()}
    best = [measured[step] for step in best_steps(values, rule)]
    return Standing(criterion, measured[max(measured)], *best) if best else None


def check_known(evaluations: Sequence[Evaluation], criterion: Criterion) -> None:
    """RefusedError where no result has the metric."""
    tasks = {e.task: None for e in evaluations}
    if criterion.task not in tasks:
        known = ", ".join(tasks) or "none yet"
        raise RefusedError(f"--best {criterion}: tasks that have results: {known}")
    metrics = {m: None for e in evaluations if e.task == criterion.task for m in e.measures}
    if criterion.metric not in metrics:
        raise RefusedError(f"--best {criterion}: metrics of {criterion.task}: {', '.join(metrics)}")


def standings(evaluations: Sequence[Evaluation]) -> list[Standing]:
    """Of each task by each of its numbers: accuracy, that of every number of shots, loss."""
    criteria = {Criterion(e.task, metric): None for e in evaluations for metric in e.shown_metrics}
    found = (standing(evaluations, criterion) for criterion in criteria)
    return [each for each in found if each]
