"""A pretraining run, from top to bottom."""

import logging
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing

from mixer_dist import distributed
from mixer_dist.checkpoint.load import load_pieces
from mixer_dist.config import RunConfig
from mixer_dist.data.batch import Batch
from mixer_dist.data.order import Window
from mixer_dist.data.stream import Cursor, Share, TrainStream, micro_batch_shape
from mixer_dist.models.mixer import depth_rates
from mixer_dist.stop_requests import StopRequests
from mixer_dist.train.build import build_engine, model_dimensions
from mixer_dist.train.checkpoint_schedule import CheckpointSchedule
from mixer_dist.train.description import describe
from mixer_dist.train.engine import Engine
from mixer_dist.train.optim import scheduled_rate
from mixer_dist.train.progress import Progress
from mixer_dist.train.start import Run, start_run

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
    stop_requests = stop_requests or StopRequests()
    with distributed.connected(config.engine.timeout_s), distributed.peers_watched():
        run = start_run(config, may_change)
        world_size = distributed.world_size()
        for sentence in describe(run.config, world_size, run.dataset, run.state):
            logger.info(sentence)
        last_step = min(stop_requests.until or run.config.total_steps, run.config.total_steps)
        if run.state.step >= last_step:
            logger.info("All %d steps are done already.", last_step)
            return
        engine = build_engine(run.config, run.model)
        if run.checkpoint:
            load_pieces(run.storage, run.checkpoint, engine.pieces())
            engine.refresh(run.state.num_updates)
        train(run, engine, stop_requests)


def train(run: Run, engine: Engine, stop_requests: StopRequests) -> None:
    """The loop over batches. All ranks must call this."""
    config, device, vote = run.config, distributed.device(), distributed.Vote()
    with (
        Progress(run) as progress,
        closing(CheckpointSchedule(run, engine, progress)) as checkpoints,
        training_stream(run) as stream,
    ):
        for batch in timed(stream, progress):
            rate = scheduled_rate(batch.step, config.total_steps, config.optimizer)
            result = engine.train_step(batch.to(device), rate)
            progress.add(batch, result, rate)
            step = batch.step + 1
            # The first step, which compiles, has a record of its own.
            is_end = step in (run.state.step + 1, config.total_steps)
            if is_end or step % config.logging.every_steps == 0:
                progress.report()
            checkpoints.step_done(batch)
            if vote.ask(stop_requests.count > 0) or step == stop_requests.until:
                checkpoints.save_and_stop(batch, stop_requests)
        vote.last()
        checkpoints.finish()
        progress.finish()


def training_stream(run: Run) -> TrainStream:
    """This rank's batches, from where the run stands."""
    micro_batch_size, grad_accum_steps = micro_batch_shape(run.config, distributed.world_size())
    rate = run.config.model.stochastic_depth
    num_blocks = model_dimensions(run.config.model)["num_blocks"]
    return TrainStream(
        run.config,
        run.dataset,
        run.storage,
        Cursor(run.state.step, run.state.position, tuple(Window(*w) for w in run.state.skipped)),
        Share(distributed.rank(), distributed.world_size(), micro_batch_size * grad_accum_steps),
        depth_rates(num_blocks, rate),
    )


def timed(batches: Iterable[Batch], progress: Progress) -> Iterator[Batch]:
    """The batches, with the time spent waiting for each counted."""
    stream = iter(batches)
    while True:
        began = time.monotonic()
        batch = next(stream, None)
        progress.waited(time.monotonic() - began)
        if batch is None:
            return
        yield batch
