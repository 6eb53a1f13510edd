"""What is said of updates that were skipped and of values that spike, and when it is too much."""

import logging
import math
from collections.abc import Iterator, Sequence

import torch

from mixer_dist import distributed
from mixer_dist.errors import NumericsError
from mixer_dist.metrics import EventLog, Line, newest_lines
from mixer_dist.train.spikes import recent_values, robust_z
from mixer_dist.train.start import Run

QUANTITIES = ("loss", "grad_norm")

logger = logging.getLogger(__name__)


def recent_updates(run: Run) -> list[Line]:
    """The lines of the last updates before this start, oldest first. All ranks must call this.

    None where spikes are tolerated. They have been written before their checkpoint was committed.
    """
    if run.config.numerics.spike_z is None:
        return []
    lines: list[Line] = distributed.on_main(lambda: _recent_lines(run))
    return lines


def _recent_lines(run: Run) -> list[Line]:
    found: list[Line] = []
    for line in newest_lines(run.storage, run.run_dir, run.state.step):
        if len(found) == run.config.numerics.window:
            break
        if not line["update_skipped"]:
            found.append({name: line[name] for name in QUANTITIES})
    return found[::-1]


class UpdateChecks:
    """Follows the updates of a run, interval by interval."""

    def __init__(self, run: Run, events: EventLog, recent: Sequence[Line]) -> None:
        """`recent` are the lines of the last updates before."""
        self._config = run.config
        self._events = events
        self._num_in_a_row = 0
        window = run.config.numerics.window
        self._recent = {
            name: recent_values([line[name] for line in recent], window, torch.device("cpu"))
            for name in QUANTITIES
        }

    def check(self, line: Line, local_loss: float, keys: Sequence[str]) -> None:
        """Tell what is wrong with a step; NumericsError after too many. All ranks must call this.

        `local_loss` and `keys` are this rank's.
        """
        spikes = list(self._spikes(line))
        for text in spikes if distributed.is_main() else ():
            logger.warning("step %d: spike of the %s", line["step"], text)
            self._events.write("spike", step=line["step"], spike=text)
        self._num_in_a_row = self._num_in_a_row + 1 if line["update_skipped"] else 0
        if not line["update_skipped"]:
            return
        is_finite = math.isfinite(line["grad_norm"])
        culprit = ", ".join(spikes) if is_finite else _culprits(local_loss, keys)
        reason = line["skip_reason"]
        if distributed.is_main():
            logger.warning("step %d: update skipped, %s: %s", line["step"], reason, culprit)
            self._events.write("skip", step=line["step"], reason=reason, culprit=culprit)
        if self._num_in_a_row >= self._config.max_consecutive_skips:
            distributed.fail_together(
                NumericsError(
                    f"{self._num_in_a_row} updates in a row up to step {line['step']} were "
                    f"skipped; the last, {reason}: {culprit}. Lower optimizer.learning_rate, look "
                    "at these samples, or leave them out by data.skip_steps"
                )
            )

    def _spikes(self, line: Line) -> Iterator[str]:
        """What of a step lies too far above the updates before, in words."""
        threshold = self._config.numerics.spike_z
        for name, recent in self._recent.items() if threshold else ():
            value = torch.tensor(line[name], dtype=torch.float32)
            z = float(robust_z(value, recent))
            if threshold and z > threshold:
                usual = float(recent.median())
                yield f"{name} {line[name]:.4g}, z = {z:.1f} above the usual {usual:.4g}"
            if not line["update_skipped"]:
                self._recent[name] = torch.cat([recent[1:], value.view(1)])


def _culprits(local_loss: float, keys: Sequence[str]) -> str:
    """Ranks whose own loss was not finite, with their first sample keys. Collective."""
    names = ", ".join(keys[:3]) + ("…" if len(keys) > 3 else "")
    is_mine = not math.isfinite(local_loss)
    found = distributed.gather(f"rank {distributed.rank()} ({names})" if is_mine else "")
    return "; ".join(filter(None, found)) or "the gradient, at a finite loss on every rank"
