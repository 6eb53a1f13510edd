"""Damaged samples: counted over all ranks, and the limit at which a run gives up."""

from collections import Counter
from collections.abc import Iterable
from dataclasses import asdict

from mixer_dist import distributed
from mixer_dist.data.batch import BadSample
from mixer_dist.errors import DataError
from mixer_dist.metrics import EventLog

MIN_SAMPLES = 10_000  # below which max_bad_fraction is not taken literally


class BadSamples:
    """Those of this rank by shard, and the number of all ranks' over the whole run."""

    def __init__(self, events: EventLog, max_fraction: float, total: int) -> None:
        """`total` of the attempts before."""
        self.total = total
        """Over all ranks and attempts, up to the last report."""
        self.num_new = 0
        """Of this rank, since the last report."""
        self._events = events
        self._max_fraction = max_fraction
        self._by_shard: Counter[str] = Counter()

    def add(self, found: Iterable[BadSample]) -> None:
        """Record those of a batch."""
        for bad in found:
            self._events.add("bad_sample", **asdict(bad))
            self._by_shard[bad.shard] += 1
            self.num_new += 1

    def report(self, num_new: int, position: int) -> None:
        """Count all ranks' new ones; DataError where there are too many. All ranks must call this.

        `position` is how many samples the run has read.
        """
        self.total, self.num_new = self.total + num_new, 0
        if self.total <= self._max_fraction * max(position, MIN_SAMPLES):
            return
        counts: Counter[str] = Counter()
        for of_rank in distributed.gather(dict(self._by_shard)):
            counts.update(of_rank)
        worst = counts.most_common(1)
        named = f"; worst shard: {worst[0][0]} with {worst[0][1]}" if worst else ""
        distributed.fail_together(
            DataError(
                f"{self.total} of {position} samples are damaged, more than "
                f"data.max_bad_fraction={self._max_fraction:g} allows{named}"
            )
        )
