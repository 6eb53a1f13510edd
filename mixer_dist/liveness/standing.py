"""Where ranks stand in a run, and who therefore waits for whom; pure."""

from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

PHASES = ("start", "data", "step", "report", "save")
"""In the order in which a step goes through them."""


class Standing(NamedTuple):
    """What a rank is doing."""

    step: int
    phase: str

    @property
    def progress(self) -> tuple[int, int]:
        """Sorts: who has less holds up who has more."""
        return self.step, PHASES.index(self.phase)

    def __str__(self) -> str:
        return f"{self.phase} of step {self.step}" if self.step else self.phase


class Ending(NamedTuple):
    """Why all ranks have to end."""

    reason: str
    exit_code: int = 1
    ranks: tuple[int, ...] = ()
    """Whose fault it is, as far as is known."""
    is_said: bool = False
    """Whether the rank that failed prints the reason itself."""


def rank_names(ranks: Sequence[int], hosts: Sequence[str]) -> str:
    """One rank with its host, or several."""
    if len(ranks) == 1:
        return f"rank {ranks[0]} (host {hosts[ranks[0]]})"
    return f"ranks {', '.join(_runs(ranks))}"


def hang(seconds: float, standings: Mapping[int, Standing], hosts: Sequence[str]) -> Ending:
    """Who waits for whom, from the standing of each rank that answered."""
    silent = tuple(rank for rank in range(len(hosts)) if rank not in standings)
    least = min((s.progress for s in standings.values()), default=None)
    behind = tuple(rank for rank, s in sorted(standings.items()) if s.progress == least)
    culprits = silent or behind
    if len(culprits) == len(standings) > 1:
        where = f"all {len(hosts)} ranks are in {standings[0]}: a collective does not end"
        return Ending(f"no step for {seconds:.0f} s: {where}")
    waiting = {rank: s for rank, s in standings.items() if rank not in culprits}
    name = rank_names(culprits, hosts)
    verb = ("does" if silent else "is") if len(culprits) == 1 else ("do" if silent else "are")
    state = "not answer: frozen, or stuck" if silent else f"in {standings[culprits[0]]}"
    tail = f"; {_waiting(waiting)}" if waiting else ""
    return Ending(f"no step for {seconds:.0f} s: {name} {verb} {state}{tail}", ranks=culprits)


def _waiting(standings: Mapping[int, Standing]) -> str:
    """The ranks by where they wait."""
    places: dict[Standing, list[int]] = {}
    for rank, standing in sorted(standings.items()):
        places.setdefault(standing, []).append(rank)
    parts = [
        f"rank{'s' * (len(ranks) > 1)} {', '.join(_runs(ranks))} in {standing}"
        for standing, ranks in places.items()
    ]
    return f"waiting for that: {', '.join(parts)}"


def _runs(ranks: Iterable[int]) -> list[str]:
    """Neighbours as `0-7`, the others one by one."""
    runs: list[list[int]] = []
    for rank in sorted(ranks):
        if runs and rank == runs[-1][-1] + 1:
            runs[-1].append(rank)
        else:
            runs.append([rank])
    return [f"{run[0]}-{run[-1]}" if len(run) > 2 else ", ".join(map(str, run)) for run in runs]
