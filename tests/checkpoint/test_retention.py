"""Which checkpoints the rules keep: pure, so that all cases can be drawn."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mixer_dist.checkpoint.retention import Circumstances, Commit, best_steps, reasons_to_keep
from mixer_dist.config import CheckpointConfig, KeepBestConfig
from mixer_dist.errors import ConfigError
from mixer_dist.sections import parse
from tests.tiny import tiny_config

STEPS = st.integers(0, 60)
COMMITS = st.dictionaries(STEPS, st.integers(1, 4), max_size=12).map(
    lambda attempts: [Commit(attempt, step) for step, attempt in attempts.items()]
)
KEEP_LAST = st.none() | st.integers(1, 5)


@st.composite
def cases(draw) -> tuple[list[Commit], CheckpointConfig, Circumstances]:
    commits, keep_last = draw(COMMITS), draw(KEEP_LAST)
    keep_every = draw(st.none() | st.integers(1, 20)) if keep_last else None
    steps = st.sets(st.sampled_from([c.step for c in commits]) if commits else STEPS)
    known = Circumstances(
        condemned=draw(steps),
        pinned=draw(steps),
        leased=dict.fromkeys(draw(steps), "somebody"),
        best=draw(steps),
        verified=draw(st.sets(st.sampled_from(commits))) if commits else set(),
    )
    return commits, CheckpointConfig(keep_last=keep_last, keep_every=keep_every), known


def kept(commits, rules, known) -> set[Commit]:
    reasons = reasons_to_keep(commits, rules, known)
    return {commit for commit in commits if reasons[commit.step]}


@given(cases())
def test_nothing_that_is_pinned_leased_or_proof_goes(case):
    commits, _, known = case
    gone = {*commits} - kept(*case)
    assert not {commit.step for commit in gone} & {*known.pinned, *known.leased}
    for commit in gone:  # the run still has a newer one that it could resume from
        assert any(good > commit and good in kept(*case) for good in known.verified)


@given(cases())
def test_nothing_that_the_rules_keep_is_announced(case):
    commits, rules, known = case
    standing = sorted((c for c in commits if c.step not in known.condemned), reverse=True)
    last = standing if rules.keep_last is None else standing[: rules.keep_last]
    every = [c for c in standing if rules.keep_every and c.step % rules.keep_every == 0]
    best = [c for c in standing if c.step in known.best]
    assert {*last, *every, *best} <= kept(*case)


@given(cases())
def test_deciding_again_on_what_remains_removes_no_more(case):
    commits, rules, known = case
    known = Circumstances(frozenset(), known.pinned, known.leased, known.best, known.verified)
    remaining = kept(commits, rules, known)
    assert kept(remaining, rules, known) == remaining


def test_the_rules_by_an_example():
    commits = [Commit(1, step) for step in range(100, 1100, 100)]
    rules = CheckpointConfig(keep_last=2, keep_every=400)
    known = Circumstances(
        pinned={100}, leased={300: "eval-1"}, best={200}, verified={Commit(1, 1000)}
    )
    assert reasons_to_keep(commits, rules, known) == {
        100: ("pinned",),
        200: ("best",),
        300: ("leased by eval-1",),
        400: ("every 400 steps",),
        500: (),
        600: (),
        700: (),
        800: ("every 400 steps",),
        900: ("last 2",),
        1000: ("last 2", "no newer one is known to verify"),
    }


def test_without_any_proof_all_are_kept():
    commits = [Commit(1, step) for step in range(10)]
    rules = CheckpointConfig(keep_last=1)
    assert len(kept(commits, rules, Circumstances())) == 10
    assert len(kept(commits, rules, Circumstances(verified={Commit(1, 4)}))) == 6


def test_a_later_attempt_is_newer_whatever_its_step():
    commits = [Commit(1, 300), Commit(2, 100)]
    known = Circumstances(verified={Commit(2, 100)})
    assert kept(commits, CheckpointConfig(keep_last=1), known) == {Commit(2, 100)}


@pytest.mark.parametrize(
    ("mode", "count", "expected"), [("max", 1, {30}), ("max", 2, {30, 20}), ("min", 2, {0, 10})]
)
def test_the_best_are_the_best_and_of_equal_ones_the_later(mode, count, expected):
    results = {0: 0.1, 10: 0.4, 20: 0.7, 30: 0.7}
    assert best_steps(results, KeepBestConfig(task="any", mode=mode, count=count)) == expected


@pytest.mark.parametrize("rule", [{"keep_every": 100}, {"keep_best": {"task": "digits"}}])
def test_a_rule_that_would_do_nothing_is_refused(rule):
    with pytest.raises(ConfigError, match="set keep_last too"):
        parse(CheckpointConfig, rule, "test")


def test_the_best_by_an_unknown_task_is_refused():
    with pytest.raises(ConfigError, match="tasks in evals: none"):
        tiny_config("ddp", checkpoint={"keep_last": 1, "keep_best": {"task": "digits"}})
