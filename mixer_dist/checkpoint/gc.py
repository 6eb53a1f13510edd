"""Collecting a run's old checkpoints: once and for all from a shell, or after each commit."""

import logging
from collections.abc import Callable, Iterator

from mixer_dist.checkpoint.catalog import known_steps
from mixer_dist.checkpoint.collector import Collector
from mixer_dist.checkpoint.gc_plan import Outcome, Plan
from mixer_dist.checkpoint.leftovers import find_leftovers, remove_leftovers
from mixer_dist.checkpoint.retention import UNPROVEN, may_pass
from mixer_dist.config import CheckpointConfig
from mixer_dist.errors import MissingError, MixerError
from mixer_dist.run_dir import RunDir, attempt_numbers, read_attempt
from mixer_dist.storage import Storage

logger = logging.getLogger(__name__)

Wait = Callable[[float, str], None]
"""Waits so many seconds, and says for what."""


def collect(collector: Collector, wait: Wait, *, for_leases: bool = False) -> tuple[Plan, Outcome]:
    """Pass after pass until nothing more is due; the last plan, and what all passes did.

    A lease that is seen to be renewed is never waited for.
    """
    done = Outcome()
    while True:
        plan = collector.plan()
        outcome = collector.carry_out(plan)
        done.add(outcome)
        lapses_in_s = [*_lapses_in_s(plan)] if for_leases else []
        if outcome.due_in_s:
            wait(max(outcome.due_in_s), "until readers had time to claim what is to go")
        elif lapses_in_s:
            wait(max(lapses_in_s), "for leases that may have lapsed")
        else:
            return plan, done


def rules_of(storage: Storage, run_dir: RunDir) -> CheckpointConfig:
    """The rules that a run's newest attempt had; MissingError where there is no run."""
    numbers = attempt_numbers(storage, run_dir)
    if not numbers and not known_steps(storage, run_dir):
        raise MissingError(f"no run at {run_dir.url}: it has neither attempts/ nor checkpoints/")
    if not numbers:  # imported checkpoints only
        return CheckpointConfig()
    return read_attempt(storage, run_dir, numbers[-1]).config.checkpoint


class Retention:
    """What the trainer calls after each commit, in one thread; it never fails the training."""

    def __init__(self, storage: Storage, run_dir: RunDir, rules: CheckpointConfig) -> None:
        self._storage = storage
        self._run_dir = run_dir
        self._keeps_all = rules.keep_last is None
        self._collector = Collector(storage, run_dir, rules)
        self._is_first = True

    def retain(self) -> None:
        """One pass: announce what is due, remove what was announced more than a grace ago."""
        try:
            if self._is_first:
                remove_leftovers(self._storage, find_leftovers(self._storage, self._run_dir))
                self._is_first = False
            if not self._keeps_all:
                self._collector.carry_out(self._collector.plan())
        except MixerError as error:
            logger.warning("old checkpoints stay until the next save: %s", error)


def _lapses_in_s(plan: Plan) -> Iterator[float]:
    """When the leases lapse, unless renewed, that alone keep a checkpoint."""
    for step, holders in plan.holders.items():
        reasons = plan.reasons.get(step, (UNPROVEN,))
        if UNPROVEN not in reasons and may_pass(reasons):
            yield from (h.lapses_in_s for h in holders if h.lapses_in_s is not None)
