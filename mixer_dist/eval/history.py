"""All that a run directory says about its run: attempts, merged metrics, evaluation results."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated

from pydantic import BaseModel, Field, ValidationError

from mixer_dist.errors import DataError, MissingError
from mixer_dist.goodput import AttemptRecord, Goodput, goodput
from mixer_dist.metrics import Line, attempt_lines, living_lines, read_events
from mixer_dist.run_dir import (
    Attempt,
    RunDir,
    attempt_numbers,
    evaluated_step,
    read_attempt,
)
from mixer_dist.sections import Fraction, NonNegativeInt, PositiveInt
from mixer_dist.storage import Storage, join


class Evaluation(BaseModel):
    """What a report shows of one evaluation result; other keys are left alone."""

    task: str
    step: NonNegativeInt
    kind: str
    shots: PositiveInt | None = None
    """Of a few-shot task."""
    accuracy: Fraction
    """Mean over seeds."""
    per_seed: Annotated[tuple[Fraction, ...], Field(min_length=1)]
    num_classes: PositiveInt

    @property
    def method(self) -> str:
        """How a panel or a table names it."""
        return f"{self.shots}-shot" if self.shots else self.kind


@dataclass(frozen=True)
class Start:
    """One attempt, and what it has left."""

    attempt: Attempt
    record: AttemptRecord

    @property
    def world_size(self) -> int | None:
        """As rank 0 wrote when training began; None where it did not come so far."""
        sizes = (event.get("world_size") for event in self.record.events)
        return next((int(size) for size in sizes if size), None)


@dataclass(frozen=True)
class History:
    """A run from its first attempt to its last step."""

    run_dir: RunDir
    starts: tuple[Start, ...]
    lines: tuple[Line, ...]
    """Merged metrics, a line a step."""
    evaluations: tuple[Evaluation, ...]
    """By task and step."""

    @property
    def goodput(self) -> Goodput:
        """Where the time up to the last record went."""
        return goodput([start.record for start in self.starts])

    @property
    def last_step(self) -> int:
        return int(self.lines[-1]["step"]) if self.lines else 0

    @property
    def total_steps(self) -> int | None:
        return self.starts[-1].attempt.config.total_steps if self.starts else None

    @property
    def last_loss(self) -> float | None:
        """The last finite one."""
        finite = (line["loss"] for line in reversed(self.lines) if line["loss"] is not None)
        return next(finite, None)


def read_history(storage: Storage, run_dir: RunDir) -> History:
    """Read a run directory; MissingError where there is neither an attempt nor an evaluation."""
    numbers = attempt_numbers(storage, run_dir)
    evaluations = sorted(_evaluations(storage, run_dir), key=lambda e: (e.task, e.step))
    if not numbers and not evaluations:
        raise MissingError(
            f"nothing to report in {run_dir.url}: expected attempts/0001.yaml and metrics/ of "
            "mixer-dist pretrain, or evals/ of mixer-dist evaluate; is this the run_dir?"
        )
    starts = [_start(storage, run_dir, number) for number in numbers]
    lines = living_lines((s.record.resumed_from, s.record.lines) for s in starts)
    return History(run_dir, tuple(starts), tuple(lines), tuple(evaluations))


def _start(storage: Storage, run_dir: RunDir, number: int) -> Start:
    attempt = read_attempt(storage, run_dir, number)
    events = read_events(storage, run_dir, number, rank=0)
    lines = attempt_lines(storage, run_dir, number)
    return Start(attempt, AttemptRecord(number, attempt.resumed_from, events, lines))


def _evaluations(storage: Storage, run_dir: RunDir) -> Iterator[Evaluation]:
    folder = join(run_dir.url, "evals")
    for task in storage.names(folder):
        for name in storage.names(join(folder, task)):
            if evaluated_step(name) is not None:
                yield _evaluation(storage, join(folder, task, name))


def _evaluation(storage: Storage, url: str) -> Evaluation:
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
