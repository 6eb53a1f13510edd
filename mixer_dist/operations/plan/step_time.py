"""How long a step takes: kernels by roofline, and the communication that nothing hides."""

from collections import Counter
from dataclasses import dataclass

from mixer_dist.operations.plan.communication import all_reduce_s, gather_s, groups
from mixer_dist.operations.plan.micro_batch import Kernel, MicroBatch, micro_batch
from mixer_dist.operations.plan.partition import Sizes, sizes_of
from mixer_dist.operations.plan.setup import FP32_BYTES, Setup

UPDATE_PASSES = 10  # over fp32: norm 1, clipping 2, AdamW reads 4 and writes 3
CAST_BYTES = 12  # an element: its gathered weight and its gradient are copied once each


@dataclass(frozen=True)
class StepTime:
    """Seconds of one step."""

    forward_backward: float
    update: float
    """Clipping, AdamW, and the copies in and out of collectives."""
    communication: float
    """All of it."""
    exposed: float
    """The part under which nothing is computed."""
    is_bound_by_host: bool
    """Whether the GPU waits for kernels to be issued."""

    @property
    def total(self) -> float:
        """From one update to the next."""
        return self.forward_backward + self.update + self.exposed


@dataclass(frozen=True)
class Passes:
    """Seconds of forward and backward of one micro-batch."""

    forward: float
    backward: float


def step_time(setup: Setup) -> StepTime:
    """Of a step of grad_accum_steps micro-batches on each GPU."""
    work, sizes = micro_batch(setup.config, setup.micro_batch_size), sizes_of(setup.config)
    passes, is_bound_by_host = passes_of(work, sizes, setup)
    communicate = zero_communication if setup.is_zero else torch_communication
    communication, exposed = communicate(setup, passes, sizes)
    return StepTime(
        forward_backward=setup.grad_accum_steps * (passes.forward + passes.backward),
        update=update_s(sizes, setup),
        communication=communication,
        exposed=exposed,
        is_bound_by_host=is_bound_by_host,
    )


def passes_of(work: MicroBatch, sizes: Sizes, setup: Setup) -> tuple[Passes, bool]:
    """Forward and backward, and whether the host is slower in issuing them than the GPU."""
    parts = (work.forward, work.backward)
    on_gpu = [kernels_s(part, setup) for part in parts]
    of_units = setup.rates.unit_s * len(sizes.unit_elements) / len(parts)
    on_host = [part.total() * setup.rates.launch_s + of_units for part in parts]
    return Passes(*map(max, on_gpu, on_host)), sum(on_host) > sum(on_gpu)


def kernels_s(kernels: Counter[Kernel], setup: Setup) -> float:
    """Each takes as long as its arithmetic or its traffic, whichever is more."""
    flops_per_s = peak_flops(setup) * setup.rates.matmul_efficiency
    bytes_per_s = setup.card.memory_bytes_per_s * setup.rates.memory_efficiency
    return sum(
        count * max(kernel.flops / flops_per_s, kernel.num_bytes / bytes_per_s)
        for kernel, count in kernels.items()
    )


def peak_flops(setup: Setup) -> float:
    """The card's, a second, in the run's precision."""
    return setup.card.peak_flops(setup.config.engine.precision)


def update_s(sizes: Sizes, setup: Setup) -> float:
    """Of the optimizer and of the copies around collectives."""
    updated = sizes.whole / setup.mesh[1]
    num_bytes = UPDATE_PASSES * FP32_BYTES * updated + CAST_BYTES * sizes.whole
    return num_bytes / (setup.card.memory_bytes_per_s * setup.rates.memory_efficiency)


def torch_communication(setup: Setup, passes: Passes, sizes: Sizes) -> tuple[float, float]:
    """Seconds of all communication, and of what is exposed.

    Weights of the next unit come under this one's forward; gradients leave under the backward of
    the units before, in the last micro-batch only. The first blocks and what is in no block have
    nothing beside them, but for the stem, which is short.
    """
    gathers, reductions = _traffic(setup, sizes)
    gathering, reducing = sum(gathers), sum(reductions)
    again = gathering if setup.config.engine.reshard_after_forward else 0.0
    first, last = sum(gathers[-2:]), sum(reductions[-2:])
    forward = first + max(0.0, gathering - first - passes.forward)
    backward = max(0.0, again - passes.backward)
    reduced = last + max(0.0, reducing + again - last - passes.backward)
    num_before = setup.grad_accum_steps - 1
    exposed = num_before * (forward + backward) + forward + reduced
    return setup.grad_accum_steps * (gathering + again) + reducing, exposed


def _traffic(setup: Setup, sizes: Sizes) -> tuple[list[float], list[float]]:
    """Seconds in which each unit's weights are gathered, and its gradients reduced."""
    copies, sharing = groups(setup.mesh, setup.card)
    gathers = [gather_s(setup.compute_bytes * n, sharing, setup) for n in sizes.unit_elements]
    reductions = [
        gather_s(FP32_BYTES * n, sharing, setup)
        + all_reduce_s(FP32_BYTES * n / sharing.num_ranks, copies, setup)
        for n in sizes.unit_elements
    ]
    return gathers, reductions


def zero_communication(setup: Setup, passes: Passes, sizes: Sizes) -> tuple[float, float]:
    """The same under DeepSpeed, whose one bucket holds all gradients, so that nothing hides them.

    Stage 1 reduces once a step, 2 and 3 after each micro-batch. Stages 1 and 2 gather weights
    within the update, 3 gathers each block's under the one before.
    """
    _, group = groups(setup.mesh, setup.card)
    whole, num_times = sizes.whole, setup.grad_accum_steps
    if setup.engine == "zero3":
        gathers = [
            gather_s(setup.compute_bytes * unit, group, setup) for unit in sizes.zero3_elements
        ]
        reducing = gather_s(FP32_BYTES * whole, group, setup)
        hidden = min(sum(gathers) - gathers[-1], passes.forward)
        seconds = num_times * (sum(gathers) + reducing)
        return seconds, seconds - num_times * hidden
    num_reductions = 1 if setup.engine == "zero1" else num_times
    seconds = num_reductions * all_reduce_s(FP32_BYTES * whole, group, setup)
    seconds += gather_s(setup.compute_bytes * whole, group, setup)
    return seconds, seconds
