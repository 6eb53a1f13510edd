"""What is left to do on a run, in which order: decided from what lies in its directory."""

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain, zip_longest

from mixer_dist.config import PoolConfig
from mixer_dist.eval.pool.assignments import Assignment
from mixer_dist.eval.pool.failures import Failures
from mixer_dist.run_dir import RunDir


@dataclass(frozen=True)
class Found:
    """What a look at a run directory has found."""

    steps: Collection[int]
    """That are committed or have a result."""
    results: Mapping[str, Collection[int]]
    """Steps with a result, by task."""
    failures: Mapping[str, Failures]
    """By task; both have every task."""
    last_step: int | None
    """The run's total_steps; None before its first start."""


@dataclass(frozen=True)
class Backlog:
    """What is to be done, first things first, and what is not."""

    todo: tuple[Assignment, ...]
    given_up: tuple[Assignment, ...]
    done: frozenset[Assignment]
    is_finished: bool
    """Whether the run's last step is there and nothing is left to do."""


def is_wanted(step: int, last_step: int | None, rules: PoolConfig) -> bool:
    """Whether a checkpoint is among those to be evaluated."""
    return rules.every_steps is None or step % rules.every_steps == 0 or step == last_step


def backlog(run_dir: RunDir, found: Found, rules: PoolConfig) -> Backlog:
    """Steps in the order of the rules, and what failed before after what did not."""
    steps = [step for step in found.steps if is_wanted(step, found.last_step, rules)]
    steps.sort(reverse=rules.order == "newest")
    wanted = [Assignment(run_dir, task, step) for step in steps for task in found.results]
    done = {each for each in wanted if each.step in found.results[each.task]}
    open_ = [each for each in wanted if each not in done]
    given_up = tuple(each for each in open_ if _is_hopeless(each, found, rules))
    todo = [each for each in open_ if each not in given_up]
    todo.sort(key=lambda each: _num_failures(each, found))  # stable
    is_finished = not todo and found.last_step in found.steps
    return Backlog(tuple(todo), given_up, frozenset(done), is_finished)


def interleaved(backlogs: Sequence[Backlog]) -> Iterator[Assignment]:
    """What is to be done on several runs, each run's next in turn."""
    turns = zip_longest(*(each.todo for each in backlogs))
    return (assignment for assignment in chain.from_iterable(turns) if assignment)


def _is_hopeless(assignment: Assignment, found: Found, rules: PoolConfig) -> bool:
    counts = found.failures[assignment.task]
    num_refused, num_lost = (counts[assignment.step, kind] for kind in ("refused", "lost"))
    is_failing = _num_failures(assignment, found) >= rules.max_failures
    return bool(num_refused) or is_failing or num_lost >= rules.max_losses


def _num_failures(assignment: Assignment, found: Found) -> int:
    return found.failures[assignment.task][assignment.step, "failed"]
