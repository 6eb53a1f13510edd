"""Bytes of a rank's memory, by what they are for."""

from dataclasses import dataclass, replace

from mixer_dist.operations.plan.micro_batch import micro_batch
from mixer_dist.operations.plan.partition import kept_elements, sizes_of
from mixer_dist.operations.plan.setup import FP32_BYTES, Setup
from mixer_dist.train.description import STATE_BYTES
from mixer_dist.train.micro_batch import LEAST

# DeepSpeed's own, whatever the model: reduce_bucket_size, stage3_max_live_parameters.
BUCKET_ELEMENTS, MAX_LIVE_ELEMENTS = 500_000_000, 1_000_000_000


@dataclass(frozen=True)
class StateMemory:
    """What a rank holds of the model beside activations, in bytes."""

    weights: int
    """fp32: the masters that the optimizer updates."""
    moments: int
    compute_weights: int
    """Those that forward and backward use, in their precision: kept or gathered."""
    gradients: int
    """At the update, or between two micro-batches, whichever is more."""
    buffers: int
    """Of collectives."""

    @property
    def total(self) -> int:
        """All at once, which they may be."""
        parts = (self.weights, self.moments, self.compute_weights, self.gradients, self.buffers)
        return sum(parts)


@dataclass(frozen=True)
class RankMemory:
    """What a GPU must hold, in bytes, and what its host holds for saves."""

    state: StateMemory
    activations: float
    """At their peak."""
    reserve: float
    snapshot: int
    """On the host: the copy of the rank's share of the state that a save writes."""

    @property
    def total(self) -> float:
        """Of the GPU."""
        return self.state.total + self.activations + self.reserve


def rank_memory(setup: Setup) -> RankMemory:
    """What rank 0 holds."""
    return RankMemory(
        state=state_memory(setup),
        activations=activation_bytes(setup, setup.micro_batch_size),
        reserve=setup.rates.reserve_bytes,
        snapshot=-(-STATE_BYTES * sizes_of(setup.config).whole // setup.num_gpus),
    )


def activation_bytes(setup: Setup, num_images: int) -> float:
    """The peak of what forward and backward of a micro-batch allocate."""
    if setup.rates.activation_bytes_per_image:
        return setup.rates.activation_bytes_per_image * num_images
    return micro_batch(setup.config, num_images).peak_bytes


def largest_micro_batch(setup: Setup, memory: RankMemory) -> int:
    """The most images, an even number, that fit beside all else; 0 where none do.

    The peak is the highest of several straight lines in the number of images. So a line between two
    sizes, extended, promises too many, and where it reaches the limit between them, rather too few.
    """
    left = setup.card.memory_bytes - memory.state.total - memory.reserve

    def reached(low: int, high: int) -> int:
        at_low, at_high = (activation_bytes(setup, size) for size in (low, high))
        return int(low + (left - at_low) * (high - low) / (at_high - at_low)) // 2 * 2

    most = max(0, reached(2, 4))
    fewest = reached(2, most) if most > 2 else most
    return reached(fewest, most) if fewest < most else most


def with_largest_micro_batch(setup: Setup) -> Setup:
    """The setup with a number in place of `auto`, the largest that fits, as a run finds it."""
    if setup.config.micro_batch_size != "auto":
        return setup
    for _ in range(2):  # accumulating takes memory of its own, which the first time may not show
        largest = max(LEAST, largest_micro_batch(setup, rank_memory(setup)))
        size = min(largest, setup.micro_batch_size)
        setup = replace(setup, config=setup.config.model_copy(update={"micro_batch_size": size}))
    return setup


def state_memory(setup: Setup) -> StateMemory:
    """What rank 0 holds of the model, its moments and gradients."""
    kept = kept_elements(setup)
    of_engine = _zero_copies if setup.is_zero else _torch_copies
    compute_weights, gradients, buffers = of_engine(setup, kept)
    return StateMemory(
        weights=FP32_BYTES * kept,
        moments=2 * FP32_BYTES * kept,
        compute_weights=compute_weights,
        gradients=gradients,
        buffers=buffers,
    )


def _torch_copies(setup: Setup, kept: int) -> tuple[int, int, int]:
    """Gathered weights, gradients and buffers under fully_shard, whose ddp gathers as well."""
    sizes, width = sizes_of(setup.config), setup.compute_bytes
    is_freed = setup.config.engine.reshard_after_forward
    two_units = min(2 * max(sizes.unit_elements[:-1]) + sizes.rest, sizes.whole)
    gathered = width * (two_units if is_freed else sizes.whole)
    # One unit on its way in while another is used; one reduced while the next one's are made.
    buffers = (2 * width + FP32_BYTES) * max(sizes.unit_elements)
    return gathered, _reduced_in_last(setup, kept), buffers


def _zero_copies(setup: Setup, kept: int) -> tuple[int, int, int]:
    """The same under DeepSpeed: its own copies, and a bucket whose size does not follow ours."""
    sizes, width = sizes_of(setup.config), setup.compute_bytes
    if setup.engine == "zero3":
        gathered = min(sizes.whole, MAX_LIVE_ELEMENTS)
        return width * (kept + gathered), FP32_BYTES * kept, FP32_BYTES * BUCKET_ELEMENTS
    weights = width * sizes.whole
    if setup.engine == "zero1" and width < FP32_BYTES:  # its BF16_Optimizer keeps both kinds
        flattened = FP32_BYTES * min(sizes.whole, BUCKET_ELEMENTS)
        return weights, (FP32_BYTES + width) * sizes.whole, flattened
    gradients = _reduced_in_last(setup, kept) if setup.engine == "zero1" else FP32_BYTES * kept
    return weights, gradients, width * BUCKET_ELEMENTS


def _reduced_in_last(setup: Setup, kept: int) -> int:
    """Gradients that are whole until the last micro-batch reduces them."""
    is_kept_whole = setup.grad_accum_steps > 1
    return FP32_BYTES * (sizes_of(setup.config).whole if is_kept_whole else kept)
