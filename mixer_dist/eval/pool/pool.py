"""The pool's loop: look at the runs, see who has ended, start who is to begin, wait."""

import logging
import sys
import time
from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

from mixer_dist.checkpoint.holders import unique_holder
from mixer_dist.config import PoolConfig
from mixer_dist.errors import MixerError, PreemptedError
from mixer_dist.eval.pool.assignments import Assignment, job_prefix
from mixer_dist.eval.pool.backlog import Backlog, interleaved
from mixer_dist.eval.pool.executors import Executor, LocalExecutor
from mixer_dist.eval.pool.run_watch import RunWatch
from mixer_dist.stop_requests import StopRequests

REPORT_S = 60.0  # between two lines about the backlog
TICK_S = 0.5

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Started:
    """A worker of this pool."""

    assignment: Assignment
    holder: str
    began: float = field(default_factory=time.monotonic)


class Pool:
    """Runs are looked after until they are finished, or for ever."""

    def __init__(self, runs: Sequence[RunWatch], executor: Executor, rules: PoolConfig) -> None:
        self._runs = {run.run_dir: run for run in runs}
        self._executor = executor
        self._rules = rules
        self._started: dict[str, Started] = {}
        self._known: set[Assignment] | None = None
        """Results that were there before, or have had their line."""
        self._seconds: dict[Assignment, float] = {}
        self._last_report = float("-inf")

    def run(self, stop_requests: StopRequests, *, once: bool = False) -> None:
        """Work until all is done, with `once` until nothing is left; MixerError names what failed.

        PreemptedError where a signal comes before.
        """
        try:
            backlogs = self.round()  # what is wrong from the beginning ends it
            while not self._is_over(backlogs, once):
                self._wait(stop_requests)
                if stop_requests.count:
                    raise PreemptedError(f"stopped {stop_requests.cause}: the same command goes on")
                try:
                    backlogs = self.round()
                except MixerError as error:  # storage or Slurm may be back at the next look
                    logger.warning("%s", error)
        finally:
            for name, exit_code in self._executor.stop().items():
                self._note_end(self._started.pop(name), exit_code)
        self._conclude(backlogs)

    def round(self) -> list[Backlog]:
        """One look at everything, and what follows from it; what was left to do then."""
        jobs = self._executor.look()
        for name, exit_code in jobs.ended.items():
            self._note_end(self._started.pop(name), exit_code)
        claimed = {each for run in self._runs.values() for each in run.claimed()}
        backlogs = [run.look() for run in self._runs.values()]
        self._tell_results(backlogs)
        self._fill(backlogs, claimed, jobs.under_way)
        self._tell_backlog(backlogs, len(claimed))
        return backlogs

    def _fill(
        self, backlogs: Sequence[Backlog], claimed: Set[Assignment], under_way: Set[str]
    ) -> None:
        """Start workers up to their number; jobs may wait in Slurm without any claim yet."""
        prefixes = tuple(job_prefix(run_dir) for run_dir in self._runs)
        num_free = self._rules.max_workers - sum(name.startswith(prefixes) for name in under_way)
        free = (each for each in interleaved(backlogs)
                if each not in claimed and each.job_name not in under_way)  # fmt: skip
        for assignment in islice(free, max(0, num_free)):
            self._start(assignment)

    def _start(self, assignment: Assignment) -> None:
        run, holder = self._runs[assignment.run_dir], unique_holder()
        command = [
            sys.executable, "-u", "-m", "mixer_dist", "evaluate", *run.arguments,
            "--task", assignment.task, "--checkpoint", assignment.checkpoint, "--claim", holder,
        ]  # fmt: skip
        self._executor.start(assignment.job_name, command)
        self._started[assignment.job_name] = Started(assignment, holder)

    def _note_end(self, worker: Started, exit_code: int | None) -> None:
        assignment = worker.assignment
        self._seconds[assignment] = time.monotonic() - worker.began
        self._runs[assignment.run_dir].note_end(assignment, worker.holder, exit_code)

    def _tell_results(self, backlogs: Sequence[Backlog]) -> None:
        done = {each for backlog in backlogs for each in backlog.done}
        news = done - (done if self._known is None else self._known)
        for assignment in sorted(news, key=str):
            result = self._runs[assignment.run_dir].result(assignment)
            # As a message of its own: the log leaves none of them out.
            logger.info(result_line(assignment, result, self._seconds_of(assignment)))
        self._known = done

    def _seconds_of(self, assignment: Assignment) -> float | None:
        """From a worker's start to its end, or to now; None for one of another pool."""
        worker = self._started.get(assignment.job_name)
        return time.monotonic() - worker.began if worker else self._seconds.pop(assignment, None)

    def _tell_backlog(self, backlogs: Sequence[Backlog], num_claimed: int) -> None:
        """At the first look, then every minute."""
        if time.monotonic() - self._last_report < REPORT_S:
            return
        self._last_report = time.monotonic()
        num_todo, num_done, num_left = (
            sum(len(each) for each in found)
            for found in zip(*((b.todo, b.done, b.given_up) for b in backlogs), strict=True)
        )
        logger.info(
            "backlog: %d to do, %d of them claimed, %d done, %d given up",
            num_todo, num_claimed, num_done, num_left,
        )  # fmt: skip

    def _is_over(self, backlogs: Sequence[Backlog], once: bool) -> bool:
        if once:
            return not any(backlog.todo for backlog in backlogs)
        return self._rules.until == "finished" and all(each.is_finished for each in backlogs)

    def _wait(self, stop_requests: StopRequests) -> None:
        """Until it is time for another look, or there is a reason for one."""
        deadline = time.monotonic() + self._rules.poll_s
        while time.monotonic() < deadline and not stop_requests.count:
            if self._executor.has_news():
                return
            time.sleep(TICK_S)

    def _conclude(self, backlogs: Sequence[Backlog]) -> None:
        """MixerError names what was given up."""
        failed = [each for backlog in backlogs for each in backlog.given_up]
        if failed:
            reasons = (f"{each} ({self._runs[each.run_dir].reason(each)})" for each in failed)
            folder = failed[0].run_dir.failures(failed[0].task)
            raise MixerError(
                f"{len(failed)} evaluations were given up: {'; '.join(reasons)}; to have them "
                f"tried again, mend the cause and remove {folder} and its like"
            )
        logger.info("nothing is left to do: %d results", sum(len(each.done) for each in backlogs))


def executor_for(rules: PoolConfig) -> Executor:
    """Where the configuration has workers run; RefusedError where that is not possible here."""
    if rules.executor == "local":
        return LocalExecutor(rules)
    from mixer_dist.eval.pool.slurm_jobs import SlurmExecutor

    return SlurmExecutor(rules)


def result_line(assignment: Assignment, result: Mapping[str, Any], seconds: float | None) -> str:
    """Step, task, accuracy and seconds, as far as they are known."""
    accuracy = result.get("accuracy")
    shown = f" {accuracy:.2%}" if isinstance(accuracy, float) else " done"
    return f"{assignment}:{shown}" + ("" if seconds is None else f", {seconds:.0f} s")
