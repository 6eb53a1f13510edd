"""Latency and bandwidth between pairs of ranks, and which of them are slow."""

import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from statistics import median

import torch
import torch.distributed as dist

from mixer_dist import distributed
from mixer_dist.operations.doctor.finding import Finding, trouble, well

NUM_PINGS = 20
NUM_TRANSFERS = 3
CPU_BYTES, GPU_BYTES = 2**20, 64 * 2**20
FACTOR = 4  # times worse than the faster half of all pairs
LATENCY_S, BYTES_PER_S = 2e-3, 1e9  # a pair that is better than this is not slow
MAX_LATENCY_S, MIN_BYTES_PER_S = 20e-3, 50e6  # and one that is worse is, whatever the others are
MAX_NAMED = 8


@dataclass(frozen=True)
class Link:
    """What was measured between two ranks: one way, the best of some tries."""

    low: int
    high: int
    latency_s: float
    bytes_per_s: float


def links(hosts: Sequence[str]) -> Iterator[Finding]:
    """Measure pairs through gloo, on GPUs also through NCCL. All ranks must call this."""
    world_size = len(hosts)
    if world_size == 1:
        return
    found = _measured(all_pairs(world_size), torch.zeros(CPU_BYTES, dtype=torch.uint8))
    if distributed.is_main():
        yield from judge_links("links", found, hosts)
    if distributed.device().type == "cuda":
        buffer = torch.zeros(GPU_BYTES, dtype=torch.uint8, device=distributed.device())
        found = _measured(neighbours(hosts), buffer)
        if distributed.is_main():
            yield from judge_links("links of GPUs", found, hosts)


def all_pairs(world_size: int) -> list[list[tuple[int, int]]]:
    """Rounds in which each rank has one partner at most; every pair meets once."""
    num = world_size + world_size % 2  # an odd one out has the partner that is not there
    rounds = []
    for turn in range(num - 1):
        pairs = [(turn, num - 1)]
        pairs += [((turn + k) % (num - 1), (turn - k) % (num - 1)) for k in range(1, num // 2)]
        rounds.append([(min(p), max(p)) for p in pairs if max(p) < world_size])
    return rounds


def neighbours(hosts: Sequence[str]) -> list[list[tuple[int, int]]]:
    """Rounds of rings within nodes and between them: each NCCL pair costs memory."""
    world_size, rounds = len(hosts), []
    for distance in sorted({1, max(map(hosts.count, hosts))}):
        for parity in (0, 1):
            lows = [r for r in range(world_size - distance) if r // distance % 2 == parity]
            rounds.append([(low, low + distance) for low in lows])
    return rounds


def judge_links(name: str, found: Sequence[Link], hosts: Sequence[str]) -> Iterator[Finding]:
    """Name ranks most of whose links are slow, then the slow pairs that are left."""
    within = [link for link in found if hosts[link.low] == hosts[link.high]]
    between = [link for link in found if hosts[link.low] != hosts[link.high]]
    slow = [*slow_links(within), *slow_links(between)]
    usual = _pace(usual_link(between or within))
    if not slow:
        yield well(name, f"{len(found):,} pairs, {usual}")
    while slow:
        rank = culprit(slow, found)
        group = [link for link in slow if rank in (None, link.low, link.high)]
        slow = [link for link in slow if link not in group]
        partners = f"{len(group)} others" if rank is not None else _pairs(group)
        text = f"slow to {partners}: {_pace(usual_link(group))}; usual are {usual}"
        mend = "compare cables, switch ports, MTU and NCCL_SOCKET_IFNAME, or exclude the node"
        ranks = sorted({each for link in group for each in (link.low, link.high)})
        yield trouble(name, text, mend, ranks if rank is None else [rank])


def slow_links(found: Sequence[Link]) -> list[Link]:
    """Those that are far behind the faster half, or too slow in any company."""
    if not found:
        return []
    usual = usual_link(found)
    longest = min(MAX_LATENCY_S, max(LATENCY_S, FACTOR * usual.latency_s))
    least = max(MIN_BYTES_PER_S, min(BYTES_PER_S, usual.bytes_per_s / FACTOR))
    return [link for link in found if link.latency_s > longest or link.bytes_per_s < least]


def usual_link(found: Sequence[Link]) -> Link:
    """Medians of the faster half."""
    half = (len(found) + 1) // 2
    latencies = sorted(link.latency_s for link in found)[:half]
    rates = sorted((link.bytes_per_s for link in found), reverse=True)[:half]
    return Link(-1, -1, median(latencies), median(rates))


def culprit(slow: Sequence[Link], found: Sequence[Link]) -> int | None:
    """The rank that most of the slow links have in common, if most of its links are slow."""
    num_slow, num_all = (
        Counter(rank for link in of for rank in (link.low, link.high)) for of in (slow, found)
    )
    (rank, most), *others = num_slow.most_common(2)
    is_alone = most > max((count for _, count in others), default=0)
    return rank if is_alone and most > num_all[rank] / 2 else None


def _pairs(group: Sequence[Link]) -> str:
    named = ", ".join(f"{link.low} and {link.high}" for link in group[:MAX_NAMED])
    more = f" and {len(group) - MAX_NAMED} more pairs" if len(group) > MAX_NAMED else ""
    return f"each other ({named}{more})"


def _pace(link: Link) -> str:
    return f"{1000 * link.latency_s:,.2f} ms and {link.bytes_per_s / 1e6:,.0f} MB/s"


def _measured(rounds: Sequence[Sequence[tuple[int, int]]], buffer: torch.Tensor) -> list[Link]:
    """All links that were measured, on every rank. All ranks must call this."""
    rank, mine = distributed.rank(), []
    for pairs in rounds:
        for low, high in pairs:
            if rank in (low, high):
                mine.append(_measure(low, high, buffer))
    of_ranks = distributed.gather([asdict(link) for link in mine if link.low == rank])
    return [Link(**link) for links_of_rank in of_ranks for link in links_of_rank]


def _measure(low: int, high: int, buffer: torch.Tensor) -> Link:
    """By the clock of the lower rank; the pings before them let transfers begin together."""
    pings = [_round_trip_s(low, high, buffer[:8]) for _ in range(NUM_PINGS)]
    transfers = [_round_trip_s(low, high, buffer) for _ in range(NUM_TRANSFERS)]
    return Link(low, high, min(pings) / 2, 2 * buffer.numel() / min(transfers))


def _round_trip_s(low: int, high: int, buffer: torch.Tensor) -> float:
    began = time.monotonic()
    if distributed.rank() == low:
        dist.send(buffer, high)
        dist.recv(buffer, high)
    else:
        dist.recv(buffer, low)
        dist.send(buffer, low)
    if buffer.is_cuda:
        torch.cuda.synchronize()
    return max(time.monotonic() - began, 1e-9)
