"""What it took to come to a step: images seen and GPU-hours; pure."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from mixer_dist.goodput import Span
from mixer_dist.metrics import Line

HOUR_S = 3600.0

Axis = Literal["step", "samples", "gpu_hours"]
Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Effort:
    """Up to a step and with it; None where nothing tells."""

    step: int
    samples: int | None
    """Images that the steps read, of which each counts as often as it was read."""
    gpu_hours: float | None
    """Ranks times hours since the first process, but for the time between two attempts; known to
    an interval of logging."""

    def along(self, axis: Axis) -> float | None:
        """The place on an axis."""
        value: float | None = getattr(self, axis)
        return value


class Efforts:
    """Those of all steps of one run."""

    def __init__(
        self, lines: Sequence[Line], spans: Sequence[Span], world_sizes: Mapping[int, int | None]
    ) -> None:
        """Merged metrics, where the wall time went, and the number of ranks of each attempt."""
        self._steps = np.array([line["step"] for line in lines])
        self._samples = np.cumsum([line["global_batch_size"] for line in lines])
        self._edges, self._used = _gpu_hours(spans, world_sizes)
        times = np.array([line["time"] for line in lines], np.float64)
        self._hours = np.interp(times, self._edges, self._used) if len(self._edges) else times

    @property
    def gpu_hours(self) -> float | None:
        """Of the whole run."""
        return _known(self._used[-1]) if len(self._used) else None

    def at(self, step: int) -> Effort:
        """What the run's checkpoint of a step took."""
        if step == 0:
            return Effort(0, 0, 0.0)
        index = int(np.searchsorted(self._steps, step))
        if index == len(self._steps):
            return Effort(step, None, None)
        return Effort(step, int(self._samples[index]), _known(self._hours[index]))


def _gpu_hours(
    spans: Sequence[Span], world_sizes: Mapping[int, int | None]
) -> tuple[Floats, Floats]:
    """Edges between spans, in seconds since 1970, and the GPU-hours up to each."""
    if not spans:
        return np.zeros(0), np.zeros(0)
    edges = np.array([spans[0].start, *[span.stop for span in spans]])
    ranks = [0 if span.attempt is None else world_sizes.get(span.attempt) for span in spans]
    used = np.cumsum(np.array(ranks, np.float64) * np.diff(edges)) / HOUR_S
    return edges, np.concatenate([[0.0], used])


def _known(hours: float) -> float | None:
    return None if np.isnan(hours) else float(hours)
