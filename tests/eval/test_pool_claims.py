"""Claims: one worker at a time, whatever becomes of it, and one result."""

import os
from pathlib import Path

import pytest

from mixer_dist.checkpoint.holders import leaseholders
from mixer_dist.config import PoolConfig, UpstreamConfig
from mixer_dist.eval.pool.assignments import Assignment
from mixer_dist.eval.pool.claims import Claim, claimed
from mixer_dist.eval.pool.failures import read_failures
from mixer_dist.eval.pool.run_watch import RunWatch
from mixer_dist.run_dir import RunDir
from mixer_dist.storage import Storage

TASK = UpstreamConfig(name="task", kind="upstream", test="test/manifest.json")
LEASE_S = 60.0
NUM_TRIES = 100


class Clock:
    time_s = 1000.0

    def __call__(self) -> float:
        return self.time_s


@pytest.fixture(params=["disk", "s3"])
def place(request, tmp_path) -> tuple[Storage, RunDir]:
    if request.param == "disk":
        return Storage(), RunDir(str(tmp_path / "run"))
    s3 = request.getfixturevalue("s3")
    return s3.storage(), RunDir(f"{s3.new_bucket()}/run")


@pytest.fixture
def assignment(place) -> Assignment:
    return Assignment(place[1], "task", 10)


def hold(storage: Storage, assignment: Assignment, holder: str) -> Claim:
    """As a worker does that is frozen or killed later: nobody renews or releases it."""
    claim = Claim(storage, assignment, holder, LEASE_S)
    claim.lease.renew()
    return claim


def test_one_holds_it_until_it_is_given_free(place, assignment):
    storage, _ = place
    with claimed(storage, assignment, "first", LEASE_S) as first:
        with claimed(storage, assignment, "second", LEASE_S) as second:
            assert first and not second
        assert leaseholders(storage, assignment.claims) == ["first"]
    with claimed(storage, assignment, "second", LEASE_S) as second:
        assert second


def test_what_has_a_result_is_not_claimed_and_no_result_is_overwritten(place, assignment):
    storage, _ = place
    with claimed(storage, assignment, "first", LEASE_S) as claim:
        claim.write_result(assignment.result, b"1")
        claim.write_result(assignment.result, b"2")
    assert storage.read(assignment.result) == b"1"
    with claimed(storage, assignment, "second", LEASE_S) as claim:
        assert claim is None
    assert leaseholders(storage, assignment.claims) == []


def contend(folder: str) -> int:
    """How often this process had the claim; an error where another had it too."""
    storage, assignment = Storage(), Assignment(RunDir(folder), "task", 10)
    num_won, mark = 0, Path(folder, "mark")
    for number in range(NUM_TRIES):
        with claimed(storage, assignment, f"worker-{os.getpid()}-{number}", LEASE_S) as claim:
            if claim:
                mark.touch(exist_ok=False)
                mark.unlink()
                num_won += 1
    return num_won


def test_of_two_processes_never_both_have_it(ranks, tmp_path):
    assert sum(ranks.run(2, contend, str(tmp_path))) > 0


def test_a_claim_that_has_lapsed_is_taken_over_and_its_result_dropped(place, assignment):
    storage, run_dir = place
    clock = Clock()
    watch = RunWatch(storage, run_dir, [TASK], PoolConfig(), now=clock)
    frozen = hold(storage, assignment, "frozen")
    assert watch.claimed() == {assignment: "frozen"}
    clock.time_s += LEASE_S - 1
    frozen.renew()
    assert watch.claimed() == {assignment: "frozen"}
    clock.time_s += LEASE_S + 1
    assert watch.claimed() == {}
    assert read_failures(storage, run_dir, "task") == {(10, "lost"): 1}

    with claimed(storage, assignment, "next", LEASE_S) as claim:
        frozen.renew()  # it comes back to life
        frozen.write_result(assignment.result, b"late")
        assert leaseholders(storage, assignment.claims) == ["next"]
        claim.write_result(assignment.result, b"right")
    frozen.write_result(assignment.result, b"late")
    assert storage.read(assignment.result) == b"right"


def test_two_pools_count_a_loss_once_and_none_after_a_result(place, assignment):
    storage, run_dir = place
    watches = [RunWatch(storage, run_dir, [TASK], PoolConfig()) for _ in range(2)]
    hold(storage, assignment, "killed")
    for watch in watches:
        watch.take_away(assignment, "killed", "it was killed")
    assert read_failures(storage, run_dir, "task") == {(10, "lost"): 1}

    hold(storage, assignment, "killed-later").write_result(assignment.result, b"1")
    watches[0].note_end(assignment, "killed-later", -9)
    assert read_failures(storage, run_dir, "task") == {(10, "lost"): 1}
    assert leaseholders(storage, assignment.claims) == []
