"""How long something takes on this rank's device."""

import time
from collections.abc import Callable
from itertools import pairwise

import torch

from mixer_dist import distributed
from mixer_dist.progress import watch


def seconds_of(action: Callable[[], object], num_times: int, unit: str = "steps") -> list[float]:
    """Seconds of each call, by the device's own events on a GPU, else by the wall clock.

    A first call, which may compile and claim memory, is not counted.
    """
    action()
    if distributed.device().type == "cuda":
        return _seconds_on_gpu(action, num_times)
    return [_wall_seconds(action) for _ in watch(range(num_times), num_times, unit)]


def _wall_seconds(action: Callable[[], object]) -> float:
    began = time.perf_counter()
    action()
    return time.perf_counter() - began


def _seconds_on_gpu(action: Callable[[], object], num_times: int) -> list[float]:
    """Calls are issued without waiting, as in training."""
    marks = [
        torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
        for _ in range(num_times + 1)
    ]
    marks[0].record()
    for mark in marks[1:]:
        action()
        mark.record()
    torch.cuda.synchronize()
    return [before.elapsed_time(after) / 1e3 for before, after in pairwise(marks)]
