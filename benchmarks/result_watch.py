"""The results that a pool writes for a run, looked at again and again: when, and how often each."""

import json
import statistics
from collections import defaultdict
from collections.abc import Iterable

from mixer_dist.errors import MissingError
from mixer_dist.metrics import read_events
from mixer_dist.run_dir import RunDir, attempt_numbers
from mixer_dist.storage import Storage

COLUMNS = (
    "task", "expected", "found", "duplicated", "missing", "before training ended",
    "commit to result, s: median", "max",
)  # fmt: skip

Key = tuple[str, int]
"""Task and step."""


class ResultWatch:
    """All results that are expected, and the moments at which each was written."""

    def __init__(
        self, storage: Storage, run_dir: RunDir, tasks: Iterable[str], steps: Iterable[int]
    ) -> None:
        self._storage = storage
        self._run_dir = run_dir
        self._tasks = list(tasks)
        self.expected: set[Key] = {(task, step) for step in steps for task in self._tasks}
        self._written: dict[Key, set[float]] = defaultdict(set)

    def look(self) -> int:
        """Take in what is there by now; how many results of those expected there are."""
        for key in self.expected:
            try:
                result = json.loads(self._storage.read(self._run_dir.evaluation(*key)))
            except MissingError:
                continue
            self._written[key].add(result["time"])
        return len(self._written)

    @property
    def missing(self) -> set[Key]:
        return self.expected - self._written.keys()

    @property
    def duplicated(self) -> set[Key]:
        return {key for key, times in self._written.items() if len(times) > 1}

    @property
    def is_wrong(self) -> bool:
        return bool(self.missing or self.duplicated)

    def print_tables(self) -> None:
        """Counts by task, and the seconds from a checkpoint's commit to its results."""
        commits = self._commits()
        end = max(commits.values())
        print(f"| {' | '.join(COLUMNS)} |\n|{'---|' * len(COLUMNS)}")
        for task in [*self._tasks, "all"]:
            keys = {key for key in self.expected if task in (key[0], "all")}
            first = {key: min(self._written[key]) for key in keys & self._written.keys()}
            waits = [moment - commits[key[1]] for key, moment in first.items()] or [float("nan")]
            counts = (len(keys), len(first), len(keys & self.duplicated), len(keys & self.missing),
                      sum(moment < end for moment in first.values()))  # fmt: skip
            cells = [*map(str, counts), f"{statistics.median(waits):.0f}", f"{max(waits):.0f}"]
            print(f"| {task} | {' | '.join(cells)} |")

    def _commits(self) -> dict[int, float]:
        """The moment of each checkpoint's commit, by its step."""
        attempts = attempt_numbers(self._storage, self._run_dir)
        events = [e for n in attempts for e in read_events(self._storage, self._run_dir, n)]
        return {event["step"]: event["time"] for event in events if event["event"] == "save"}
