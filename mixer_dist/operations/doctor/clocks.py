"""Clocks of all ranks against that of rank 0, by round trips through the process group."""

import time
from collections.abc import Iterator, Mapping, Sequence

import torch
import torch.distributed as dist

from mixer_dist import distributed
from mixer_dist.operations.doctor.finding import Finding, trouble, well

NUM_TRIPS = 5
SKEW_S = 1.0  # events of two nodes would be told in the wrong order
REFUSED_S = 900.0  # by which S3 refuses a signature


def clocks(hosts: Sequence[str]) -> Iterator[Finding]:
    """Whether all ranks have the same time. All ranks must call this."""
    if distributed.world_size() == 1:
        return
    if not distributed.is_main():
        _answer()
        return
    yield from judge_clocks({rank: _skew_s(rank) for rank in range(1, len(hosts))}, hosts)


def judge_clocks(skews_s: Mapping[int, float], hosts: Sequence[str]) -> Iterator[Finding]:
    """`skews_s`: by how much each rank's clock is ahead of rank 0's."""
    by_host: dict[str, list[int]] = {}
    for rank, skew_s in skews_s.items():
        if abs(skew_s) > SKEW_S:
            by_host.setdefault(hosts[rank], []).append(rank)
    for ranks in by_host.values():
        skew_s = skews_s[ranks[0]]
        what = f"{abs(skew_s):,.1f} s {'ahead of' if skew_s > 0 else 'behind'} rank 0 on {hosts[0]}"
        refused = ", and S3 refuses what it signs" if abs(skew_s) > REFUSED_S else ""
        yield trouble(
            "clocks",
            f"{what}{refused}",
            "start chrony or another NTP client there; chronyc makestep sets the clock at once",
            ranks,
        )
    if not by_host:
        widest = max(map(abs, skews_s.values()))
        yield well("clocks", f"{1000 * widest:,.1f} ms apart at most")


def _skew_s(rank: int) -> float:
    """How far a rank's clock is ahead of this one's, by its fastest answer."""
    trips = []
    theirs = torch.zeros(1, dtype=torch.float64)
    for _ in range(NUM_TRIPS):
        asked = time.time()
        dist.send(theirs, rank)
        dist.recv(theirs, rank)
        answered = time.time()
        trips.append((answered - asked, theirs.item() - (asked + answered) / 2))
    return min(trips)[1]


def _answer() -> None:
    mine = torch.zeros(1, dtype=torch.float64)
    for _ in range(NUM_TRIPS):
        dist.recv(mine, 0)
        mine[0] = time.time()
        dist.send(mine, 0)
