"""A run directory as a pool sees it again and again: what is committed, judged, claimed."""

import json
import logging
import signal
import time
from collections.abc import Callable, Sequence

from mixer_dist.checkpoint.catalog import known_steps
from mixer_dist.checkpoint.holders import HolderWatch, lease_file
from mixer_dist.checkpoint.layout import MANIFEST_NAME, TOMBSTONE_NAME
from mixer_dist.config import PoolConfig, Task
from mixer_dist.errors import MissingError, PreemptedError, RefusedError
from mixer_dist.eval.comparable import difference, settings_of
from mixer_dist.eval.pool.assignments import Assignment
from mixer_dist.eval.pool.backlog import Backlog, Found, backlog, is_wanted
from mixer_dist.eval.pool.failures import (
    Kind,
    has_failed,
    last_reason,
    read_failures,
    record_failure,
)
from mixer_dist.run_dir import RunDir, attempt_numbers, read_attempt, run_id, step_of
from mixer_dist.storage import Storage, join

ASKED_TO_STOP = (0, PreemptedError.exit_code, -signal.SIGTERM)

logger = logging.getLogger(__name__)


class RunWatch:
    """One run, and the tasks that are to judge each of its checkpoints."""

    def __init__(
        self,
        storage: Storage,
        run_dir: RunDir,
        tasks: Sequence[Task],
        rules: PoolConfig,
        arguments: Sequence[str] = (),
        now: Callable[[], float] = time.monotonic,
    ) -> None:
        """`arguments` are CONFIG and its overrides, as `mixer-dist evaluate` takes them."""
        self.run_dir = run_dir
        self.arguments = tuple(arguments)
        self._storage = storage
        self._tasks = {task.name: task for task in tasks}
        self._rules = rules
        self._holders = HolderWatch(storage, now)
        self._last_steps: dict[int, int] = {}
        self._checked: set[Assignment] = set()

    def look(self) -> Backlog:
        """What is left to do now, claimed or not; RefusedError where others' results lie here."""
        results = {task: self._steps_in(self.run_dir.evaluations(task)) for task in self._tasks}
        for task, steps in results.items():
            self._check_is_ours(Assignment(self.run_dir, task, max(steps, default=-1)))
        failures = {task: read_failures(self._storage, self.run_dir, task) for task in self._tasks}
        judged = set[int]().union(*results.values())
        whole = judged.intersection(*results.values())
        last_step = self._last_step()
        open_ = [s for s in known_steps(self._storage, self.run_dir) if s not in whole]
        wanted = [step for step in open_ if is_wanted(step, last_step, self._rules)]
        steps = whole.union(step for step in wanted if self._is_committed(step))
        return backlog(self.run_dir, Found(steps, results, failures, last_step), self._rules)

    def description(self) -> list[str]:
        """What is left to do, line by line."""
        found = self.look()
        counts = f"{len(found.todo)} to do, {len(found.done)} done, {len(found.given_up)} given up"
        lines = [f"  {each}" for each in found.todo]
        return [f"{self.run_dir.url}: {counts}", *lines, *map(self._given_up_line, found.given_up)]

    def claimed(self) -> dict[Assignment, str]:
        """Who works on what; claims that have lapsed are taken away."""
        found = {}
        for assignment in self._with_claims():
            holders, lapsed = self._holders.look(assignment.claims)
            for name in lapsed:
                self.take_away(assignment, name, "it gave no sign of life any more")
            if holders:
                found[assignment] = holders[0].name
            elif self._storage.exists(assignment.result):
                self._storage.delete_folder(assignment.claims)  # not to be looked at for ever
        return found

    def note_end(self, assignment: Assignment, holder: str, exit_code: int | None) -> None:
        """Take in the end of a worker, which may have had no time to write anything down."""
        if self._storage.exists(lease_file(assignment.claims, holder)):
            self.take_away(assignment, holder, f"it ended with {_in_words(exit_code)}")
        elif exit_code not in ASKED_TO_STOP and not self._storage.exists(assignment.result):
            kind: Kind = "failed" if exit_code and exit_code > 0 else "lost"
            if kind == "lost" or not has_failed(self._storage, assignment, holder):
                reason = f"it ended with {_in_words(exit_code)}, see {self._rules.log_dir}"
                record_failure(self._storage, assignment, kind, holder, reason)
            logger.warning("%s: %s", assignment, self.reason(assignment))

    def take_away(self, assignment: Assignment, holder: str, reason: str) -> None:
        """Remove the claim of a worker that has vanished, and count the loss first."""
        if not self._storage.exists(assignment.result):  # else it was killed just after it
            logger.warning("%s: worker %s was lost, %s", assignment, holder, reason)
            record_failure(self._storage, assignment, "lost", holder, reason)
        self._storage.delete(lease_file(assignment.claims, holder))

    def reason(self, assignment: Assignment) -> str:
        """Why its last worker has failed."""
        return last_reason(self._storage, assignment)

    def result(self, assignment: Assignment) -> dict[str, object]:
        """What an evaluation has found."""
        found: dict[str, object] = json.loads(self._storage.read(assignment.result))
        return found

    def _check_is_ours(self, newest: Assignment) -> None:
        """Of each task the newest result: what cannot be compared would be taken for done."""
        if newest.step < 0 or newest in self._checked:
            return
        ours = {"run_id": run_id(self._storage, self.run_dir)}
        ours |= settings_of(self._tasks[newest.task])
        if meaning := difference(self.result(newest), ours):
            folder = self.run_dir.evaluations(newest.task)
            raise RefusedError(
                f"{newest.result} {meaning}: give the task another name, or remove {folder}"
            )
        self._checked.add(newest)

    def _given_up_line(self, assignment: Assignment) -> str:
        return f"  {assignment}: given up ({self.reason(assignment)})"

    def _with_claims(self) -> list[Assignment]:
        listed = [(task, step_of(name)) for task in self._tasks
                  for name in self._storage.names(self.run_dir.claims(task))]  # fmt: skip
        return [Assignment(self.run_dir, task, step) for task, step in listed if step is not None]

    def _steps_in(self, folder: str) -> set[int]:
        """Steps with a result."""
        names = [name for name in self._storage.names(folder) if name.endswith(".json")]
        steps = (step_of(name.removesuffix(".json")) for name in names)
        return {step for step in steps if step is not None}

    def _is_committed(self, step: int) -> bool:
        """Without a look at the manifest, which may be large."""
        url = self.run_dir.checkpoint(step)
        has_manifest, has_tombstone = (
            self._storage.exists(join(url, name)) for name in (MANIFEST_NAME, TOMBSTONE_NAME)
        )
        return has_manifest and not has_tombstone

    def _last_step(self) -> int | None:
        """Where the newest attempt ends; None before the first."""
        numbers = attempt_numbers(self._storage, self.run_dir)
        if not numbers:
            return None
        if numbers[-1] not in self._last_steps:
            try:
                attempt = read_attempt(self._storage, self.run_dir, numbers[-1])
            except MissingError:
                return None
            self._last_steps = {numbers[-1]: attempt.config.total_steps}
        return self._last_steps[numbers[-1]]


def _in_words(exit_code: int | None) -> str:
    return "an unknown exit code" if exit_code is None else f"exit code {exit_code}"
