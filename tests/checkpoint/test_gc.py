"""Old checkpoints go in an order that leaves nothing half-removed, whoever is killed or reads."""

import json
import logging
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from mixer_dist.checkpoint.collector import Collector
from mixer_dist.checkpoint.gc import Retention, collect
from mixer_dist.checkpoint.holders import LeaseRecord
from mixer_dist.checkpoint.layout import MANIFEST_NAME
from mixer_dist.checkpoint.leases import acquire
from mixer_dist.checkpoint.pins import pin, unpin
from mixer_dist.config import CheckpointConfig
from mixer_dist.errors import DataError, MissingError
from mixer_dist.run_dir import RunDir
from mixer_dist.storage import Storage, join
from tests.checkpoint.handmade import HandmadeRun, all_are_whole

GRACE_S = 300.0


def rules(**given: Any) -> CheckpointConfig:
    return CheckpointConfig.model_validate({"keep_last": 1, "lease_grace_s": GRACE_S} | given)


def collector(run: HandmadeRun, clock: Any, **given: Any) -> Collector:
    return Collector(run.storage, run.run_dir, rules(**given), clock)


def one_pass(collector: Collector) -> Any:
    return collector.carry_out(collector.plan())


def test_a_checkpoint_is_announced_then_kept_for_the_grace_then_removed(run, clock):
    run.commit_all(100, 200, 300)
    before = run.files(100)
    gc = collector(run, clock, keep_last=2)
    assert one_pass(gc).announced == [100]
    assert run.steps() == [200, 300]
    clock.wait(GRACE_S - 1)
    assert one_pass(gc).removed == []
    assert set(before) < set(run.files(100))  # a reader that has just opened it may go on
    clock.wait(2)
    assert one_pass(gc).removed == [100]
    assert run.files(100) == []
    assert run.steps() == [200, 300] and all_are_whole(run)
    if "://" not in run.run_dir.url:  # in a bucket a folder is no more than its files
        assert not Path(run.url(100)).exists()


def test_collecting_waits_one_grace_and_says_what_it_kept(run, clock):
    run.commit_all(100, 200, 300, 400)
    pin(run.storage, run.url(200))
    began = clock.time_s
    plan, outcome = collect(collector(run, clock, keep_every=300), clock.wait)
    assert sorted(outcome.removed) == [100]
    assert plan.reasons[200] == ("pinned",) and plan.reasons[300] == ("every 300 steps",)
    assert clock.time_s - began == pytest.approx(GRACE_S)
    assert run.steps() == [200, 300, 400]
    unpin(run.storage, run.url(200))
    collect(collector(run, clock, keep_every=300), clock.wait)
    assert run.steps() == [300, 400]


@pytest.mark.parametrize("claim", ["pin", "lease"])
def test_a_claim_that_comes_after_the_tombstone_wins(run, clock, claim):
    run.commit_all(100, 200)
    gc = collector(run, clock)
    plan = gc.plan()  # sees no claim
    if claim == "lease":
        lease, _ = acquire(run.storage, run.url(100), "reader", seconds=60)
    assert gc.carry_out(plan).announced == [100]
    if claim == "pin":
        pin(run.storage, run.url(100))
    clock.wait(GRACE_S + 1)
    one_pass(gc)
    assert run.steps() == [100, 200] and all_are_whole(run)
    if claim == "lease":
        lease.release()
        collect(gc, clock.wait)
        assert run.steps() == [200]


@pytest.mark.parametrize("claim", ["pin", "lease"])
def test_a_claim_between_the_last_plan_and_the_removal_wins(run, clock, claim):
    run.commit_all(100, 200)
    gc = collector(run, clock)
    one_pass(gc)
    clock.wait(GRACE_S + 1)
    plan = gc.plan()
    if claim == "pin":
        run.storage.write(run.run_dir.pin(100), b"")
    else:
        lease = LeaseRecord(holder="late", counter=1, seconds=60).model_dump_json().encode()
        run.storage.write(join(run.run_dir.leases_of(100), "late.json"), lease)
    assert gc.carry_out(plan).called_back == [100]
    assert run.steps() == [100, 200]


def test_leases_are_left_or_waited_for(run, clock):
    run.commit_all(100, 200, 300)
    acquire(run.storage, run.url(100), "dead", seconds=50)
    alive, _ = acquire(run.storage, run.url(200), "alive", seconds=80)

    def wait(seconds: float, reason: str) -> None:
        clock.wait(seconds)
        alive.renew()

    assert collect(collector(run, clock), wait)[1].removed == []
    plan, outcome = collect(collector(run, clock), wait, for_leases=True)
    assert outcome.removed == [100]
    assert plan.reasons[200] == ("leased by alive",)
    assert run.steps() == [200, 300]
    assert run.storage.names(run.run_dir.leases) == ["step-00000200"]


def test_the_last_that_verifies_stays_whatever_the_rules_say(run, clock):
    run.commit_all(100, 200, 300, 400)
    run.damage(300)
    run.damage(400)
    plan, _ = collect(collector(run, clock), clock.wait)
    assert run.steps() == [200, 300, 400]
    assert [line for line in plan.problems if "step-00000400" in line and "SHA-256" in line]
    run.damage(200)
    collect(collector(run, clock), clock.wait)  # nothing verifies, nothing goes
    assert run.steps() == [200, 300, 400]


