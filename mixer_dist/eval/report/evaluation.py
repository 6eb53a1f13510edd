"""One evaluation result as a report reads it, and what was measured in it."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Annotated, Any

from pydantic import BaseModel, Field, ValidationError

from mixer_dist.errors import DataError
from mixer_dist.eval.subject import UNTRAINED
from mixer_dist.progress import watch
from mixer_dist.run_dir import RunDir, evaluated_step
from mixer_dist.sections import Fraction, NonNegativeFloat, NonNegativeInt, PositiveInt
from mixer_dist.storage import Storage, join

ACCURACY, LOSS = "accuracy", "loss"

PerSeed = Annotated[tuple[Fraction, ...], Field(min_length=1)]


@dataclass(frozen=True)
class Measure:
    """A number of a result; an accuracy is a share of 1."""

    value: float
    standard_error: float | None = None
    """None where it is not known."""
    per_seed: tuple[float, ...] = ()


class OfShots(BaseModel):
    """The accuracy of a few-shot task with so many images a class."""

    accuracy: Fraction
    standard_error: NonNegativeFloat | None = None
    per_seed: PerSeed


class Evaluation(BaseModel):
    """What a report shows of one evaluation result; other keys are left alone."""

    task: str
    step: NonNegativeInt
    kind: str
    checkpoint: str
    checkpoint_sha256: str | None = None
    run_id: str | None = None
    shots: PositiveInt | None = None
    """Of a few-shot task: those whose accuracy is the task's."""
    accuracy: Fraction
    """Mean over seeds."""
    standard_error: NonNegativeFloat | None = None
    per_seed: PerSeed
    per_shots: dict[PositiveInt, OfShots] = {}
    loss: float | None = None
    num_classes: PositiveInt
    num_judged: PositiveInt | None = None
    duration_s: NonNegativeFloat | None = None
    time: float | None = None
    config: dict[str, Any] = {}
    """The task's settings."""
    datasets: dict[str, str] = {}
    """Fingerprints by split."""

    @property
    def method(self) -> str:
        """How a panel or a table names it."""
        return _shots_name(self.shots) if self.shots else self.kind

    @property
    def is_of_checkpoint(self) -> bool:
        """Whether a checkpoint was judged, and not the untrained network."""
        return self.checkpoint != UNTRAINED

    @cached_property
    def measures(self) -> dict[str, Measure]:
        """All numbers by which checkpoints can be compared, by the names of metrics."""
        measures = {ACCURACY: _accuracy(self)}
        if self.has_several_shots:
            measures |= {_shots_name(k): _accuracy(of) for k, of in sorted(self.per_shots.items())}
        if self.loss is not None and math.isfinite(self.loss):
            measures[LOSS] = Measure(self.loss)
        return measures

    @property
    def has_several_shots(self) -> bool:
        return len(self.per_shots) > 1

    @property
    def shown_metrics(self) -> list[str]:
        """Those that say different things: with several shots, one of them is the accuracy."""
        return [m for m in self.measures if m != ACCURACY or not self.has_several_shots]

    def method_of(self, metric: str) -> str:
        """How a panel or a table names what is measured."""
        return self.method if metric == ACCURACY else metric

    @property
    def terms(self) -> tuple[str, Mapping[str, Any], Mapping[str, str]]:
        """What results of two runs must have in common to be compared."""
        return self.kind, self.config, self.datasets


def read_evaluation(storage: Storage, url: str) -> Evaluation:
    """One result; DataError where the file is something else."""
    try:
        return Evaluation.model_validate_json(storage.read(url))
    except ValidationError as error:
        problem = error.errors()[0]
        where = "".join(f"{part}: " for part in problem["loc"])
        raise DataError(
            f"{url} is not an evaluation result ({where}{problem['msg']}): remove it, or "
            "evaluate again"
        ) from None


def read_evaluations(storage: Storage, run_dir: RunDir) -> list[Evaluation]:
    """All results of a run, by task and step; DataError."""
    folder = join(run_dir.url, "evals")
    urls = [
        join(folder, task, name)
        for task in storage.names(folder)
        for name in storage.names(join(folder, task))
        if evaluated_step(name) is not None
    ]
    found = [read_evaluation(storage, url) for url in watch(urls, len(urls), "results")]
    return sorted(found, key=lambda evaluation: (evaluation.task, evaluation.step))


def _accuracy(found: OfShots | Evaluation) -> Measure:
    return Measure(found.accuracy, found.standard_error, found.per_seed)


def _shots_name(shots: int) -> str:
    return f"{shots}-shot"
