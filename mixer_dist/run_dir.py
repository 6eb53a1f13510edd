"""The run directory: where everything of a run lies, and the attempts that wrote it.

Every start of a run is an attempt with the next number. Its file holds the resolved configuration,
a random id, and the step it resumed from.
"""

import re
from dataclasses import dataclass
from typing import Any

from mixer_dist.config import RunConfig
from mixer_dist.config.evaluation import FEATURES
from mixer_dist.errors import MissingError, SupersededError
from mixer_dist.sections import Section, parse
from mixer_dist.storage import Storage, join
from mixer_dist.yaml_tree import dump_yaml, load_yaml

_ATTEMPT_FILE = re.compile(r"^(\d{4,})\.yaml$")
_STEP_NAME = re.compile(r"^step-(\d{8,})$")


class Change(Section):
    """A value that was changed between two starts of a run."""

    step: int
    """Steps that were done with the old value."""
    key: str
    old: Any
    new: Any


class SkippedSteps(Section):
    """Steps whose data were left out by hand."""

    first: int
    last: int
    """As numbered before they were left out."""
    window: tuple[int, int]
    """The global positions [start, stop) that they would have read."""


class Attempt(Section):
    """One start of a run."""

    attempt: int
    attempt_id: str
    resumed_from: int
    """Steps that were done when it started."""
    position: int = 0
    """The first global position that it reads."""
    skipped: tuple[tuple[int, int], ...] = ()
    """Windows [start, stop) of global positions that it never reads."""
    skipped_steps: tuple[SkippedSteps, ...] = ()
    """The steps that they came from."""
    changes: tuple[Change, ...] = ()
    """All that led from the run's first configuration to this one."""
    dataset: str
    """Fingerprint of the training data."""
    init_from_hash: str | None = None
    """SHA-256 of the file, or the checkpoint's manifest, whose weights the run began with."""
    config: RunConfig
    """With every default resolved."""


@dataclass(frozen=True)
class RunDir:
    """URLs in a run's directory."""

    url: str

    @property
    def attempts(self) -> str:
        return join(self.url, "attempts")

    @property
    def checkpoints(self) -> str:
        return join(self.url, "checkpoints")

    @property
    def commit_hint(self) -> str:
        return join(self.checkpoints, "committed.json")

    @property
    def leases(self) -> str:
        return join(self.url, "leases")

    @property
    def pins(self) -> str:
        return join(self.url, "pins")

    @property
    def metrics(self) -> str:
        return join(self.url, "metrics")

    @property
    def events(self) -> str:
        return join(self.url, "events")

    @property
    def report(self) -> str:
        return join(self.url, "report")

    @property
    def tensorboard(self) -> str:
        return join(self.url, "tensorboard")

    def code_archive(self, name: str) -> str:
        return join(self.url, "code", f"{name}.tar")

    def attempt_file(self, attempt: int) -> str:
        return join(self.attempts, f"{attempt:04d}.yaml")

    def metrics_file(self, attempt: int, part: int) -> str:
        return join(self.metrics, f"attempt-{attempt:04d}-{part:03d}.jsonl")

    def events_folder(self, attempt: int) -> str:
        return join(self.events, f"attempt-{attempt:04d}")

    def hangs_folder(self, attempt: int) -> str:
        return join(self.url, "hangs", f"attempt-{attempt:04d}")

    def events_file(self, attempt: int, rank: int, part: int = 0) -> str:
        suffix = f"-{part:03d}" if part else ""
        return join(self.events_folder(attempt), f"rank-{rank:05d}{suffix}.jsonl")

    def checkpoint(self, step: int) -> str:
        return join(self.checkpoints, step_name(step))

    def leases_of(self, step: int) -> str:
        return join(self.leases, step_name(step))

    def leases_of_features(self, name: str) -> str:
        return join(self.leases, f"{FEATURES}-{name}")

    def pin(self, step: int) -> str:
        return join(self.pins, step_name(step))

    @property
    def features(self) -> str:
        return self.evaluations(FEATURES)

    def evaluations(self, task: str) -> str:
        return join(self.url, "evals", task)

    def evaluation(self, task: str, step: int) -> str:
        return join(self.evaluations(task), f"{step_name(step)}.json")

    def claims(self, task: str) -> str:
        return join(self.evaluations(task), "claims")

    def claims_of(self, task: str, step: int) -> str:
        return join(self.claims(task), step_name(step))

    def failures(self, task: str) -> str:
        return join(self.evaluations(task), "failures")


def step_name(step: int) -> str:
    """What belongs to a step is called so; text order is numeric order."""
    return f"step-{step:08d}"


def step_of(name: str) -> int | None:
    """The step in such a name, None for other names."""
    match = _STEP_NAME.match(name)
    return int(match[1]) if match else None


def evaluated_step(name: str) -> int | None:
    """The step whose result a file in evals/<task>/ is, None for other files."""
    return step_of(name.removesuffix(".json")) if name.endswith(".json") else None


def attempt_numbers(storage: Storage, run_dir: RunDir) -> list[int]:
    """The numbers of all attempts so far, ascending."""
    matches = (_ATTEMPT_FILE.match(name) for name in storage.names(run_dir.attempts))
    return sorted(int(match[1]) for match in matches if match)


def read_attempt(storage: Storage, run_dir: RunDir, number: int) -> Attempt:
    """One attempt's file; MissingError, ConfigError where it is not readable."""
    url = run_dir.attempt_file(number)
    try:
        return parse(Attempt, load_yaml(storage.read(url).decode(), url), url)
    except MissingError:
        raise MissingError(f"{url} is missing: restore the file") from None


def run_id(storage: Storage, run_dir: RunDir) -> str | None:
    """What tells a run from another in the same place; None before its first start."""
    first = attempt_numbers(storage, run_dir)[:1]
    return read_attempt(storage, run_dir, first[0]).attempt_id if first else None


def write_attempt(storage: Storage, run_dir: RunDir, attempt: Attempt) -> None:
    """Record a start."""
    tree: dict[str, Any] = attempt.model_dump(mode="json")
    text = dump_yaml(tree)
    storage.write(run_dir.attempt_file(attempt.attempt), text.encode())


def check_not_superseded(storage: Storage, run_dir: RunDir, attempt: Attempt) -> None:
    """SupersededError where another trainer has started on this run since."""
    newest = read_attempt(storage, run_dir, _last_number(storage, run_dir))
    if newest.attempt_id != attempt.attempt_id:
        raise SupersededError(
            f"attempt {attempt.attempt} is superseded by attempt {newest.attempt} on "
            f"{run_dir.url}: this trainer stops and writes no checkpoint"
        )


def _last_number(storage: Storage, run_dir: RunDir) -> int:
    """The highest attempt, also where a bucket's listing lags behind its files."""
    numbers = attempt_numbers(storage, run_dir)
    if not numbers:
        raise MissingError(
            f"{run_dir.attempts} holds no attempt any more: restore the run directory"
        )
    number = numbers[-1]
    while storage.exists(run_dir.attempt_file(number + 1)):
        number += 1
    return number
