"""What happens to the run that is not left alone: drawn from a seed, so that it can be repeated."""

import random
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

Kind = Literal["SIGKILL of all ranks", "SIGKILL of one rank", "SIGUSR2"]
KINDS: tuple[Kind, ...] = ("SIGKILL of all ranks", "SIGKILL of one rank", "SIGUSR2")


@dataclass(frozen=True)
class Incident:
    """One interruption."""

    kind: Kind
    after_step: int
    delay: float
    """Of the time that a step takes, after its end: it hits the next step, or a save."""
    rank: float
    """Which rank it hits, as a share of all ranks."""

    def __str__(self) -> str:
        return f"{self.kind} after step {self.after_step}"


def draw_incidents(num_steps: int, count: int, seed: int) -> list[Incident]:
    """Interruptions in the order of their steps, each kind as often as the others."""
    generator = random.Random(seed)
    steps = sorted(generator.sample(range(1, num_steps), count))
    kinds = list(_kinds(count, generator))
    return [
        Incident(kind, step, generator.uniform(0, 1.5), generator.random())
        for kind, step in zip(kinds, steps, strict=True)
    ]


def _kinds(count: int, generator: random.Random) -> Iterator[Kind]:
    """Every kind once before any comes again."""
    for first in range(0, count, len(KINDS)):
        yield from generator.sample(KINDS, min(len(KINDS), count - first))
