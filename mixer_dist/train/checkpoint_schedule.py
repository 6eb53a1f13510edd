"""When training state is saved: every so many steps, and after the last one.

A save under way never holds the step up: the next one waits for the first step after its end.
"""

import logging
import time
from collections.abc import Callable

from mixer_dist import distributed
from mixer_dist.checkpoint.gc import Retention
from mixer_dist.checkpoint.layout import TrainingState
from mixer_dist.checkpoint.save import Saved, Saver
from mixer_dist.data.batch import Batch
from mixer_dist.errors import CheckpointError, NumericsError, PreemptedError, SupersededError
from mixer_dist.stop_requests import StopRequests
from mixer_dist.train.engine import Engine
from mixer_dist.train.progress import Progress
from mixer_dist.train.replicas import check_replicas
from mixer_dist.train.start import Run
from mixer_dist.train.watchdog import Watchdog

logger = logging.getLogger(__name__)


class CheckpointSchedule:
    """Saves an engine's state as it trains; close it to end what is under way."""

    def __init__(self, run: Run, engine: Engine, progress: Progress, watchdog: Watchdog) -> None:
        """All ranks must call this."""
        self._run = run
        self._engine = engine
        self._progress = progress
        self._watchdog = watchdog
        self._saver = Saver(
            run.storage,
            run.run_dir,
            run.attempt,
            engine.shapes,
            list(engine.pieces()),
            before_commit=progress.flush_metrics,
            after_commit=Retention(run.storage, run.run_dir, run.config.checkpoint).retain,
        )
        engine.before_update = self._saver.settle
        self._is_due = False
        self._newest_step = run.state.step
        """Steps of the newest checkpoint that is committed or under way."""
        self._saved_step = run.state.step
        """Steps of the newest that is committed, as far as rank 0 knows."""

    def step_done(self, batch: Batch) -> None:
        """Start a save where one is due and none is under way. All ranks must call this."""
        step, config = batch.step + 1, self._run.config
        self._take(self._saver.poll)
        self._is_due |= step % config.checkpoint.every_steps == 0
        if step == config.total_steps:
            self._make_way()
            self._start(batch)
        elif self._is_due and self._is_free(step):
            self._start(batch)

    def finish(self) -> None:
        """Wait for the last save; CheckpointError where it failed. All ranks must call this."""
        self._watchdog.enter("save")
        try:
            if self._saver.is_busy:
                self._tell(self._saver.wait())
        except SupersededError:
            raise
        except CheckpointError as error:
            distributed.fail_together(error)

    def save_and_stop(self, batch: Batch, requests: StopRequests) -> None:
        """Save once more, and end by PreemptedError, saved or not. All ranks must call this."""
        self._watchdog.enter("save")
        give_up = self._give_up()
        if self._newest_step != batch.step + 1 and self._all_end(requests, give_up):
            self._make_way()
            self._start(batch)
        if self._all_end(requests, give_up):
            self._make_way()
        else:
            self._saver.abandon()
        if distributed.is_main():
            self._progress.events.write("preempt", step=batch.step + 1, signal=requests.last)
        stopped = f"stopped after step {batch.step + 1} {requests.cause}"
        distributed.fail_together(PreemptedError(stopped + self._what_is_saved(batch.step + 1)))

    def _what_is_saved(self, step: int) -> str:
        """What the same command finds."""
        if self._saved_step == step:
            return "; the same command goes on from there"
        if self._saved_step == 0:
            return ", and nothing could be saved: the same command begins anew"
        return f", which could not be saved: the same command goes on from step {self._saved_step}"

    def close(self) -> None:
        """End what is under way, within the grace time."""
        self._watchdog.enter("end")
        give_up = self._give_up()
        if not self._saver.ends_by(give_up):
            self._saver.abandon()
        self._saver.close(give_up - time.monotonic())

    def _give_up(self) -> float:
        """When the grace time that begins now is over, by the monotonic clock."""
        return time.monotonic() + self._run.config.checkpoint.grace_s

    def _all_end(self, requests: StopRequests, give_up: float) -> bool:
        """Whether no rank's save is still under way when its patience ends."""
        is_late = not self._saver.ends_by(give_up, lambda: requests.is_urgent)
        return not distributed.sum_words([int(is_late)])[0]

    def _start(self, batch: Batch) -> None:
        self._progress.report()
        self._check_replicas(batch)
        state = TrainingState(
            step=batch.step + 1,
            num_updates=self._engine.num_updates,
            position=batch.next_position,
            skipped=self._run.state.skipped,
            num_bad_samples=self._progress.num_bad_samples,
        )
        self._saver.start(list(self._engine.pieces()), state)
        self._newest_step = state.step
        self._is_due = False

    def _check_replicas(self, batch: Batch) -> None:
        """NumericsError where a checkpoint would hold what only one of several ranks holds."""
        if not self._run.config.numerics.replica_check:
            return
        try:
            check_replicas(self._engine.replicas(), self._engine.replica_set, self._run.hosts)
        except NumericsError as error:  # on rank 0, which tells it
            step = batch.step + 1
            self._progress.events.write("replicas_differ", step=step, reason=str(error))
            raise

    def _is_free(self, step: int) -> bool:
        """Whether no rank has a save under way."""
        num_busy = distributed.sum_words([int(self._saver.is_busy)])[0]
        is_due = step % self._run.config.checkpoint.every_steps == 0
        if distributed.is_main() and num_busy and is_due:
            logger.warning("step %d: the save under way is slow, the next one waits for it", step)
        return not num_busy

    def _make_way(self) -> None:
        """Wait for the save under way; if it fails, the last one makes up for it."""
        self._watchdog.enter("save")
        if self._saver.is_busy:
            self._take(self._saver.wait)

    def _take(self, outcome: Callable[[], Saved | None]) -> None:
        """Tell what a save came to; one that failed is made up for by the next."""
        try:
            if saved := outcome():
                self._tell(saved)
        except SupersededError:
            raise
        except CheckpointError as error:
            if distributed.is_main():
                logger.error("not saved, trying again after the next interval: %s", error)
                self._progress.events.write("save_failed", reason=str(error))

    def _tell(self, saved: Saved) -> None:
        self._saved_step = saved.step
        if distributed.is_main():
            self._progress.events.write(
                "save", step=saved.step, url=saved.url, seconds=saved.seconds, stall_s=saved.stall_s
            )
            logger.info(
                "saved %s in %.1f s, %.2f s of which training stood still",
                saved.url, saved.seconds, saved.stall_s,
            )  # fmt: skip
