"""Which checkpoints are kept, and why; pure.

Rules say what a user wants kept. Pins, leases and proof protect beyond them: a checkpoint goes only
when a newer one is known to verify, so that a run never loses the one it would resume from.
"""

from collections.abc import Collection, Mapping, Set
from dataclasses import dataclass, field
from typing import NamedTuple

from mixer_dist.config import CheckpointConfig, KeepBestConfig

UNPROVEN = "no newer one is known to verify"
LEASED = "leased by"


class Commit(NamedTuple):
    """A committed checkpoint; the newest is the largest."""

    attempt: int
    step: int


@dataclass(frozen=True)
class Circumstances:
    """What is known beside the rules; steps of checkpoints, or their commits."""

    condemned: Set[int] = frozenset()
    """Those whose end is announced: the rules do not call them back."""
    pinned: Set[int] = frozenset()
    leased: Mapping[int, str] = field(default_factory=dict)
    """By whom."""
    best: Set[int] = frozenset()
    verified: Set[Commit] = frozenset()
    """Those whose every byte is known to be right."""


def reasons_to_keep(
    commits: Collection[Commit], rules: CheckpointConfig, known: Circumstances
) -> dict[int, tuple[str, ...]]:
    """By step, why a checkpoint is kept; those without a reason may go."""
    standing = sorted({c for c in commits if c.step not in known.condemned}, reverse=True)
    last = set(standing if rules.keep_last is None else standing[: rules.keep_last])

    def reasons(commit: Commit) -> tuple[str, ...]:
        is_standing = commit.step not in known.condemned
        every = rules.keep_every
        given = {
            _last_reason(rules): commit in last,
            f"every {every} steps": is_standing and every and commit.step % every == 0,
            "best": is_standing and commit.step in known.best,
            "pinned": commit.step in known.pinned,
            f"{LEASED} {known.leased.get(commit.step)}": commit.step in known.leased,
            UNPROVEN: not any(good > commit for good in known.verified),
        }
        return tuple(reason for reason, holds in given.items() if holds)

    return {commit.step: reasons(commit) for commit in sorted(commits)}


def may_pass(reasons: Collection[str]) -> bool:
    """Whether no reason is there for good: leases end, and proof may be had."""
    return all(reason == UNPROVEN or reason.startswith(LEASED) for reason in reasons)


def best_steps(results: Mapping[int, float], best: KeepBestConfig) -> set[int]:
    """The steps with the best results; of equal ones the later."""
    sign = 1 if best.mode == "max" else -1
    ranked = sorted(results, key=lambda step: (sign * results[step], step), reverse=True)
    return set(ranked[: best.count])


def _last_reason(rules: CheckpointConfig) -> str:
    return "keep_last: all" if rules.keep_last is None else f"last {rules.keep_last}"
