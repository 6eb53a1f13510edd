"""Turns: of all workers that need the same features, one computes them and the others wait.

Who finds nobody at it puts a lease of its own beside all others and looks again: if it is not alone
it withdraws and waits, so that of two at the same moment the second to look sees both. Where the
one that computes was lost its lease lapses, and the next has its turn.
"""

import logging
import random
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

from mixer_dist import distributed
from mixer_dist.checkpoint.holders import HolderWatch, Lease, kept, lease_file, unique_holder
from mixer_dist.eval.feature_cache import FeatureEntry, FeatureFolder

POLL_S = 1.0
ROUND_S = 30.0  # after which the other ranks hear that rank 0 still waits

WAIT, OURS = "wait", "ours"
Outcome = str | dict[str, Any]
"""One of these two, or a FeatureEntry as plain data, to be told to other ranks."""

logger = logging.getLogger(__name__)


@contextmanager
def found_or_ours(folder: FeatureFolder, lease_s: float) -> Iterator[FeatureEntry | None]:
    """The features, or None while this worker alone is to compute them.

    All ranks must call this.
    """
    turn = Turn(folder, lease_s)
    with ExitStack() as held:
        while (outcome := distributed.on_main(lambda: turn.wait(held))) == WAIT:
            pass
        yield None if outcome == OURS else FeatureEntry.model_validate(outcome)


class Turn:
    """Rank 0's part in it."""

    def __init__(self, folder: FeatureFolder, lease_s: float) -> None:
        self._folder = folder
        self._url = folder.run_dir.leases_of_features(folder.key.folder)
        self._lease_s = lease_s
        self._watch = HolderWatch(folder.storage)
        self._is_told = False

    def wait(self, held: ExitStack) -> Outcome:
        """What it comes to within a while; a lease that is ours is kept as long as `held` is."""
        give_up = time.monotonic() + ROUND_S
        while time.monotonic() < give_up:
            outcome = self._look(held)
            if outcome != WAIT:
                return outcome
            self._tell()
            time.sleep(POLL_S * random.uniform(0.5, 1.5))  # or two would withdraw for ever
        return WAIT

    def _look(self, held: ExitStack) -> Outcome:
        if entry := self._folder.find():
            return entry.model_dump(mode="json")
        if self._others(""):
            return WAIT
        holder = unique_holder()
        lease = Lease(self._folder.storage, self._url, holder, self._lease_s)
        lease.renew()
        with ExitStack() as stack:
            stack.enter_context(kept(lease, lease.renew, self._lease_s))
            if self._others(holder):
                return WAIT
            # In this order: who had it before commits, then withdraws.
            if entry := self._folder.find():
                return entry.model_dump(mode="json")
            held.push(stack.pop_all())
        return OURS

    def _others(self, holder: str) -> list[str]:
        """Who else holds a lease; those that have lapsed are removed."""
        holders, lapsed = self._watch.look(self._url)
        for name in lapsed:
            self._folder.storage.delete(lease_file(self._url, name))
        return [found.name for found in holders if found.name != holder]

    def _tell(self) -> None:
        if not self._is_told:
            logger.info("another worker computes these features: waiting for them")
        self._is_told = True
