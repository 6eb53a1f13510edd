"""Bandwidth of the collectives that training uses, by size, among all ranks."""

from collections.abc import Callable, Iterator
from statistics import median

import torch
import torch.distributed as dist
from torch import Tensor

from mixer_dist import distributed
from mixer_dist.errors import RefusedError
from mixer_dist.operations.bench.measured import Figure, Measured
from mixer_dist.operations.bench.stopwatch import seconds_of

SIZES = tuple(2**power for power in range(10, 29, 3))
"""Bytes of the whole tensor."""
FP32_BYTES = 4

Collective = Callable[[Tensor, Tensor], object]
"""Of a whole tensor and of a rank's part of it."""

COLLECTIVES: dict[str, tuple[Collective, int]] = {
    "all_reduce": (lambda whole, part: dist.all_reduce(whole), 2),
    "all_gather": (lambda whole, part: dist.all_gather_into_tensor(whole, part), 1),
    "reduce_scatter": (lambda whole, part: dist.reduce_scatter_tensor(part, whole), 1),
}
"""With how often each byte but a rank's own crosses its link."""


def check_ranks() -> None:
    """RefusedError where a rank is alone."""
    if distributed.placement().world_size == 1:
        raise RefusedError(
            "bench collectives needs at least 2 ranks, and this process is alone: start it with "
            "torchrun or srun"
        )


def measure_collectives(num_times: int) -> Measured:
    """Each collective at each size. All ranks must call this."""
    figures = tuple(
        figure
        for name in COLLECTIVES
        for num_bytes in SIZES
        for figure in _figures(name, num_bytes, num_times)
    )
    num_nodes = len(set(distributed.hosts()))
    is_on_gpus = distributed.device().type == "cuda"
    return Measured(
        f"Collectives: {distributed.world_size()} ranks on {num_nodes} nodes, tensors on "
        f"{distributed.device().type}; bus bandwidth of a rank, medians of {num_times}.",
        figures,
        link_rates(figures, num_nodes) if is_on_gpus else {},  # a plan is one for GPUs
    )


def _figures(name: str, num_bytes: int, num_times: int) -> Iterator[Figure]:
    collective, crossings = COLLECTIVES[name]
    world_size = distributed.world_size()
    num_elements = num_bytes // FP32_BYTES // world_size
    part = torch.zeros(num_elements, device=distributed.device())
    whole = torch.zeros(world_size * num_elements, device=distributed.device())
    mine = median(seconds_of(lambda: collective(whole, part), num_times, name))
    seconds = max(distributed.gather(mine))
    moved = crossings * (world_size - 1) / world_size * whole.numel() * FP32_BYTES
    title = f"{name.replace('_', '-')} of {num_bytes / 1024:,.0f} KiB"
    key = f"{name}_{num_bytes}"
    yield Figure(f"{key}_s", f"{title}, each", seconds, "ms", 1e-3)
    yield Figure(f"{key}_bytes_per_s", title, moved / seconds, "GB/s", 1e9)


def link_rates(figures: tuple[Figure, ...], num_nodes: int) -> dict[str, float]:
    """The best bandwidth of an all-reduce, and the latency of the smallest."""
    values = {figure.key: figure.value for figure in figures}
    best = max(values[f"all_reduce_{size}_bytes_per_s"] for size in SIZES)
    link = "node_bytes_per_s" if num_nodes == 1 else "network_bytes_per_s"
    return {link: best, "collective_s": values[f"all_reduce_{SIZES[0]}_s"]}
