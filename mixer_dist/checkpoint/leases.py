"""Leases: whoever reads a checkpoint says so, and it is not removed meanwhile.

A lease is a counter that its holder keeps moving. An observer compares it with what it saw before
and measures time on its own clock alone, so that no two clocks have to agree: a lease has lapsed
when its counter has stood still for as long as the lease itself says.
"""

import logging
import os
import re
import secrets
import socket
import threading
import time
from collections.abc import Callable, Hashable, Iterator
from contextlib import contextmanager
from typing import Annotated, NamedTuple

from pydantic import Field, ValidationError

from mixer_dist.checkpoint.catalog import Checkpoint, read_checkpoint, run_and_step
from mixer_dist.errors import CheckpointError, MissingError, MixerError
from mixer_dist.run_dir import RunDir, step_of
from mixer_dist.sections import NonNegativeInt, PositiveFloat, Section
from mixer_dist.storage import Storage, join

LEASE_S = 120.0
RENEWALS = 3  # in the time that a lease lasts

logger = logging.getLogger(__name__)


class LeaseRecord(Section):
    """What leases/<checkpoint>/<holder>.json holds."""

    holder: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")]
    counter: NonNegativeInt
    seconds: PositiveFloat
    """The lease has lapsed when the counter has stood still that long."""


class Lease:
    """A holder's claim to a checkpoint; to be renewed well within its seconds."""

    def __init__(self, storage: Storage, url: str, holder: str, seconds: float) -> None:
        run_dir, step = run_and_step(url)
        # At random, so that it never is what an earlier holder of this name left behind.
        counter = secrets.randbits(48)
        self._record = LeaseRecord(holder=holder, counter=counter, seconds=seconds)
        self._storage = storage
        self._url = join(run_dir.leases_of(step), f"{holder}.json")

    def renew(self) -> None:
        """Move the counter on."""
        counter = self._record.counter + 1
        self._record = self._record.model_copy(update={"counter": counter})
        self._storage.write(self._url, self._record.model_dump_json().encode())

    def release(self) -> None:
        """Give the checkpoint free."""
        self._storage.delete(self._url)


def acquire(
    storage: Storage, url: str, holder: str | None = None, seconds: float = LEASE_S
) -> tuple[Lease, Checkpoint]:
    """A lease on a checkpoint, and the checkpoint; MissingError where it is gone or going."""
    lease = Lease(storage, url, holder or unique_holder(), seconds)
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
    is_over = threading.Event()
    thread = threading.Thread(target=_keep_renewing, args=(lease, seconds, is_over), daemon=True)
    thread.start()
    try:
        yield checkpoint
    finally:
        is_over.set()
        thread.join()
        _release(lease)


def unique_holder() -> str:
    """A name that no other process has."""
    host = re.sub(r"[^A-Za-z0-9.-]", "-", socket.gethostname()).strip(".-") or "host"
    return f"{host}-{os.getpid()}-{secrets.token_hex(4)}"


class Holder(NamedTuple):
    """Who holds a lease that has not lapsed."""

    name: str
    lapses_in_s: float | None
    """If it is not renewed; None where it was seen to be."""


class Stillness:
    """For how long values have stood still, by this process's clock."""

    def __init__(self, now: Callable[[], float] = time.monotonic) -> None:
        self._now = now
        self._seen: dict[str, tuple[Hashable, float]] = {}
        self.moved: set[str] = set()
        """Names whose value was seen to change."""

    def seconds(self, name: str, value: Hashable) -> float:
        """Since when a value has been what it is: 0 when it is seen for the first time."""
        before = self._seen.get(name)
        if before is None or before[0] != value:
            if before:
                self.moved.add(name)
            self._seen[name] = (value, self._now())
        return self._now() - self._seen[name][1]


class LeaseWatch:
    """The leases of a run as they are seen again and again."""

    def __init__(
        self, storage: Storage, run_dir: RunDir, now: Callable[[], float] = time.monotonic
    ) -> None:
        self._storage = storage
        self._run_dir = run_dir
        self._stillness = Stillness(now)

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
        found = (self._holder(url) for url in self._files(step))
        return [holder for holder in found if holder]

    def remove_lapsed(self, step: int) -> None:
        """Delete the leases on a checkpoint that nobody holds any more."""
        for url in self._files(step):
            if not self._holder(url):
                self._storage.delete(url)
        self._storage.delete_folder(self._run_dir.leases_of(step))

    def _files(self, step: int) -> list[str]:
        folder = self._run_dir.leases_of(step)
        return [join(folder, n) for n in self._storage.names(folder) if n.endswith(".json")]

    def _holder(self, url: str) -> Holder | None:
        try:
            record = LeaseRecord.model_validate_json(self._storage.read(url))
        except MissingError:  # released just now
            return None
        except ValidationError:
            return Holder(f"{url} (not readable: remove it if nobody reads the checkpoint)", None)
        remaining_s = record.seconds - self._stillness.seconds(url, record.counter)
        lapses_in_s = None if url in self._stillness.moved else remaining_s
        return Holder(record.holder, lapses_in_s) if remaining_s > 0 else None


def _keep_renewing(lease: Lease, seconds: float, is_over: threading.Event) -> None:
    while not is_over.wait(seconds / RENEWALS):
        try:
            lease.renew()
        except MixerError as error:  # the next renewal may go better
            logger.warning("lease not renewed: %s", error)


def _release(lease: Lease) -> None:
    try:
        lease.release()
    except MixerError as error:  # what was done under the lease is done
        logger.warning("lease not released, it will lapse: %s", error)
