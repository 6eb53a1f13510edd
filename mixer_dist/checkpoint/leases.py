"""Leases: whoever reads a checkpoint says so, and it is not removed meanwhile."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from mixer_dist.checkpoint.catalog import Checkpoint, read_checkpoint, run_and_step
from mixer_dist.checkpoint.holders import (
    LEASE_S,
    Holder,
    HolderWatch,
    Lease,
    kept,
    lease_file,
    unique_holder,
)
from mixer_dist.errors import CheckpointError, MissingError
from mixer_dist.run_dir import RunDir, step_of
from mixer_dist.storage import Storage


def acquire(
    storage: Storage, url: str, holder: str | None = None, seconds: float = LEASE_S
) -> tuple[Lease, Checkpoint]:
    """A lease on a checkpoint, and the checkpoint; MissingError where it is gone or going."""
    run_dir, step = run_and_step(url)
    lease = Lease(storage, run_dir.leases_of(step), holder or unique_holder(), seconds)
    lease.renew()
    try:
        return lease, read_checkpoint(storage, url)
    except (MissingError, CheckpointError):
        lease.release()
        raise


@contextmanager
def leased(
    storage: Storage, url: str, holder: str | None = None, seconds: float = LEASE_S
) -> Iterator[Checkpoint]:
    """A checkpoint that is not removed as long as this lasts; a thread renews the lease."""
    lease, checkpoint = acquire(storage, url, holder, seconds)
    with kept(lease, lease.renew, seconds):
        yield checkpoint


class LeaseWatch:
    """The leases of a run as they are seen again and again."""

    def __init__(
        self, storage: Storage, run_dir: RunDir, now: Callable[[], float] = time.monotonic
    ) -> None:
        self._storage = storage
        self._run_dir = run_dir
        self._watch = HolderWatch(storage, now)

    def steps(self) -> set[int]:
        """Steps with leases, lapsed or not."""
        listed = (step_of(name) for name in self._storage.names(self._run_dir.leases))
        return {step for step in listed if step is not None}

    def all_holders(self) -> dict[int, list[Holder]]:
        """Who holds each checkpoint, by its step."""
        found = {step: self.holders(step) for step in self.steps()}
        return {step: holders for step, holders in found.items() if holders}

    def holders(self, step: int) -> list[Holder]:
        """Who holds a checkpoint now; a lease seen for the first time counts."""
        return self._watch.look(self._run_dir.leases_of(step))[0]

    def remove_lapsed(self, step: int) -> None:
        """Delete the leases on a checkpoint that nobody holds any more."""
        folder = self._run_dir.leases_of(step)
        for name in self._watch.look(folder)[1]:
            self._storage.delete(lease_file(folder, name))
        self._storage.delete_folder(folder)
