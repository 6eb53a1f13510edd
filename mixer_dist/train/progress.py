"""What a run shows of itself: metrics each step, a log line each interval, events."""

import logging
import math
import time
from collections import Counter
from dataclasses import asdict, dataclass, field
from datetime import timedelta
from typing import Any, Self

import psutil

from mixer_dist import distributed
from mixer_dist.data.batch import Batch
from mixer_dist.errors import DataError, MixerError, NumericsError, PreemptedError
from mixer_dist.metrics import EventLog, Line, MetricsLog
from mixer_dist.train.engine import StepResult
from mixer_dist.train.start import Run

MIN_SAMPLES = 10_000  # below which max_bad_fraction is not taken literally

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class StepRecord:
    """One step as this rank saw it; the tensors are read once an interval."""

    batch_step: int
    next_position: int
    digest: int
    keys: tuple[str, ...]
    result: StepResult
    learning_rate: float


@dataclass
class Progress:
    """Collects steps, and once an interval sums them over ranks and writes them down."""

    run: Run
    events: EventLog = field(init=False)
    num_bad_samples: int = field(init=False)
    """Over all ranks and attempts, up to the last report."""
    _metrics: MetricsLog = field(init=False)
    _records: list[StepRecord] = field(default_factory=list)
    _bad_by_shard: Counter[str] = field(default_factory=Counter)
    _num_new_bad: int = 0
    _consecutive_skips: int = 0
    _began: float = field(default_factory=time.monotonic)
    _waited_s: float = 0.0
    _tensorboard: Any = None

    def __post_init__(self) -> None:
        run, attempt = self.run, self.run.attempt.attempt
        self.num_bad_samples = run.state.num_bad_samples
        self._metrics = MetricsLog(run.storage, run.run_dir, attempt)
        self.events = EventLog(run.storage, run.run_dir, attempt, distributed.rank())
        if distributed.is_main():
            self._tensorboard = _tensorboard(run)
            kind = "resume" if run.checkpoint else "start"
            self.events.write(
                kind, step=run.state.step, world_size=distributed.world_size(),
                began=_process_began(),
            )  # fmt: skip

    def __enter__(self) -> Self:
        return self

    def __exit__(self, _: object, error: BaseException | None, __: object) -> None:
        """Write what is left, and why the run ends if that is no request to stop."""
        is_failure = isinstance(error, MixerError) and not isinstance(error, PreemptedError)
        if is_failure and distributed.is_main():
            self.events.write("fail", reason=str(error))
        self.close()

    def waited(self, seconds: float) -> None:
        """Count time that the step waited for data."""
        self._waited_s += seconds

    def add(self, batch: Batch, result: StepResult, learning_rate: float) -> None:
        """Take a step's results, without reading them."""
        self._records.append(
            StepRecord(
                batch.step, batch.next_position, batch.digest, batch.keys, result, learning_rate
            )
        )
        for bad in batch.bad_samples:
            self.events.add("bad_sample", **asdict(bad))
            self._bad_by_shard[bad.shard] += 1
            self._num_new_bad += 1

    def report(self) -> None:
        """Sum the interval over ranks and write it down. All ranks must call this."""
        if not self._records:
            return
        self.events.flush_soon()
        lines = self._reduced_lines()
        if distributed.is_main():
            self._write(lines)
        self._check_updates(lines)
        self._check_bad_samples(lines[-1]["position"])
        self._records, self._num_new_bad, self._waited_s = [], 0, 0.0
        self._began = time.monotonic()

    def flush_metrics(self) -> None:
        """Have all metrics on storage, as before a checkpoint is committed; rank 0 alone."""
        self._metrics.flush()

    def finish(self) -> None:
        """Record that the last step is done."""
        if distributed.is_main():
            self.events.write("finish", step=self.run.config.total_steps)

    def close(self) -> None:
        """Write what is left."""
        self.events.close()
        if distributed.is_main():
            self._metrics.close()
            if self._tensorboard:
                self._tensorboard.close()

    def _reduced_lines(self) -> list[Line]:
        """The interval's metrics lines, the same on every rank."""
        losses = [float(record.result.loss) for record in self._records]
        *losses, waited_s = distributed.sum_over_ranks([*losses, self._waited_s])
        digests = [record.digest for record in self._records]
        *digests, num_new_bad = distributed.sum_words([*digests, self._num_new_bad])
        self.num_bad_samples += num_new_bad
        seconds = max(time.monotonic() - self._began, 1e-9)
        num_images = len(self._records) * self.run.config.global_batch_size
        shared = {
            "images_per_s": num_images / seconds,
            "data_wait_share": waited_s / distributed.world_size() / seconds,
            "time": time.time(),
        }
        return [
            self._line(record, loss, digest) | shared
            for record, loss, digest in zip(self._records, losses, digests, strict=True)
        ]

    def _line(self, record: StepRecord, loss: float, digest: int) -> Line:
        return {
            "attempt": self.run.attempt.attempt,
            "step": record.batch_step + 1,
            "position": record.next_position,
            "global_batch_size": self.run.config.global_batch_size,
            "loss": loss,
            "learning_rate": record.learning_rate,
            "grad_norm": float(record.result.grad_norm),
            "batch_digest": f"{digest:016x}",
            "update_skipped": bool(record.result.update_skipped),
        }

    def _write(self, lines: list[Line]) -> None:
        for line in lines:
            self._metrics.add(line)
            if self._tensorboard:
                for name in ("loss", "learning_rate", "grad_norm", "images_per_s"):
                    self._tensorboard.add_scalar(name, line[name], line["step"])
        logger.info(self._log_line(lines[-1]))

    def _log_line(self, line: Line) -> str:
        config = self.run.config
        left_s = (config.total_steps - line["step"]) * config.global_batch_size
        eta = timedelta(seconds=round(left_s / line["images_per_s"]))
        return (
            f"step {line['step']}/{config.total_steps}  loss {line['loss']:.4f}  "
            f"lr {line['learning_rate']:.2e}  grad norm {line['grad_norm']:.3f}  "
            f"{line['images_per_s']:.0f} images/s  data wait {line['data_wait_share']:.0%}  "
            f"ETA {eta}"
        )

    def _check_updates(self, lines: list[Line]) -> None:
        """Name each skipped update's culprits; NumericsError after too many in a row."""
        for line, record in zip(lines, self._records, strict=True):
            self._consecutive_skips = self._consecutive_skips + 1 if line["update_skipped"] else 0
            if not line["update_skipped"]:
                continue
            culprit = self._culprits(record)
            if distributed.is_main():
                logger.warning("step %d: update skipped, non-finite: %s", line["step"], culprit)
                self.events.write("skip", step=line["step"], culprit=culprit)
            if self._consecutive_skips >= self.run.config.max_consecutive_skips:
                raise NumericsError(
                    f"{self._consecutive_skips} steps in a row up to step {line['step']} had a "
                    f"non-finite gradient; the last: {culprit}. Lower optimizer.learning_rate or "
                    "look at these samples"
                )

    def _culprits(self, record: StepRecord) -> str:
        """Ranks whose own loss was not finite, with their first sample keys. Collective."""
        is_mine = not math.isfinite(float(record.result.loss))
        keys = ", ".join(record.keys[:3]) + ("…" if len(record.keys) > 3 else "")
        found = distributed.gather(f"rank {distributed.rank()} ({keys})" if is_mine else "")
        return "; ".join(filter(None, found)) or "the gradient, at a finite loss on every rank"

    def _check_bad_samples(self, position: int) -> None:
        limit = self.run.config.data.max_bad_fraction * max(position, MIN_SAMPLES)
        if self.num_bad_samples <= limit:
            return
        counts: Counter[str] = Counter()
        for of_rank in distributed.gather(dict(self._bad_by_shard)):
            counts.update(of_rank)
        worst = counts.most_common(1)
        named = f"; worst shard: {worst[0][0]} with {worst[0][1]}" if worst else ""
        raise DataError(
            f"{self.num_bad_samples} of {position} samples are damaged, more than "
            f"data.max_bad_fraction={self.run.config.data.max_bad_fraction:g} allows{named}"
        )


def _process_began() -> float:
    """When this process was started, in seconds since 1970."""
    # Both of psutil's numbers hold the same boot time, which is known to a second only.
    since_boot_s = psutil.Process().create_time() - psutil.boot_time()
    return time.time() - time.clock_gettime(time.CLOCK_BOOTTIME) + float(since_boot_s)


def _tensorboard(run: Run) -> Any:
    """A writer of scalars, where the configuration asks for one."""
    if not run.config.logging.tensorboard:
        return None
    from torch.utils.tensorboard import SummaryWriter

    return SummaryWriter(run.run_dir.tensorboard, purge_step=run.state.step + 1)
