"""Where ranks stand in a run, and who therefore waits for whom; pure."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import NamedTuple

PHASES = {
    "start": "starting",
    "data": "waiting for the data of step {}",
    "step": "computing step {}",
    "report": "reporting step {}",
    "save": "saving step {}",
    "end": "ending after step {}",
}
"""What a rank does, in the order in which a step goes through it."""


class Standing(NamedTuple):
    """What a rank is doing."""

    step: int
    phase: str

    @property
    def progress(self) -> tuple[int, int]:
        """Sorts: who has less holds up who has more."""
        return self.step, list(PHASES).index(self.phase)

    def __str__(self) -> str:
        return PHASES[self.phase].format(self.step)


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
    if len(hosts) > 1 and len(behind) == len(hosts):
        sentence = f"all {len(hosts)} ranks are {standings[0]}: a collective does not end"
        return Ending(f"no step for {seconds:.0f} s: {sentence}")
    verb = ("does", "is") if len(culprits) == 1 else ("do", "are")
    state = f"{verb[0]} not answer" if silent else f"{verb[1]} {standings[culprits[0]]}"
    sentences = [f"{rank_names(culprits, hosts)} {state}", *_waiting(standings, culprits, hosts)]
    return Ending(f"no step for {seconds:.0f} s: {'; '.join(sentences)}", ranks=culprits)


def _waiting(
    standings: Mapping[int, Standing], culprits: Sequence[int], hosts: Sequence[str]
) -> Iterator[str]:
    """The other ranks, those at the same place together."""
    waiting = {rank: s for rank, s in sorted(standings.items()) if rank not in culprits}
    for place in dict.fromkeys(waiting.values()):
        ranks = [rank for rank, standing in waiting.items() if standing == place]
        verb = "waits" if len(ranks) == 1 else "wait"
        yield f"{rank_names(ranks, hosts)} {verb} for that, {place}"


def _runs(ranks: Iterable[int]) -> list[str]:
    """Neighbours as `0-7`, the others one by one."""
    runs: list[list[int]] = []
    for rank in sorted(ranks):
        if runs and rank == runs[-1][-1] + 1:
            runs[-1].append(rank)
        else:
            runs.append([rank])
    return [f"{run[0]}-{run[-1]}" if len(run) > 2 else ", ".join(map(str, run)) for run in runs]
