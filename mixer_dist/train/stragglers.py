"""Ranks that are slower than the others, and at what.

Wall time does not tell: fast ranks wait for slow ones inside collectives. What is compared is the
wait for data, and one matrix product of a block, in which no rank waits for another.
"""

import statistics
import time
import weakref
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from mixer_dist import distributed
from mixer_dist.config import EngineConfig
from mixer_dist.models.mixer import MlpMixer
from mixer_dist.train.engine import Engine

SLOW = 1.5  # times the median of all ranks
NOTABLE_S = 1e-3  # below which a forward's time is the machine's noise
STARVED, FED = 0.20, 0.05  # shares of an interval spent waiting for data
SILENT_INTERVALS = 10  # before the same rank is named again


def timed_module(model: MlpMixer, config: EngineConfig) -> nn.Module:
    """A large matrix product, in whose forward no rank waits for another, outside compiled code."""
    if config.compile:
        return model.stem
    fc1: nn.Module = model.blocks[0].channel_mixing.fc1  # type: ignore[union-attr, assignment]
    return fc1


class ForwardTimer:
    """Times an engine's timed module, hooked in after the engine has hooked in its gathering."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        # Not kept alive: an engine that was too large for memory has to go as a whole.
        self._module: Callable[[], nn.Module | None] = lambda: None
        self._began: Any = None
        self._spans: list[tuple[Any, Any]] = []
        self._follow()

    def take(self) -> float:
        """The median since the last call, in seconds; waits for the device."""
        seconds = [_seconds(*span) for span in self._spans]
        self._spans = []
        self._follow()
        return statistics.median(seconds) if seconds else 0.0

    def _follow(self) -> None:
        """Hook into the module, which is another one once micro-batches have shrunk."""
        module = self._engine.timed_module
        if module is not self._module():
            self._module = weakref.ref(module)
            module.register_forward_pre_hook(self._begin)
            module.register_forward_hook(self._end, prepend=True)  # before anything is freed

    def _begin(self, *_: Any) -> None:
        self._began = _now()

    def _end(self, *_: Any) -> None:
        self._spans.append((self._began, _now()))


def _now() -> Any:
    """A moment on the device's own clock, which is not waited for."""
    if distributed.device().type != "cuda":
        return time.perf_counter()
    event: Any = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
    event.record()
    return event


def _seconds(began: Any, ended: Any) -> float:
    if isinstance(began, float):
        return float(ended - began)
    ended.synchronize()
    return float(began.elapsed_time(ended)) / 1000


@dataclass(frozen=True)
class Straggler:
    """A rank that holds up the others."""

    rank: int
    phase: str
    """compute or data"""
    value: float
    """Seconds of a forward, or the share of time spent waiting."""
    median: float
    """Of all ranks."""

    @property
    def factor(self) -> float:
        """How many times the median."""
        return self.value / self.median if self.median else float("inf")

    def __str__(self) -> str:
        if self.phase == "data":
            return f"waits for data {self.value:.0%} of the time, the median rank {self.median:.0%}"
        return (
            f"computes slowly: {self.factor:.1f} times the median of all ranks for the same "
            f"product ({1000 * self.value:.1f} ms, {1000 * self.median:.1f} ms)"
        )


def stragglers(compute_s: Sequence[float], wait_shares: Sequence[float]) -> list[Straggler]:
    """Who is slow in an interval, from each rank's measures."""
    usual_s, usual_share = statistics.median_low(compute_s), statistics.median_low(wait_shares)
    return [
        Straggler(rank, "compute", seconds, usual_s)
        for rank, seconds in enumerate(compute_s)
        if seconds > max(SLOW * usual_s, usual_s + NOTABLE_S)
    ] + [
        Straggler(rank, "data", share, usual_share)
        for rank, share in enumerate(wait_shares)
        if share > STARVED and usual_share < FED
    ]


class NamedStragglers:
    """Names a rank that is slow in two intervals in a row, and again only after some more."""

    def __init__(self) -> None:
        self._interval = 0
        self._before: set[tuple[int, str]] = set()
        self._silent_until: dict[tuple[int, str], int] = {}

    def new(self, found: Sequence[Straggler]) -> list[Straggler]:
        """Those of an interval that are to be named now."""
        self._interval += 1
        slow = {(s.rank, s.phase): s for s in found}
        lasting = [s for key, s in slow.items() if key in self._before]
        self._before = set(slow)
        due = [s for s in lasting if self._interval >= self._silent_until.get((s.rank, s.phase), 0)]
        again = self._interval + SILENT_INTERVALS
        self._silent_until |= {(s.rank, s.phase): again for s in due}
        return due
