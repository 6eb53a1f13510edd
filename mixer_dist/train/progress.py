"""What a run shows of itself: metrics each step, a log line each interval, events."""

import logging
import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any, Self

import psutil

from mixer_dist import distributed
from mixer_dist.data.batch import Batch
from mixer_dist.errors import MixerError, PreemptedError
from mixer_dist.metrics import EventLog, Line, MetricsLog
from mixer_dist.train.bad_samples import BadSamples
from mixer_dist.train.engine import StepResult
from mixer_dist.train.start import Run
from mixer_dist.train.stragglers import ForwardTimer, NamedStragglers, stragglers
from mixer_dist.train.update_checks import UpdateChecks

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
    timer: ForwardTimer
    recent: Sequence[Line] = ()
    """The lines of the last updates before this start."""
    events: EventLog = field(init=False)
    _metrics: MetricsLog = field(init=False)
    _bad_samples: BadSamples = field(init=False)
    _updates: UpdateChecks = field(init=False)
    _stragglers: NamedStragglers = field(default_factory=NamedStragglers)
    _records: list[StepRecord] = field(default_factory=list)
    _began: float = field(default_factory=time.monotonic)
    _waited_s: float = 0.0
    _tensorboard: Any = None

    def __post_init__(self) -> None:
        run, attempt = self.run, self.run.attempt.attempt
        self._metrics = MetricsLog(run.storage, run.run_dir, attempt)
        self.events = EventLog(run.storage, run.run_dir, attempt, distributed.rank())
        max_fraction = run.config.data.max_bad_fraction
        self._bad_samples = BadSamples(self.events, max_fraction, run.state.num_bad_samples)
        self._updates = UpdateChecks(run, self.events, self.recent)
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

    @property
    def num_bad_samples(self) -> int:
        """Over all ranks and attempts, up to the last report."""
        return self._bad_samples.total

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
        self._bad_samples.add(batch.bad_samples)

    def report(self) -> None:
        """Sum the interval over ranks and write it down. All ranks must call this."""
        if not self._records:
            return
        self.events.flush_soon()
        lines, num_new_bad = self._reduced_lines()
        if distributed.is_main():
            self._write(lines)
        for line, record in zip(lines, self._records, strict=True):
            self._updates.check(line, float(record.result.loss), record.keys)
        self._bad_samples.report(num_new_bad, lines[-1]["position"])
        self._records, self._waited_s = [], 0.0
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

    def _reduced_lines(self) -> tuple[list[Line], int]:
        """The interval's metrics lines and new bad samples, the same on every rank."""
        num_steps, world_size = len(self._records), distributed.world_size()
        losses = [float(record.result.loss) for record in self._records]
        seconds = max(time.monotonic() - self._began, 1e-9)
        mine = of_rank([self.timer.take(), self._waited_s / seconds])
        sums = distributed.sum_over_ranks([*losses, *mine])
        losses, compute_s, wait_shares = (
            sums[:num_steps], sums[num_steps::2], sums[num_steps + 1 :: 2],
        )  # fmt: skip
        self._name_stragglers(compute_s, wait_shares)
        digests = [record.digest for record in self._records]
        *digests, num_new_bad = distributed.sum_words([*digests, self._bad_samples.num_new])
        shared = {
            "images_per_s": num_steps * self.run.config.global_batch_size / seconds,
            "data_wait_share": sum(wait_shares) / world_size,
            "time": time.time(),
        }
        lines = [
            self._line(record, loss, digest) | shared
            for record, loss, digest in zip(self._records, losses, digests, strict=True)
        ]
        return lines, num_new_bad

    def _name_stragglers(self, compute_s: Sequence[float], wait_shares: Sequence[float]) -> None:
        if not distributed.is_main():
            return
        for slow in self._stragglers.new(stragglers(compute_s, wait_shares)):
            host, step = self.run.hosts[slow.rank], self._records[-1].batch_step + 1
            logger.warning("step %d: rank %d (host %s) %s", step, slow.rank, host, slow)
            self.events.write(
                "straggler", step=step, slow_rank=slow.rank, host=host, phase=slow.phase,
                factor=slow.factor,
            )  # fmt: skip

    def _line(self, record: StepRecord, loss: float, digest: int) -> Line:
        is_skipped = bool(record.result.update_skipped)
        reason = "spike" if math.isfinite(float(record.result.grad_norm)) else "non-finite"
        return {
            "attempt": self.run.attempt.attempt,
            "step": record.batch_step + 1,
            "position": record.next_position,
            "global_batch_size": self.run.config.global_batch_size,
            "loss": loss,
            "learning_rate": record.learning_rate,
            "grad_norm": float(record.result.grad_norm),
            "batch_digest": f"{digest:016x}",
            "update_skipped": is_skipped,
        } | ({"skip_reason": reason} if is_skipped else {})

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


def of_rank(values: Sequence[float]) -> list[float]:
    """This rank's values in their own place among all ranks', so that a sum gathers them."""
    size = len(values)
    slots = [0.0] * (size * distributed.world_size())
    slots[size * distributed.rank() : size * (distributed.rank() + 1)] = values
    return slots


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
