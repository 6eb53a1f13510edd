"""Leases: they hold as long as they are renewed, on nobody's clock but the observer's."""

import threading

import pytest

from mixer_dist.checkpoint.layout import TOMBSTONE_NAME, Tombstone
from mixer_dist.checkpoint.leases import LeaseWatch, acquire, leased
from mixer_dist.errors import MissingError
from mixer_dist.storage import Storage, join


@pytest.fixture
def watch(run, clock) -> LeaseWatch:
    return LeaseWatch(run.storage, run.run_dir, clock)


def names(watch: LeaseWatch, step: int = 100) -> list[str]:
    return [holder.name for holder in watch.holders(step)]


def test_a_lease_lapses_when_it_has_stood_still_for_its_seconds(run, watch, clock):
    acquire(run.storage, run.commit(100), "reader", seconds=60)
    clock.wait(1000)
    assert names(watch) == ["reader"]  # seen for the first time
    clock.wait(59)
    assert names(watch) == ["reader"]
    clock.wait(2)
    assert names(watch) == []
    assert watch.all_holders() == {}


def test_a_lease_that_is_renewed_holds(run, watch, clock):
    lease, checkpoint = acquire(run.storage, run.commit(100), "reader", seconds=60)
    assert checkpoint.manifest.step == 100
    for _ in range(4):
        assert names(watch) == ["reader"]
        clock.wait(40)
        lease.renew()
    (holder,) = watch.holders(100)
    assert holder.lapses_in_s is None  # was seen to be renewed: no use to wait for it
    lease.release()
    assert names(watch) == []


def test_a_holder_that_starts_anew_is_not_taken_for_the_old_one(run, watch, clock):
    url = run.commit(100)
    acquire(run.storage, url, "reader", seconds=60)
    assert names(watch) == ["reader"]
    clock.wait(100)
    acquire(run.storage, url, "reader", seconds=60)
    assert names(watch) == ["reader"]


def test_several_may_hold_one(run, watch, clock):
    url = run.commit(100)
    acquire(run.storage, url, "long", seconds=60)
    acquire(run.storage, url, "short", seconds=10)
    assert names(watch) == ["long", "short"]
    clock.wait(20)
    assert names(watch) == ["long"]
    watch.remove_lapsed(100)
    assert run.storage.names(run.run_dir.leases_of(100)) == ["long.json"]


@pytest.mark.parametrize("is_there", [True, False])
def test_what_is_gone_or_going_cannot_be_leased(run, is_there):
    url = run.url(100)
    if is_there:
        run.commit(100)
        tombstone = Tombstone(attempt=1, token="t").model_dump_json().encode()
        run.storage.write(join(url, TOMBSTONE_NAME), tombstone)
    with pytest.raises(MissingError, match="no checkpoint at"):
        acquire(run.storage, url, "reader")
    assert run.storage.names(run.run_dir.leases_of(100)) == []


def test_a_lease_that_cannot_be_read_holds_and_is_named(run, watch, clock):
    run.storage.write(join(run.run_dir.leases_of(100), "torn.json"), b"{")
    for _ in range(2):
        assert "torn.json" in names(watch)[0]
        clock.wait(1e6)


class CountingStorage(Storage):
    """Tells when a lease has been written so many times."""

    def __init__(self, num_writes: int) -> None:
        super().__init__()
        self._left = num_writes
        self.is_done = threading.Event()

    def write(self, url: str, data: bytes) -> None:
        super().write(url, data)
        self._left -= 1
        if self._left <= 0:
            self.is_done.set()


def test_a_lease_is_renewed_while_its_holder_works_and_then_released(disk_run, clock):
    url, storage = disk_run.commit(100), CountingStorage(3)
    with (
        pytest.raises(RuntimeError, match="work failed"),
        leased(storage, url, "reader", seconds=0.03) as checkpoint,
    ):
        assert checkpoint.url == url
        assert storage.is_done.wait(60)
        assert names(LeaseWatch(storage, disk_run.run_dir, clock)) == ["reader"]
        raise RuntimeError("work failed")
    assert disk_run.storage.names(disk_run.run_dir.leases_of(100)) == []
