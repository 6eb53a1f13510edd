"""How long collectives take: rings within nodes and between them, as NCCL models them.

A collective's bytes are those of the whole tensor. Time is latency plus the slower of the two
links; an all-reduce is a reduce-scatter and an all-gather, or a tree where that is quicker.
"""

from dataclasses import dataclass
from math import ceil, log2

from mixer_dist.operations.plan.cards import Card
from mixer_dist.operations.plan.setup import Setup


@dataclass(frozen=True)
class Group:
    """Ranks that communicate: so many nodes, with so many of their GPUs each."""

    num_nodes: int
    ranks_per_node: int

    @property
    def num_ranks(self) -> int:
        """All of them."""
        return self.num_nodes * self.ranks_per_node


def groups(mesh: tuple[int, int], card: Card) -> tuple[Group, Group]:
    """Of the ranks that hold copies, and of those that share one, which are neighbours."""
    copies, shards = mesh
    sharing = _neighbours(shards, card.gpus_per_node)
    if sharing.num_nodes > 1:
        return Group(copies, 1), sharing
    sets_per_node = max(1, card.gpus_per_node // shards)
    within = min(copies, sets_per_node)
    return Group(ceil(copies / within), within), sharing


def _neighbours(num_ranks: int, per_node: int) -> Group:
    within = min(num_ranks, per_node)
    return Group(ceil(num_ranks / within), within)


def gather_s(num_bytes: float, group: Group, setup: Setup) -> float:
    """Seconds of an all-gather, or of a reduce-scatter."""
    if group.num_ranks == 1:
        return 0.0
    return setup.rates.collective_s + _ring_s(group, setup) + _transfer_s(num_bytes, group, setup)


def all_reduce_s(num_bytes: float, group: Group, setup: Setup) -> float:
    """Seconds of an all-reduce."""
    if group.num_ranks == 1:
        return 0.0
    latency = min(2 * _ring_s(group, setup), _tree_s(group, setup))
    return setup.rates.collective_s + latency + 2 * _transfer_s(num_bytes, group, setup)


def _transfer_s(num_bytes: float, group: Group, setup: Setup) -> float:
    """Each rank takes in what it lacks; so does each node, through all its network cards."""
    ranks, nodes = group.num_ranks, group.num_nodes
    to_rank = setup.rates.node_link(setup.card)
    to_node = setup.rates.network_link(setup.card) * group.ranks_per_node
    within = num_bytes * (ranks - 1) / ranks / to_rank if nodes < ranks else 0.0
    return max(within, num_bytes * (nodes - 1) / nodes / to_node)


def _ring_s(group: Group, setup: Setup) -> float:
    rates, between = setup.rates, group.num_nodes - 1
    return between * rates.network_hop_s + (group.num_ranks - 1 - between) * rates.node_hop_s


def _tree_s(group: Group, setup: Setup) -> float:
    """Up and down again: through each node in turn, between nodes in halves."""
    within = (group.ranks_per_node - 1) * setup.rates.node_hop_s
    between = ceil(log2(group.num_nodes)) * setup.rates.network_hop_s
    return 2 * (within + between)
