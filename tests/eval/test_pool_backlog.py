"""What a pool does first, and what it leaves."""

from collections import Counter

from mixer_dist.config import PoolConfig
from mixer_dist.eval.pool.backlog import Backlog, Found, backlog, interleaved
from mixer_dist.run_dir import RunDir

RUN = RunDir("/run")


def made(
    steps: list[int], results: dict[str, set[int]], failures: Counter | None = None,
    last_step: int | None = 40, run_dir: RunDir = RUN, **rules,
) -> Backlog:  # fmt: skip
    """A backlog of the tasks in `results`; failures are those of the first."""
    counts = {task: Counter() for task in results}
    counts[next(iter(results))].update(failures or {})
    found = Found(steps, results, counts, last_step)
    return backlog(run_dir, found, PoolConfig.model_validate(rules))


def pairs(found) -> list[tuple[int, str]]:
    return [(each.step, each.task) for each in found]


def test_the_newest_checkpoint_comes_first_with_all_its_tasks_then_the_rest_fills_in():
    found = made([10, 40, 20], {"a": {20}, "b": set()})
    assert pairs(found.todo) == [(40, "a"), (40, "b"), (20, "b"), (10, "a"), (10, "b")]
    assert pairs(found.done) == [(20, "a")]


def test_the_oldest_may_come_first():
    found = made([10, 40, 20], {"a": set()}, order="oldest")
    assert pairs(found.todo) == [(10, "a"), (20, "a"), (40, "a")]


def test_only_some_checkpoints_and_the_last():
    found = made([10, 20, 30, 50], {"a": set()}, last_step=50, every_steps=20)
    assert pairs(found.todo) == [(50, "a"), (20, "a")]


def test_what_failed_comes_after_what_did_not_and_is_left_after_some_tries():
    failures = Counter({(40, "failed"): 1, (30, "failed"): 3, (20, "lost"): 3, (10, "lost"): 10,
                        (5, "refused"): 1})  # fmt: skip
    found = made([5, 10, 20, 30, 40], {"bad": set(), "good": set()}, failures)
    good = [(step, "good") for step in (40, 30, 20, 10, 5)]
    assert sorted(pairs(found.todo)) == sorted([*good, (20, "bad"), (40, "bad")])
    assert pairs(found.todo)[-1] == (40, "bad")
    assert pairs(found.given_up) == [(30, "bad"), (10, "bad"), (5, "bad")]


def test_a_run_is_finished_once_its_last_step_is_there_and_nothing_is_left():
    assert not made([10], {"a": {10}}).is_finished
    assert not made([10, 40], {"a": {10}}).is_finished
    assert made([10, 40], {"a": {10, 40}}).is_finished
    assert made([40], {"a": set()}, Counter({(40, "failed"): 3})).is_finished
    assert not made([], {"a": set()}, last_step=None).is_finished


def test_runs_take_turns():
    one = made([10, 20, 30], {"a": set()})
    two = made([7], {"a": set()}, run_dir=RunDir("/two"))
    assert [each.step for each in interleaved([one, two])] == [30, 7, 20, 10]
