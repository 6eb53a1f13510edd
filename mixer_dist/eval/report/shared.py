"""What several runs were judged by alike, and may therefore be compared by; pure."""

from collections.abc import Mapping

from mixer_dist.eval.report.best import Criterion, by_task
from mixer_dist.eval.report.evaluation import ACCURACY, LOSS, Evaluation
from mixer_dist.eval.report.history import History

Runs = Mapping[str, History]
"""Runs by their names."""


def shared_criteria(runs: Runs) -> list[Criterion]:
    """Accuracy, and loss where it is told, of each task that several runs have in common."""
    found = []
    for task, newest in _common_tasks(runs).items():
        if _are_alike(newest):
            metrics = [m for m in (ACCURACY, LOSS) if all(m in e.measures for e in newest)]
            found += [Criterion(task, metric) for metric in metrics]
    return found


def unlike_tasks(runs: Runs) -> list[str]:
    """Tasks of one name that were judged on other data or by other settings in another run."""
    return [task for task, newest in _common_tasks(runs).items() if not _are_alike(newest)]


def _common_tasks(runs: Runs) -> dict[str, list[Evaluation]]:
    """The newest result of each run that has the task, where several have."""
    newest: dict[str, list[Evaluation]] = {}
    for history in runs.values():
        for task, evaluations in by_task(history.evaluations).items():
            newest.setdefault(task, []).append(evaluations[-1])
    return {task: found for task, found in sorted(newest.items()) if len(found) > 1}


def _are_alike(newest: list[Evaluation]) -> bool:
    return all(evaluation.terms == newest[0].terms for evaluation in newest)
