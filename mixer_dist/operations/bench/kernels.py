"""Where a step's time goes: a trace for a viewer, and the most expensive kernels in plain words."""

import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from torch.profiler import ProfilerActivity, profile

from mixer_dist.errors import MixerError

NUM_STEPS = 2
NUM_SHOWN = 10

PLAIN_WORDS = (
    (r"nccl|gloo|c10d|all_reduce|all_gather|reduce_scatter|broadcast", "between ranks"),
    (r"gemm|gemv|cutlass|cublas|nvjet|\b(add)?mm\b|\bbmm\b", "matrix product"),
    (r"layer_?norm", "LayerNorm"),
    (r"gelu|sigmoid|tanh", "GELU"),
    (r"adam|sgd", "update of the weights"),
    (r"memcpy|copy|clone|to_copy|\bcat\b", "copy"),
    (r"norm|clip", "norm of gradients"),
    (r"sum|reduce", "sum, as of a bias' gradient"),
    (r"fill|zero|memset", "memory set to a value"),
    (r"add|mul|div|sub|elementwise|pointwise|triton", "element by element"),
)


class Kernel(NamedTuple):
    """What was called by one name."""

    name: str
    seconds: float
    """A step, on the device."""
    calls: float
    """A step."""
    share: float
    """Of all."""


def profiled(action: Callable[[], object], trace: str | None) -> list[Kernel]:
    """Kernels of a few calls, the most expensive first; a Chrome trace of them as `trace`."""
    on_gpu = torch.cuda.is_available()
    activities = [ProfilerActivity.CPU, *[ProfilerActivity.CUDA] * on_gpu]
    with profile(activities=activities) as recorded:
        for _ in range(NUM_STEPS):
            action()
    if trace:
        _export(recorded, trace)
    found = [
        (event.key, event.self_device_time_total if on_gpu else event.self_cpu_time_total, event)
        for event in recorded.key_averages()
        if not on_gpu or event.device_type.name == "CUDA"
    ]
    total = sum(micros for _, micros, _ in found) or 1.0
    return [
        Kernel(name, micros / 1e6 / NUM_STEPS, event.count / NUM_STEPS, micros / total)
        for name, micros, event in sorted(found, key=lambda row: -row[1])
    ]


def _export(recorded: profile, trace: str) -> None:
    """Write a trace; MixerError where none came about, which the profiler keeps to itself."""
    recorded.export_chrome_trace(trace)
    if not Path(trace).is_file():
        raise MixerError(f"--profile: cannot write {trace}; name a file in another folder")


def kernel_lines(kernels: Sequence[Kernel]) -> list[str]:
    """The most expensive, a line each."""
    shown = kernels[:NUM_SHOWN]
    return [
        f"{kernel.share:6.1%}  {1e3 * kernel.seconds:10,.2f} ms  {kernel.calls:6,.0f} calls  "
        f"{plain_words(kernel.name)} ({kernel.name[:60]})"
        for kernel in shown
    ]


def plain_words(name: str) -> str:
    """What a kernel does, by its name."""
    found = (words for pattern, words in PLAIN_WORDS if re.search(pattern, name, re.IGNORECASE))
    return next(found, "other")
