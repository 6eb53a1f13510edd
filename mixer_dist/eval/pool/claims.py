"""Claims: one worker alone does an assignment, and the result is written once.

Who wants an assignment puts a lease of its own beside all others, then looks whether it is alone,
and withdraws if not: of two at the same moment, the second to look sees both. A lease that a pool
has found lapsed is removed, and its holder, should it come back to life, finds it gone.
"""

import logging
from collections.abc import Iterator
from contextlib import contextmanager

from mixer_dist.checkpoint.holders import Lease, kept, leaseholders
from mixer_dist.eval.pool.assignments import Assignment
from mixer_dist.storage import Storage

logger = logging.getLogger(__name__)


class Claim:
    """A worker's hold on an assignment."""

    def __init__(
        self, storage: Storage, assignment: Assignment, holder: str, seconds: float
    ) -> None:
        self._storage = storage
        self._assignment = assignment
        self.lease = Lease(storage, assignment.claims, holder, seconds)

    def renew(self) -> None:
        """Unless it was taken away: another works by now."""
        if self.lease.is_there():
            self.lease.renew()

    def write_result(self, url: str, data: bytes) -> None:
        """One put, while the claim holds and no result is there; else the result is dropped."""
        if not self.lease.is_there():
            logger.warning("%s: the claim was lost, this result is dropped", self._assignment)
        elif self._storage.exists(url):
            logger.warning("%s: there is a result by now, this one is dropped", self._assignment)
        else:
            self._storage.write(url, data)


@contextmanager
def claimed(
    storage: Storage, assignment: Assignment, holder: str, seconds: float
) -> Iterator[Claim | None]:
    """A claim that lasts as long as this; None where another has one or a result is there."""
    claim = Claim(storage, assignment, holder, seconds)
    claim.lease.renew()
    with kept(claim.lease, claim.renew, seconds):
        others = [name for name in leaseholders(storage, assignment.claims) if name != holder]
        # In this order: who had it before writes its result, then withdraws.
        is_done = storage.exists(assignment.result)
        if others or is_done:
            whose = f"{others[0]} works on it" if others else "it has a result"
            logger.info("%s: nothing to do, %s", assignment, whose)
        yield None if others or is_done else claim
