"""The process group of a run: joining, leaving, who is who."""

import resource
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta

import torch
import torch.distributed as dist

from mixer_dist.distributed.placement import (
    Placement,
    device,
    placement,
    set_for_deepspeed,
    set_main_address,
)
from mixer_dist.errors import MixerError, PreemptedError


@contextmanager
def connected(timeout_s: float) -> Iterator[None]:
    """Join the process group of this run, leave it at the end. All ranks must call this."""
    place = placement()
    _allow_open_files()
    backend = "gloo"
    if device().type == "cuda":
        torch.cuda.set_device(device())
        backend = "cpu:gloo,cuda:nccl"
    if place.world_size == 1:  # needs no port
        store = torch.distributed.HashStore()  # type: ignore[attr-defined]
        dist.init_process_group(backend, store=store, rank=0, world_size=1)
    else:
        _join(place, backend, timeout_s)
    try:
        yield
    except BaseException as error:
        # NCCL's end waits for the other ranks, which may never come, and this process ends anyway.
        is_agreed = getattr(error, "exit_code", None) == PreemptedError.exit_code
        if is_agreed or place.world_size == 1 or device().type == "cpu":
            dist.destroy_process_group()
        raise
    dist.destroy_process_group()


def _allow_open_files() -> None:
    """As many as may be: rank 0 of 256 holds over 1,000 connections, the usual limit."""
    most = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))


def _join(place: Placement, backend: str, timeout_s: float) -> None:
    """Wait for the other ranks; RefusedError, MixerError where they do not come."""
    address = set_main_address()
    timeout = timedelta(seconds=timeout_s)
    try:
        dist.init_process_group(
            backend, rank=place.rank, world_size=place.world_size, timeout=timeout
        )
    except (dist.DistError, RuntimeError) as error:  # of the store, or of gloo
        raise MixerError(
            f"rank {place.rank} could not join the other {place.world_size - 1} at {address} "
            f"within {timeout_s:g} s: see that every rank was started, and that this address can "
            f"be reached ({str(error).splitlines()[0]})"
        ) from error


def rank() -> int:
    """This process's rank; 0 when it is alone."""
    return dist.get_rank() if dist.is_initialized() else placement().rank


def world_size() -> int:
    """How many ranks train together."""
    return dist.get_world_size() if dist.is_initialized() else placement().world_size


def is_main() -> bool:
    """Whether this is rank 0, which alone prints and writes what all share."""
    return rank() == 0


def background_group(timeout_s: float) -> dist.ProcessGroup | None:
    """A group of all ranks for a thread of its own, through gloo. All ranks must call this."""
    if world_size() == 1:
        return None
    group: dist.ProcessGroup = dist.new_group(backend="gloo", timeout=timedelta(seconds=timeout_s))
    return group


def prepare_deepspeed() -> None:
    """Have DeepSpeed use what is here, and compile nothing that training never calls."""
    set_for_deepspeed()
    warnings.filterwarnings("ignore", category=FutureWarning, module="torch.distributed")
    from deepspeed.ops import __compatible_ops__

    # init_distributed would build this operator for 100 s; a kill meanwhile leaves a lock on which
    # every later start hangs.
    __compatible_ops__["deepspeed_shm_comm"] = False
