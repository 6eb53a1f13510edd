"""What runs on each rank in test_micro_batch.py: memory that lasts for so many images only."""

import gc
import resource
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

import psutil
import torch

from mixer_dist import distributed
from mixer_dist.liveness import peers_watched
from mixer_dist.models.mixer import MlpMixer
from mixer_dist.train import shrinking_engine
from mixer_dist.train.micro_batch import with_micro_batch_size
from mixer_dist.train.shrinking_engine import ShrinkingEngine
from mixer_dist.train.stragglers import ForwardTimer
from tests.tiny import take_steps, tiny_batch, tiny_config, tiny_engine

NUM_STEPS = 4
LARGE = {
    "model": {
        "patch_size": 2, "hidden_dim": 128, "num_blocks": 3, "tokens_mlp_dim": 64,
        "channels_mlp_dim": 512, "image_size": 16, "num_classes": 10, "stochastic_depth": 0.4,
    },
    "global_batch_size": 48,
}  # fmt: skip
"""A run whose activations take 115 MB, at 48 images."""
TOO_LITTLE = 30 * 2**20


class Outcome(NamedTuple):
    """Losses of a run, where its memory shrinks after the first steps."""

    losses: list[float]
    num_updates: int
    sizes: set[int]
    """Images that the model took at once."""
    forward_s: float = 0.0
    """Of the timed product in the last step."""


@contextmanager
def memory_for(num_images: int, sizes: set[int] | None = None) -> Iterator[None]:
    """A model that runs out of memory above so many images at once."""
    forward = MlpMixer.forward

    def limited(self, images, depth_masks=None):
        if len(images) > num_images:
            raise torch.OutOfMemoryError(f"{len(images)} images")
        if sizes is not None:
            sizes.add(len(images))
        return forward(self, images, depth_masks)

    MlpMixer.forward = limited
    yield
    MlpMixer.forward = forward


def found_size(engine: str, num_images: int) -> int | str:
    """What `auto` comes to."""
    with distributed.connected(60), memory_for(num_images):
        return with_micro_batch_size(tiny_config(engine, micro_batch_size="auto")).micro_batch_size


def shrunken(engine: str, num_images: int) -> Outcome:
    """Two steps with the whole slice at once, and two in memory for fewer."""
    with distributed.connected(60):
        config = tiny_config(engine, micro_batch_size=20)
        trained = ShrinkingEngine(tiny_engine(config), config)
        timer, first = ForwardTimer(trained), weakref.ref(trained.timed_module)
        losses, sizes = take_steps(trained, config, 0, 2), set()
        with memory_for(num_images, sizes):
            losses += take_steps(trained, config, 2, NUM_STEPS - 1)
            gc.collect()
            assert first() is None, "the engine that was too large is still in memory"
            timer.take()
            losses += take_steps(trained, config, NUM_STEPS - 1, NUM_STEPS)
        return Outcome(losses, trained.num_updates, sizes, timer.take())


def undisturbed(engine: str) -> list[float]:
    """The losses of the same steps."""
    with distributed.connected(60):
        config = tiny_config(engine, micro_batch_size=20)
        return take_steps(tiny_engine(config), config, 0, NUM_STEPS)


def alone_out_of_memory(engine: str) -> None:
    """Memory suffices on rank 0 only, which waits for the other in the middle of a step."""
    with distributed.connected(60), peers_watched():
        shrinking_engine.ALONE_S = 1.0
        config = tiny_config(engine, micro_batch_size=20)
        trained = ShrinkingEngine(tiny_engine(config), config)
        with memory_for(3 if distributed.rank() else 20):
            take_steps(trained, config, 0, NUM_STEPS)


def losses_of_large() -> list[float]:
    """In micro-batches of four, which fit anywhere."""
    with distributed.connected(60):
        config = tiny_config("single", **LARGE)
        return take_steps(tiny_engine(config), config, 0, NUM_STEPS)


def auto_where_the_system_refuses_more() -> tuple[int | str, list[float]]:
    """The size that `auto` comes to under a real limit, and the losses."""
    with distributed.connected(60):
        config = tiny_config("single", **LARGE)
        take_a_step_of_each_size()
        config = tiny_config("single", **LARGE | {"micro_batch_size": "auto"})
        limit_memory(address_space())
        config = with_micro_batch_size(config)
        trained = ShrinkingEngine(tiny_engine(config), config)  # as the limit may be met later too
        return config.micro_batch_size, take_steps(trained, config, 0, NUM_STEPS)


def shrunken_where_the_system_refuses_more() -> Outcome:
    """A run that a real limit meets after two steps."""
    with distributed.connected(60):
        config = tiny_config("single", **LARGE | {"micro_batch_size": 48})
        take_a_step_of_each_size()
        trained, sizes = ShrinkingEngine(tiny_engine(config), config), set()
        before = address_space()
        with memory_for(48, sizes):
            losses = take_steps(trained, config, 0, 2)
            limit_memory(before)
            losses += take_steps(trained, config, 2, NUM_STEPS)
        return Outcome(losses, trained.num_updates, sizes)


def take_a_step_of_each_size() -> None:
    """Starts threads and has oneDNN write its kernels, which a limit would refuse."""
    for size in (48, 24, 12, 6, 4, 2):
        config = tiny_config("single", **LARGE | {"micro_batch_size": size})
        take_steps(tiny_engine(config), config, 0, 1)


def address_space() -> int:
    """Bytes that this process has from the system."""
    return psutil.Process().memory_info().vms


def limit_memory(before: int) -> None:
    """The system gives this process little more than it had."""
    resource.setrlimit(resource.RLIMIT_AS, (before + TOO_LITTLE, resource.RLIM_INFINITY))


def out_of_memory_in_update(engine: str) -> str:
    """What is said where weights may have changed already."""
    with distributed.connected(60):
        config = tiny_config(engine)
        trained = ShrinkingEngine(tiny_engine(config), config)

        def fail() -> None:
            raise torch.OutOfMemoryError("of the update")

        trained.before_update = fail
        try:
            trained.train_step(tiny_batch(config, 0), 1e-3)
        except Exception as error:  # noqa: BLE001, looked at by the test
            return f"{type(error).__name__}: {error}"
        return "nothing"
