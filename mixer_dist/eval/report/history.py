"""All that a run directory says about its run: attempts, merged metrics, evaluation results."""

import logging
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

from mixer_dist.config import RunConfig
from mixer_dist.errors import MissingError
from mixer_dist.eval.report.effort import Efforts
from mixer_dist.eval.report.evaluation import Evaluation, read_evaluations
from mixer_dist.goodput import AttemptRecord, Goodput, goodput
from mixer_dist.metrics import Line, attempt_lines, living_lines, read_events
from mixer_dist.run_dir import Attempt, RunDir, attempt_numbers, read_attempt, run_id
from mixer_dist.storage import Storage

logger = logging.getLogger(__name__)


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
    def name(self) -> str:
        return self.run_dir.url.rstrip("/").rpartition("/")[2]

    @cached_property
    def goodput(self) -> Goodput:
        """Where the time up to the last record went."""
        return goodput([start.record for start in self.starts])

    @cached_property
    def efforts(self) -> Efforts:
        """What it took to come to each step."""
        world_sizes = {start.attempt.attempt: start.world_size for start in self.starts}
        return Efforts(self.lines, self.goodput.spans, world_sizes)

    @property
    def config(self) -> RunConfig | None:
        """Of the newest attempt; None where there are evaluations only."""
        return self.starts[-1].attempt.config if self.starts else None

    @property
    def last_step(self) -> int:
        return int(self.lines[-1]["step"]) if self.lines else 0

    @property
    def total_steps(self) -> int | None:
        return self.config.total_steps if self.config else None

    @property
    def last_loss(self) -> float | None:
        """The last finite one."""
        finite = (line["loss"] for line in reversed(self.lines) if line["loss"] is not None)
        return next(finite, None)


def read_history(storage: Storage, run_dir: RunDir) -> History:
    """Read a run directory; MissingError where there is neither an attempt nor an evaluation."""
    numbers = attempt_numbers(storage, run_dir)
    evaluations = [*own_evaluations(storage, run_dir)]
    if not numbers and not evaluations:
        raise MissingError(
            f"nothing to report in {run_dir.url}: expected attempts/0001.yaml and metrics/ of "
            "mixer-dist pretrain, or evals/ of mixer-dist evaluate; is this the run_dir?"
        )
    starts = [_start(storage, run_dir, number) for number in numbers]
    lines = living_lines((s.record.resumed_from, s.record.lines) for s in starts)
    return History(run_dir, tuple(starts), tuple(lines), tuple(evaluations))


def own_evaluations(storage: Storage, run_dir: RunDir) -> Iterator[Evaluation]:
    """The results that are this run's; others that lie here are named and left out."""
    ours = run_id(storage, run_dir)
    for found in read_evaluations(storage, run_dir):
        if None in (found.run_id, ours) or found.run_id == ours:
            yield found
        else:
            url = run_dir.evaluation(found.task, found.step)
            logger.warning("%s is the result of another run: left out", url)


def _start(storage: Storage, run_dir: RunDir, number: int) -> Start:
    attempt = read_attempt(storage, run_dir, number)
    events = read_events(storage, run_dir, number, rank=0)
    lines = attempt_lines(storage, run_dir, number)
    return Start(attempt, AttemptRecord(number, attempt.resumed_from, events, lines))