def test_the_best_by_an_evaluation_stays(run, clock):
    run.commit_all(100, 200, 300)
    for step, accuracy in [(0, 0.9), (100, 0.3), (200, 0.5)]:
        result = json.dumps({"accuracy": accuracy}).encode()
        run.storage.write(run.run_dir.evaluation("digits", step), result)
    keep_best = {"task": "digits"}
    collect(collector(run, clock, keep_best=keep_best), clock.wait)
    assert run.steps() == [200, 300]
    with pytest.raises(DataError, match="no number 'top5'"):
        collector(run, clock, keep_best=keep_best | {"metric": "top5"}).plan()


class Killed(BaseException):
    """Ends a collector as SIGKILL does: nothing of it runs any more."""


class KilledStorage(Storage):
    """Storage of a process that is killed before a certain change."""

    def __init__(self, num_changes: int) -> None:
        super().__init__()
        self._left = num_changes

    def _change(self) -> None:
        self._left -= 1
        if self._left < 0:
            raise Killed

    def write(self, url: str, data: bytes) -> None:
        self._change()
        super().write(url, data)

    def delete(self, url: str) -> None:
        self._change()
        super().delete(url)

    def delete_folder(self, url: str) -> None:
        self._change()
        super().delete_folder(url)


def test_a_collector_killed_at_any_moment_leaves_whole_checkpoints_or_none(tmp_path, clock):
    for num_changes in range(100):
        run = HandmadeRun(Storage(), RunDir(str(tmp_path / str(num_changes))))
        run.commit_all(100, 200, 300)
        acquire(run.storage, run.url(100), "dead", seconds=1)
        killed = Collector(KilledStorage(num_changes), run.run_dir, rules(), clock)
        try:
            collect(killed, clock.wait, for_leases=True)
        except Killed:
            assert 300 in run.steps() and all_are_whole(run)
        else:
            break
        collect(collector(run, clock), clock.wait, for_leases=True)
        collect(collector(run, clock), clock.wait, for_leases=True)
        assert run.steps() == [300] and all_are_whole(run)
        assert run.files(100) == run.files(200) == []
    assert num_changes > 12  # tombstones, manifests and pieces of two, folders


def test_several_collectors_at_once_do_no_harm(run):
    run.commit_all(100, 200, 300, 400)
    pin(run.storage, run.url(200))

    def work(number: int) -> None:
        gc = Collector(run.storage, run.run_dir, rules(lease_grace_s=1e-3))
        collect(gc, lambda seconds, reason: time.sleep(seconds))

    with ThreadPoolExecutor(3) as pool:
        assert len([*pool.map(work, range(3))]) == 3
    work(3)  # takes away what one may have announced while another removed it
    assert run.steps() == [200, 400] and all_are_whole(run)
    assert run.files(100) == run.files(300) == []


def test_what_a_later_attempt_saves_in_a_condemned_place_stays(run, clock):
    run.commit_all(100, 200)
    gc = collector(run, clock)
    one_pass(gc)
    clock.wait(GRACE_S + 1)
    plan = gc.plan()
    run.commit(100, attempt=2)  # after a walk back
    gc.carry_out(plan)
    assert run.steps() == [100, 200] and all_are_whole(run)
    collect(collector(run, clock), clock.wait)
    assert run.steps() == [100] and all_are_whole(run)  # the newest now


def test_what_a_killed_collector_was_writing_goes_with_the_checkpoint(disk_run, clock):
    disk_run.commit_all(100, 200)
    Path(disk_run.url(100), ".tombstone.json.1-2.tmp").write_bytes(b"{")
    collect(collector(disk_run, clock), clock.wait)
    assert disk_run.storage.names(disk_run.run_dir.checkpoints) == ["step-00000200"]


def test_pieces_that_a_later_attempt_is_writing_stay_where_an_old_checkpoint_goes(run, clock):
    run.commit_all(100, 200)
    run.write_pieces(100, attempt=2)
    collect(collector(run, clock), clock.wait)
    assert run.files(100) == [f"pieces-0002-0000{rank}.safetensors" for rank in range(2)]


def test_a_checkpoint_whose_manifest_is_damaged_is_left_alone(run, clock):
    run.commit_all(100, 200)
    run.storage.write(join(run.url(100), MANIFEST_NAME), b"{torn")
    before = run.files(100)
    plan, outcome = collect(collector(run, clock), clock.wait)
    assert (outcome.removed, run.files(100)) == ([], before)
    assert "step-00000100 has a damaged manifest" in plan.problems[0]


def test_the_trainer_retains_what_it_should_commit_after_commit(run):
    run.start(2)
    run.write_pieces(50, attempt=1)
    retention = Retention(run.storage, run.run_dir, rules(keep_last=2, lease_grace_s=1e-6))
    for step in (100, 200, 300, 400, 500):
        run.commit(step, attempt=2)
        retention.retain()
    assert run.files(50) == []
    assert run.steps() == [400, 500] and all_are_whole(run)
    assert run.files(200) == [] and run.files(300) != []  # announced, its grace to come


def test_a_failure_to_retain_is_a_warning(disk_run, caplog, monkeypatch):
    monkeypatch.setattr(logging.getLogger("mixer_dist"), "propagate", True)
    nowhere = RunDir("no-such-protocol://run")
    with caplog.at_level(logging.WARNING, "mixer_dist"):
        Retention(disk_run.storage, nowhere, rules()).retain()
    assert "old checkpoints stay until the next save" in caplog.text


def test_only_a_checkpoint_that_is_there_can_be_pinned(run):
    with pytest.raises(MissingError, match="no checkpoint at"):
        pin(run.storage, run.url(100))
    assert run.storage.names(run.run_dir.pins) == []
    with pytest.raises(MissingError, match="is not pinned"):
        unpin(run.storage, run.commit(100))
