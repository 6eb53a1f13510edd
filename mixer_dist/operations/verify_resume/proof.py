"""One run left alone, one that is interrupted again and again, and what they have in common."""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import cycle
from pathlib import Path
from statistics import median

from mixer_dist.errors import PreemptedError, RefusedError
from mixer_dist.metrics import Line, read_metrics
from mixer_dist.operations.verify_resume.comparison import (
    Steps,
    Values,
    compare_steps,
    compare_values,
)
from mixer_dist.operations.verify_resume.incidents import Incident
from mixer_dist.operations.verify_resume.plan import Plan, Start, trial_config
from mixer_dist.operations.verify_resume.trainer import Trainer
from mixer_dist.progress import say
from mixer_dist.run_dir import RunDir, attempt_numbers, read_attempt
from mixer_dist.sections import dump_config
from mixer_dist.storage import Storage, join

FP32_TOLERANCE = 1e-5
BF16_TIMES = 2  # of how far uninterrupted runs are apart, for losses
VALUES_TIMES = 10  # the same for parameters and moments; lost moments are thousands of times as far
ENDED_WELL = (0, PreemptedError.exit_code)  # the second where total_steps are more


@dataclass(frozen=True)
class Tolerance:
    """How far two runs may be apart; 0 where they have to be the same to the last bit."""

    losses: float
    values: float


@dataclass(frozen=True)
class Proof:
    """What came of it."""

    steps: Steps
    values: Values
    tolerance: Tolerance
    hits: Sequence[int]
    """After which step each incident came."""
    num_repeated_steps: int
    """Steps that were lost before they were saved."""
    lines: Sequence[Line]
    """The metrics of the run left alone."""
    interrupted_lines: Sequence[Line]

    @property
    def holds(self) -> bool:
        """Whether the two runs are the same."""
        return (
            self.steps.num_same_data == self.steps.num_steps
            and self.steps.loss_distance <= self.tolerance.losses
            and (self._is_bitwise or 0 < self.values.distance <= self.tolerance.values)
        )

    @property
    def _is_bitwise(self) -> bool:
        return self.values.num_same == self.values.num_values


class Trials:
    """The runs of a plan."""

    def __init__(self, plan: Plan) -> None:
        """RefusedError where the place of the results, or of a run, holds something."""
        self._plan = plan
        self._storage = Storage(plan.config.storage)
        if plan.out.exists() and any(plan.out.iterdir()):
            raise RefusedError(f"{plan.out} is not empty: remove it, or give another --out")
        if names := self._storage.names(plan.run_dirs):
            raise RefusedError(
                f"{plan.run_dirs} holds {names[0]}: remove it, or give another --run-dirs"
            )
        plan.out.mkdir(parents=True, exist_ok=True)

    def prove(self) -> Proof:
        """Train, interrupt, compare."""
        whole = self._train("whole", self._plan.starts[0])
        lines = read_metrics(self._storage, whole)
        interrupted, hits = self._interrupt("interrupted", _step_s(lines))
        steps, values = self._compare(whole, interrupted)
        return Proof(
            steps=steps,
            values=values,
            tolerance=self._tolerance(whole),
            hits=hits,
            num_repeated_steps=self._num_repeated_steps(interrupted, hits),
            lines=lines,
            interrupted_lines=read_metrics(self._storage, interrupted),
        )

    def _compare(self, run: RunDir, other: RunDir) -> tuple[Steps, Values]:
        lines, others = (read_metrics(self._storage, each) for each in (run, other))
        num_steps = self._plan.num_steps
        values = compare_values(self._storage, run, other, num_steps)
        return compare_steps(lines, others, num_steps), values

    def _train(self, name: str, start: Start) -> RunDir:
        """A run that nothing happens to."""
        say(f"{name}: {self._plan.num_steps} steps under {start}")
        with self._trainer(name, start) as trainer:
            trainer.check(ENDED_WELL)
        return self._run_dir(name)

    def _interrupt(self, name: str, step_s: float) -> tuple[RunDir, list[int]]:
        """A run to which every incident happens, then nothing more; after which steps they hit."""
        starts, hits = cycle(self._plan.starts), []
        for incident, start in zip(self._plan.incidents, starts, strict=False):
            say(f"{name}: {incident}, under {start}")
            with self._trainer(name, start) as trainer:
                strike(trainer, incident, start.num_ranks, step_s)
                hits.append(trainer.last_step)
        return self._train(name, next(starts)), hits

    def _tolerance(self, whole: RunDir) -> Tolerance:
        """By how far uninterrupted runs are apart: other starts sum in another order."""
        others = dict.fromkeys(self._plan.starts[1:])
        others.pop(self._plan.starts[0], None)
        if not others:
            return Tolerance(0.0, 0.0)
        runs = [self._train(f"whole-{start.engine}-{start.num_ranks}", start) for start in others]
        found = [self._compare(whole, run) for run in runs]
        losses = BF16_TIMES * max(steps.loss_distance for steps, _ in found)
        if self._plan.config.engine.precision == "fp32":
            losses = FP32_TOLERANCE
        return Tolerance(losses, VALUES_TIMES * max(values.distance for _, values in found))

    def _num_repeated_steps(self, run: RunDir, hits: Sequence[int]) -> int:
        """Steps that were lost before they were saved."""
        numbers = attempt_numbers(self._storage, run)[1:]
        resumed = [read_attempt(self._storage, run, number).resumed_from for number in numbers]
        return sum(max(0, hit - step) for hit, step in zip(hits, resumed, strict=True))

    def _trainer(self, name: str, start: Start) -> Trainer:
        plan, file = self._plan, self._plan.out / f"{name}.yaml"
        config = trial_config(plan.config, self._run_dir(name).url, start.engine, plan.num_steps)
        file.write_text(dump_config(config))
        arguments = [str(file), "--until", str(plan.num_steps)]
        return Trainer(start, arguments, self._log(name))

    def _log(self, name: str) -> Path:
        return self._plan.out / f"{name}.log"

    def _run_dir(self, name: str) -> RunDir:
        return RunDir(join(self._plan.run_dirs, name))


def strike(trainer: Trainer, incident: Incident, num_ranks: int, step_s: float) -> None:
    """Wait for an incident's moment, have it happen, and wait for the end of all ranks."""
    next((step for step in trainer.steps() if step >= incident.after_step), None)
    time.sleep(incident.delay * step_s)
    match incident.kind:
        case "SIGKILL of all ranks":
            trainer.kill()
        case "SIGKILL of one rank":
            trainer.kill_rank(int(incident.rank * num_ranks))
            trainer.wait()
        case "SIGUSR2":
            trainer.preempt()
            trainer.check(ENDED_WELL)


def _step_s(lines: Sequence[Line]) -> float:
    """How long a step takes."""
    return float(median(line["global_batch_size"] / line["images_per_s"] for line in lines))
