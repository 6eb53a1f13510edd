"""What a rank computes on, and how much of its memory was used."""

import resource

import torch

from mixer_dist import distributed
from mixer_dist.operations.plan.cards import Card, card_of_device


def device_name() -> str:
    """What computes here."""
    if distributed.device().type == "cuda":
        return torch.cuda.get_device_name(distributed.device())
    return f"CPU with {torch.get_num_threads()} threads"


def card_here() -> Card | None:
    """The GPU of this rank, where it is a known one."""
    is_gpu = distributed.device().type == "cuda"
    return card_of_device(device_name()) if is_gpu else None


def peak_memory_bytes() -> int:
    """The most that was held so far: of the GPU by tensors, else by the process."""
    if distributed.device().type == "cuda":
        return torch.cuda.max_memory_allocated()
    return 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
