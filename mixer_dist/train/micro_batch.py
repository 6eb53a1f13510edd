"""micro_batch_size: auto. The largest that fits is found by trying, before the first step."""

import gc
import logging
import socket
from collections.abc import Callable

import torch

from mixer_dist import distributed
from mixer_dist.config import RunConfig
from mixer_dist.data.stream import micro_batch_shape
from mixer_dist.errors import MixerError, is_out_of_memory
from mixer_dist.train.build import build_engine, empty_model
from mixer_dist.train.drawn_batch import drawn_batch
from mixer_dist.train.freed_memory import give_back_freed_memory

ALONE_S = 30.0  # that other ranks have to run out of memory too
LEAST = 2  # mixup mixes pairs
ACCUMULATED = 2  # micro-batches of a try: the second meets the gradients of the first

logger = logging.getLogger(__name__)


def with_micro_batch_size(config: RunConfig) -> RunConfig:
    """The configuration with a number in place of `auto`; MixerError where nothing fits.

    All ranks must call this.
    """
    if config.micro_batch_size != "auto":
        return config
    largest, _ = micro_batch_shape(config, distributed.world_size())
    size = largest_fitting(lambda num_images: fits(config, num_images), largest)
    if size == 0:
        raise MixerError(
            f"not even {LEAST} images at once fit into memory: take an engine that shares the "
            "training state among more ranks, such as engine.name=fsdp"
        )
    config = config.model_copy(update={"micro_batch_size": size})
    size, _ = micro_batch_shape(config, distributed.world_size())
    limit = "all of a rank's" if size == largest else "of those that fit"
    logger.info("Micro-batches hold %d images each (micro_batch_size: auto), %s.", size, limit)
    return config.model_copy(update={"micro_batch_size": size})


def largest_fitting(fits: Callable[[int], bool], largest: int) -> int:
    """The largest even size up to `largest` that fits, 0 for none: doubling, then bisection."""
    best, size = 0, LEAST
    while best < largest and fits(min(size, largest)):
        best, size = min(size, largest), 2 * size
    too_large = min(size, largest + LEAST)
    while best and too_large - best > LEAST:
        middle = (best + too_large) // 4 * 2
        best, too_large = (middle, too_large) if fits(middle) else (best, middle)
    return best


def fits(config: RunConfig, num_images: int) -> bool:
    """Whether every rank can take a step in micro-batches of this size. All ranks must call this.

    The engine that tries is a new one each time, as no engine can be used after a failed step.
    """
    logger.info("Trying micro-batches of %d images (micro_batch_size: auto).", num_images)
    num_accumulated = min(
        ACCUMULATED * num_images * distributed.world_size(), config.global_batch_size
    )
    tried = config.model_copy(
        update={"micro_batch_size": num_images, "global_batch_size": num_accumulated}
    )
    is_too_large = not is_within_memory(lambda: _step(tried))
    free_memory()
    leave_step(ALONE_S if is_too_large else config.collective_timeout_s)
    return distributed.sum_words([int(is_too_large)]) == [0]


def leave_step(within_s: float) -> None:
    """Wait until every rank is out of a step, so that all can go another way; MixerError.

    A rank that runs out of memory alone leaves the others in a collective, from where there is no
    other way than a new start. All ranks must call this.
    """
    if not distributed.all_arrive("leave_step", within_s):
        raise MixerError(
            f"rank {distributed.rank()} ran out of memory and other ranks did not, within "
            f"{within_s:g} s: see what else takes memory on {socket.gethostname()}; or set a "
            "smaller micro_batch_size, with which the same command goes on"
        )


def is_within_memory(action: Callable[[], object]) -> bool:
    """Run an action; False where memory did not suffice for it."""
    try:
        action()
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        return False
    return True


def free_memory() -> None:
    """Give back what nothing refers to any longer."""
    gc.unfreeze()  # an engine of start-up too
    gc.collect()
    if distributed.device().type == "cuda":
        torch.cuda.empty_cache()
    else:
        give_back_freed_memory()


def halved(size: int) -> int:
    """Half of an even size, even too."""
    return max(LEAST, size // 4 * 2)


def _step(config: RunConfig) -> None:
    model = empty_model(config.model).to_empty(device="cpu")
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
    engine = build_engine(config, model)
    try:
        engine.train_step(drawn_batch(config).to(distributed.device()), learning_rate=0.0)
    finally:
        engine.close()
