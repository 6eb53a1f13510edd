"""A pretraining run, from top to bottom."""

import itertools
import logging
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing

from mixer_dist import distributed
from mixer_dist.checkpoint.load import load_pieces
from mixer_dist.config import RunConfig
from mixer_dist.data.batch import Batch
from mixer_dist.data.order import Window
from mixer_dist.data.stream import Cursor, TrainStream
from mixer_dist.liveness import Peers, peers_watched
from mixer_dist.metrics import Line
from mixer_dist.stop_requests import StopRequests
from mixer_dist.train.build import build_engine, build_stream
from mixer_dist.train.checkpoint_schedule import CheckpointSchedule
from mixer_dist.train.description import describe
from mixer_dist.train.engine import Engine
from mixer_dist.train.freed_memory import keep_freed_memory
from mixer_dist.train.garbage import GarbageCollection
from mixer_dist.train.optim import scheduled_rate
from mixer_dist.train.progress import Progress
from mixer_dist.train.shrinking_engine import ShrinkingEngine
from mixer_dist.train.spikes import UpdateGuard, recent_values
from mixer_dist.train.start import Run, start_run
from mixer_dist.train.stragglers import ForwardTimer
from mixer_dist.train.update_checks import recent_updates
from mixer_dist.train.watchdog import Watchdog

logger = logging.getLogger(__name__)


def pretrain(
    config: RunConfig,
    may_change: Sequence[str] = (),
    stop_requests: StopRequests | None = None,
) -> None:
    """Train until total_steps are done, from the newest checkpoint on. All ranks must call this.

    `may_change` names what may differ from the run as it was trained so far. PreemptedError once a
    rank was asked to stop, or after the step until which it was to train.
    """
    with distributed.connected(config.collective_timeout_s), peers_watched() as peers:
        train_run(config, peers, may_change, stop_requests or StopRequests())


def train_run(
    config: RunConfig, peers: Peers, may_change: Sequence[str], stop_requests: StopRequests
) -> None:
    """`pretrain` among ranks that are connected already. All ranks must call this."""
    with Watchdog(peers, config) as watchdog:
        run, model = start_run(config, may_change, peers.hosts)
        watchdog.keep_in(run.storage, run.run_dir, run.attempt.attempt)
        world_size = distributed.world_size()
        for sentence in describe(run.config, world_size, run.dataset, run.state):
            logger.info(sentence)
        last_step = min(stop_requests.until or run.config.total_steps, run.config.total_steps)
        if run.state.step >= last_step:
            logger.info("All %d steps are done already.", last_step)
            return
        engine = build_engine(run.config, model)
        del model  # the engine's now, which may have to free it
        if config.micro_batch_size == "auto":
            engine = ShrinkingEngine(engine, run.config)
        if run.checkpoint:
            load_pieces(run.storage, run.checkpoint, engine.pieces())
            engine.refresh(run.state.num_updates)
        train(run, engine, stop_requests, watchdog)


def train(run: Run, engine: Engine, stop_requests: StopRequests, watchdog: Watchdog) -> None:
    """The loop over batches. All ranks must call this."""
    config, device, vote = run.config, distributed.device(), distributed.Vote()
    if device.type == "cpu":
        keep_freed_memory()
    recent = recent_updates(run)
    guard_updates(run, engine, recent)
    timer = ForwardTimer(engine)
    with (
        Progress(run, timer, recent) as progress,
        closing(CheckpointSchedule(run, engine, progress, watchdog)) as checkpoints,
        training_stream(run) as stream,
        GarbageCollection() as garbage,
    ):
        watchdog.record_in(progress.events)
        for batch in timed(stream, progress, watchdog):
            rate = scheduled_rate(batch.step, config.total_steps, config.optimizer)
            result = engine.train_step(batch.to(device), rate)
            progress.add(batch, result, rate)
            step = batch.step + 1
            # The first step, which compiles, has a record of its own.
            is_end = step in (run.state.step + 1, config.total_steps)
            if is_end or step % config.logging.every_steps == 0:
                watchdog.enter("report")
                progress.report()
            checkpoints.step_done(batch)
            garbage.step_done(step)
            if vote.ask(stop_requests.count > 0) or step == stop_requests.until:
                checkpoints.save_and_stop(batch, stop_requests)
        vote.last()
        checkpoints.finish()
        progress.finish()


def training_stream(run: Run) -> TrainStream:
    """This rank's batches, from where the run stands."""
    skipped = tuple(Window(*window) for window in run.state.skipped)
    cursor = Cursor(run.state.step, run.state.position, skipped)
    return build_stream(run.config, run.dataset, run.storage, cursor)


def guard_updates(run: Run, engine: Engine, recent: Sequence[Line]) -> None:
    """Have updates skipped whose gradient norm spikes, where the configuration asks for it."""
    numerics, device = run.config.numerics, distributed.device()
    if numerics.spike_z and numerics.on_spike == "skip":
        norms = recent_values([line["grad_norm"] for line in recent], numerics.window, device)
        engine.guard = UpdateGuard(norms, numerics.spike_z)


def timed(batches: Iterable[Batch], progress: Progress, watchdog: Watchdog) -> Iterator[Batch]:
    """The batches, with the time spent waiting for each counted."""
    stream = iter(batches)
    for step in itertools.count(progress.run.state.step + 1):
        watchdog.enter("data", step)
        began = time.monotonic()
        batch = next(stream, None)
        progress.waited(time.monotonic() - began)
        if batch is None:
            return
        watchdog.enter("step")
        yield batch
