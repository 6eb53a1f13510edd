"""Who holds something: files in a folder, one a holder, that each keeps changing.

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

from mixer_dist.errors import MissingError, MixerError
from mixer_dist.sections import NonNegativeInt, PositiveFloat, Section
from mixer_dist.storage import Storage, join

LEASE_S = 120.0
RENEWALS = 3  # in the time that a lease lasts
_SUFFIX = ".json"

logger = logging.getLogger(__name__)


class LeaseRecord(Section):
    """What <holder>.json holds."""

    holder: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")]
    counter: NonNegativeInt
    seconds: PositiveFloat
    """The lease has lapsed when the counter has stood still that long."""


class Lease:
    """A holder's file in a folder; to be renewed well within its seconds."""

    def __init__(self, storage: Storage, folder: str, holder: str, seconds: float) -> None:
        # At random, so that it never is what an earlier holder of this name left behind.
        counter = secrets.randbits(48)
        self._record = LeaseRecord(holder=holder, counter=counter, seconds=seconds)
        self._storage = storage
        self._url = lease_file(folder, holder)

    def renew(self) -> None:
        """Move the counter on."""
        counter = self._record.counter + 1
        self._record = self._record.model_copy(update={"counter": counter})
        self._storage.write(self._url, self._record.model_dump_json().encode())

    def is_there(self) -> bool:
        """Whether nobody has taken it for lapsed and removed it."""
        return self._storage.exists(self._url)

    def release(self) -> None:
        """Give free what was held."""
        self._storage.delete(self._url)


@contextmanager
def kept(lease: Lease, renew: Callable[[], None], seconds: float) -> Iterator[None]:
    """A thread renews a lease as long as this lasts, then it is released."""
    is_over = threading.Event()
    thread = threading.Thread(target=_keep_renewing, args=(renew, seconds, is_over), daemon=True)
    thread.start()
    try:
        yield
    finally:
        is_over.set()
        thread.join()
        _release(lease)


def unique_holder() -> str:
    """A name that no other process has."""
    host = re.sub(r"[^A-Za-z0-9.-]", "-", socket.gethostname()).strip(".-") or "host"
    return f"{host}-{os.getpid()}-{secrets.token_hex(4)}"


def lease_file(folder: str, holder: str) -> str:
    """Where a holder's lease lies."""
    return join(folder, f"{holder}{_SUFFIX}")


def leaseholders(storage: Storage, folder: str) -> list[str]:
    """The names of all whose lease lies in a folder, lapsed or not."""
    found = storage.names(folder)
    return [name.removesuffix(_SUFFIX) for name in found if name.endswith(_SUFFIX)]


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


class HolderWatch:
    """Folders of leases as they are seen again and again."""

    def __init__(self, storage: Storage, now: Callable[[], float] = time.monotonic) -> None:
        self._storage = storage
        self._stillness = Stillness(now)

    def look(self, folder: str) -> tuple[list[Holder], list[str]]:
        """Who holds a folder now, and whose lease has lapsed; one seen for the first time holds."""
        holders, lapsed = [], []
        for name in leaseholders(self._storage, folder):
            try:
                holder = self._holder(lease_file(folder, name))
            except MissingError:  # released just now
                continue
            if holder:
                holders.append(holder)
            else:
                lapsed.append(name)
        return holders, lapsed

    def _holder(self, url: str) -> Holder | None:
        """None where the lease has lapsed."""
        try:
            record = LeaseRecord.model_validate_json(self._storage.read(url))
        except ValidationError:
            return Holder(f"{url} (not readable: remove it if nobody works there)", None)
        remaining_s = record.seconds - self._stillness.seconds(url, record.counter)
        lapses_in_s = None if url in self._stillness.moved else remaining_s
        return Holder(record.holder, lapses_in_s) if remaining_s > 0 else None


def _keep_renewing(renew: Callable[[], None], seconds: float, is_over: threading.Event) -> None:
    while not is_over.wait(seconds / RENEWALS):
        try:
            renew()
        except MixerError as error:  # the next renewal may go better
            logger.warning("lease not renewed: %s", error)


def _release(lease: Lease) -> None:
    try:
        lease.release()
    except MixerError as error:  # what was done under the lease is done
        logger.warning("lease not released, it will lapse: %s", error)
