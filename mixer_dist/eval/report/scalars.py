"""Evaluation results for those who watch scalars elsewhere: TensorBoard, Weights & Biases."""

import importlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from itertools import groupby
from operator import itemgetter
from typing import Any

from mixer_dist.errors import MixerError, RefusedError
from mixer_dist.eval.report.evaluation import Evaluation
from mixer_dist.eval.report.history import History
from mixer_dist.storage import Storage, join

EVENT_FILE = "events.out.tfevents"  # how TensorBoard's files begin
TRAINING = ("loss", "learning_rate", "grad_norm", "images_per_s")


@dataclass(frozen=True)
class Sinks:
    """Where scalars go besides the page."""

    tensorboard: bool = False
    """Also of runs that did not ask for it by logging.tensorboard."""
    wandb: str | None = None
    """A project's name."""

    def check(self, runs: Mapping[str, History]) -> None:
        """RefusedError where a package is missing, or TensorBoard cannot write."""
        if self.wandb:
            _import("wandb")
        if self.tensorboard:
            _import("tensorboard")
            for history in runs.values():
                _check_is_local(history)

    def write(self, storage: Storage, runs: Mapping[str, History]) -> None:
        """Write what is wanted of each run; MixerError."""
        for name, history in runs.items():
            if self._is_on_board(history):
                _write_to_tensorboard(storage, history)
            if self.wandb:
                _write_to_wandb(history, name, self.wandb)

    def _is_on_board(self, history: History) -> bool:
        return bool(history.evaluations) and (self.tensorboard or _was_on_board(history))


def scalars(evaluation: Evaluation) -> Iterator[tuple[str, float]]:
    """Every number of a result, and its standard error, by name."""
    for metric, measure in evaluation.measures.items():
        yield f"{evaluation.task}/{metric}", measure.value
        if measure.standard_error is not None:
            yield f"{evaluation.task}/{metric} standard error", measure.standard_error


def _write_to_tensorboard(storage: Storage, history: History) -> None:
    """Beside the trainer's scalars; what an earlier report wrote is replaced."""
    from torch.utils.tensorboard import SummaryWriter

    folder = join(history.run_dir.tensorboard, "evaluations")
    for name in storage.names(folder):
        if name.startswith(EVENT_FILE):
            storage.delete(join(folder, name))
    with SummaryWriter(folder) as writer:
        for evaluation in history.evaluations:
            for name, value in scalars(evaluation):
                writer.add_scalar(name, value, evaluation.step, evaluation.time)


def _write_to_wandb(history: History, name: str, project: str) -> None:
    """Training and evaluations; a second report begins the same run anew."""
    wandb = _import("wandb")
    config = history.config.model_dump(mode="json") if history.config else {}
    run_id = history.starts[0].attempt.attempt_id if history.starts else None
    try:
        with wandb.init(project=project, name=name, id=run_id, config=config) as run:
            run.define_metric("step")
            run.define_metric("*", step_metric="step")
            for row in _wandb_rows(history):
                run.log(row)
    except wandb.Error as error:
        raise MixerError(f"--wandb {project}: {' '.join(str(error).split())}") from None


def _wandb_rows(history: History) -> Iterator[dict[str, float]]:
    """The last line of each logging interval, then the results; each with its step."""
    for _, lines in groupby(history.lines, key=itemgetter("time")):
        *_, line = lines
        yield {"step": line["step"]} | {n: line[n] for n in TRAINING if line[n] is not None}
    for evaluation in history.evaluations:
        yield {"step": evaluation.step} | dict(scalars(evaluation))


def _import(module: str) -> Any:
    """A package that is an extra of this one, under the same name."""
    try:
        return importlib.import_module(module)
    except ImportError:
        raise RefusedError(
            f"--{module} needs the package {module}, which is not installed: "
            f"pip install 'mixer_dist[{module}]'"
        ) from None


def _was_on_board(history: History) -> bool:
    """Whether the trainer wrote scalars; who reads its run elsewhere may have no TensorBoard."""
    asked = history.config is not None and history.config.logging.tensorboard
    return asked and _is_local(history) and find_spec("tensorboard") is not None


def _is_local(history: History) -> bool:
    return "://" not in history.run_dir.url


def _check_is_local(history: History) -> None:
    if not _is_local(history):
        raise RefusedError(
            f"--tensorboard needs a local run_dir, got {history.run_dir.url}: "
            "results.csv of a report goes anywhere"
        )
