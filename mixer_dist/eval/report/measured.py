"""From evaluation results to panels: of one run by method, and of several runs by task."""

from collections.abc import Iterator, Mapping, Sequence

from mixer_dist.eval.report.best import by_task
from mixer_dist.eval.report.evaluation import ACCURACY, LOSS, Evaluation
from mixer_dist.eval.report.history import History
from mixer_dist.eval.report.panels import PERCENT, Panel, Point, Series


def panels_of(history: History) -> list[Panel]:
    """A panel a task, with a curve for each number of shots; one more where it tells a loss."""
    return [
        panel
        for evaluations in by_task(history.evaluations).values()
        for panel in _task_panels(history, evaluations)
    ]


def shared_panel(task: str, metric: str, of_runs: Mapping[str, History]) -> Panel:
    """A task by one metric, with a curve for each run, by name, that has it."""
    measured = {
        name: [e for e in history.evaluations if e.task == task and metric in e.measures]
        for name, history in of_runs.items()
    }
    series = [_series(of_runs[name], found, metric, name) for name, found in measured.items()
              if found]  # fmt: skip
    last = next(found[-1] for found in measured.values() if found)
    return _panel(last, metric, last.method_of(metric), series)


def _task_panels(history: History, evaluations: Sequence[Evaluation]) -> Iterator[Panel]:
    metrics = {m: None for e in evaluations for m in e.shown_metrics}
    accuracies = [metric for metric in metrics if metric != LOSS]
    last, are_several = evaluations[-1], len(accuracies) > 1
    series = [_series(history, evaluations, m, m if are_several else "") for m in accuracies]
    yield _panel(last, ACCURACY, last.kind if are_several else last.method, series)
    if LOSS in metrics:
        yield _panel(last, LOSS, LOSS, [_series(history, evaluations, LOSS)])


def _panel(last: Evaluation, metric: str, method: str, series: Sequence[Series]) -> Panel:
    if metric == LOSS:
        return Panel(f"{last.task}: loss", f"{last.kind} loss per image", series)
    return Panel(last.task, f"{method} top-1 accuracy (%)", series, PERCENT / last.num_classes)


def _series(
    history: History, evaluations: Sequence[Evaluation], metric: str, name: str = ""
) -> Series:
    scale = 1.0 if metric == LOSS else PERCENT
    found = [(e, e.measures[metric]) for e in evaluations if metric in e.measures]
    points = [
        Point(history.efforts.at(e.step), scale * m.value, scale * (m.standard_error or 0.0))
        for e, m in found
    ]
    return Series(points, name)
