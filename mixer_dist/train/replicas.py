"""Whether ranks that hold the same values hold the same bits, looked at before each save.

A bit that flipped in one rank's memory would else go into a checkpoint, or train on unseen.
"""

import hashlib
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from mixer_dist import distributed
from mixer_dist.errors import NumericsError
from mixer_dist.liveness.standing import rank_names

CHUNK = 2**22  # elements at a time: their words and weights take 16 bytes each
ODD = -0x61C8864680B583EB  # 2^64 divided by the golden ratio, odd, as a signed word


class Difference(NamedTuple):
    """Replicas that are not the same."""

    ranks: tuple[int, ...]
    """Those that differ from most of the others, or all where there is no majority."""
    tensor: str
    """The first one that differs."""


def checksum(tensor: Tensor) -> int:
    """A signed 64-bit word of a tensor's bits and their places; one flipped bit always changes it.

    Each element's bits are multiplied by an odd number that depends on its place, modulo 2^64.
    """
    words = tensor.detach().reshape(-1).view(_integers(tensor.element_size()))
    total = torch.zeros((), dtype=torch.int64, device=tensor.device)
    for start in range(0, len(words), CHUNK):
        part = words[start : start + CHUNK].to(torch.int64)
        places = torch.arange(start, start + len(part), device=tensor.device)
        total += (part * (places * ODD | 1)).sum()
    return int(total)


def _integers(num_bytes: int) -> torch.dtype:
    return {2: torch.int16, 4: torch.int32, 8: torch.int64}[num_bytes]


def check_replicas(
    held: Iterable[tuple[str, Tensor]], replica_of: int, hosts: Sequence[str]
) -> None:
    """NumericsError where replicas differ, PeerError off rank 0. All ranks must call this.

    `held` names this rank's tensors, `replica_of` the set of ranks that hold the same ones.
    """
    sums = [(name, checksum(tensor)) for name, tensor in held]
    found = distributed.gather([replica_of, hashlib.sha256(repr(sums).encode()).hexdigest()])
    if not differing(found):
        return
    found = distributed.gather([replica_of, sums])
    distributed.fail_together(NumericsError(_sentence(first_difference(found), hosts)))


def differing(found: Sequence[tuple[Any, Any]]) -> tuple[int, ...]:
    """Ranks whose value is not that of most others of their set, from each rank's (set, value)."""
    ranks: list[int] = []
    for replica_of in dict.fromkeys(key for key, _ in found):
        members = {rank: v for rank, (key, v) in enumerate(found) if key == replica_of}
        counts = Counter(members.values())
        usual, count = counts.most_common(1)[0]
        if len(counts) > 1:
            has_majority = 2 * count > len(members)
            ranks += [rank for rank, v in members.items() if not has_majority or v != usual]
    return tuple(ranks)


def first_difference(found: Sequence[tuple[Any, Sequence[tuple[str, int]]]]) -> Difference:
    """Who differs, and in which tensor first, from each rank's (set, checksums by name)."""
    for index in range(max(len(sums) for _, sums in found)):
        at = [(key, sums[index][1] if index < len(sums) else 0) for key, sums in found]
        if ranks := differing(at):
            return Difference(ranks, found[ranks[0]][1][index][0])
    raise AssertionError("checksums differ together, but not one by one")


def _sentence(difference: Difference, hosts: Sequence[str]) -> str:
    ranks = difference.ranks
    names = ", ".join(rank_names([rank], hosts) for rank in ranks)
    verb = "holds other bits" if len(ranks) == 1 else "hold different bits"
    return (
        f"{names} {verb} in {difference.tensor}, of which all replicas must be equal: nothing is "
        "saved. Start the run again, which goes on from the last checkpoint; if it happens twice "
        "on a machine, leave that machine out"
    )
