"""A run on so many GPUs: memory, speed, data, time, and what stands in the way."""

from collections.abc import Iterator
from dataclasses import dataclass

from mixer_dist.data.order import rank_slice
from mixer_dist.operations.plan.data_rates import DataRates, Samples, data_rates
from mixer_dist.operations.plan.memory import RankMemory, largest_micro_batch, rank_memory
from mixer_dist.operations.plan.micro_batch import image_flops
from mixer_dist.operations.plan.schedule import Schedule, schedule
from mixer_dist.operations.plan.setup import Setup, set_up
from mixer_dist.operations.plan.step_time import StepTime, peak_flops, step_time

MENDS: tuple[dict[str, str | bool], ...] = (
    {"recompute": True},
    {"name": "fsdp"},
    {"name": "fsdp", "recompute": True},
    {"name": "fsdp", "reshard_after_forward": True},
    {"name": "zero2"},
    {"name": "zero3"},
    {"name": "zero3", "recompute": True},
)
"""What may take less memory; the first that suffices is advised."""
RESIZED_BYTES = 40_000  # assumed: more than most JPEGs of 256 px take
EXPOSED = 0.25  # share of a step that communication may hold up without one


@dataclass(frozen=True)
class RunPlan:
    """What a run comes to on so many GPUs."""

    num_gpus: int
    engine: str
    micro_batch_size: int
    grad_accum_steps: int
    filling: float
    """Share of the images computed that only fill up micro-batches."""
    memory: RankMemory
    largest_micro_batch: int
    """That fits into the card's memory."""
    step: StepTime
    images_per_s: float
    mfu: float
    """FLOPs of the batch's images, of the cards' peak."""
    data: DataRates
    schedule: Schedule
    warnings: tuple[str, ...]


def plan_run(setup: Setup, samples: Samples, price_per_gpu_hour: float | None) -> RunPlan:
    """Everything about one number of GPUs."""
    memory, step = rank_memory(setup), step_time(setup)
    images_per_s = setup.config.global_batch_size / step.total
    data = data_rates(setup, images_per_s, samples)
    planned = schedule(setup, step.total, price_per_gpu_hour)
    largest = largest_micro_batch(setup, memory)
    return RunPlan(
        num_gpus=setup.num_gpus,
        engine=setup.engine,
        micro_batch_size=setup.micro_batch_size,
        grad_accum_steps=setup.grad_accum_steps,
        filling=filling(setup),
        memory=memory,
        largest_micro_batch=largest,
        step=step,
        images_per_s=images_per_s,
        mfu=mfu(setup, images_per_s),
        data=data,
        schedule=planned,
        warnings=(
            *_memory_warnings(setup, memory, largest),
            *_batch_warnings(setup),
            *_rate_warnings(setup, step, data, planned),
        ),
    )


def mfu(setup: Setup, images_per_s: float) -> float:
    """The share of the cards' peak that goes into the images' matrix products."""
    return images_per_s * image_flops(setup.config) / (setup.num_gpus * peak_flops(setup))


def filling(setup: Setup) -> float:
    """The share of the images computed that fill up slices and micro-batches."""
    computed = setup.num_gpus * setup.grad_accum_steps * setup.micro_batch_size
    return 1 - setup.config.global_batch_size / computed


def _memory_warnings(setup: Setup, memory: RankMemory, largest: int) -> Iterator[str]:
    available = setup.card.memory_bytes
    if memory.total <= available:
        return
    needs = f"needs {memory.total / 1e9:,.1f} GB of a GPU's {available / 1e9:,.1f} GB"
    yield f"does not fit: {needs}; {_mend_of_memory(setup, largest)}"


def _mend_of_memory(setup: Setup, largest: int) -> str:
    """Smaller micro-batches, else the first change of the engine that makes room for the least."""
    if largest:
        return f"set micro_batch_size={largest}"
    for changes in MENDS:
        engine = setup.config.engine.model_copy(update=changes)
        config = setup.config.model_copy(update={"engine": engine})
        changed = set_up(config, setup.num_gpus, setup.card, setup.rates)
        if largest_micro_batch(changed, rank_memory(changed)):
            return "set " + " ".join(
                f"engine.{key}={in_yaml(value)}" for key, value in changes.items()
            )
    return "take more GPUs, or such with more memory, or a smaller model or image_size"


def in_yaml(value: str | bool) -> str:
    """A value as it is set on the command line."""
    return str(value).lower()


def _batch_warnings(setup: Setup) -> Iterator[str]:
    batch, num_gpus, wasted = setup.config.global_batch_size, setup.num_gpus, filling(setup)
    slices = {s.stop - s.start for s in (rank_slice(r, num_gpus, batch) for r in range(num_gpus))}
    if len(slices) > 1:
        yield (
            f"uneven slices: {num_gpus:,} GPUs take {min(slices)} or {max(slices)} of {batch:,} "
            f"images each; with filling {wasted:.1%} of the work is wasted"
        )


def _rate_warnings(
    setup: Setup, step: StepTime, data: DataRates, planned: Schedule
) -> Iterator[str]:
    cores = setup.card.cores_per_node / setup.card.gpus_per_node
    store = setup.rates.store_bytes_per_s
    if data.cores_per_gpu > cores:
        yield (
            f"decoders are the bottleneck: {data.cores_per_gpu:.1f} cores a GPU are needed, a node "
            f"has {cores:g}{_smaller_shards(data)}"
        )
    if store and data.bytes_per_s > store:
        needed, given = data.bytes_per_s / 1e9, store / 1e9
        yield f"the store is the bottleneck: {needed:,.2f} GB/s are needed, it gives {given:,.2f}"
    if step.exposed > EXPOSED * step.total:
        yield (
            f"GPUs wait for communication {step.exposed / step.total:.0%} of the time: compare the "
            "engines, take fewer GPUs or a larger batch (rings are assumed; NCCL's trees may do "
            "better)"
        )
    if step.is_bound_by_host:
        fewer = "fewer GPUs or " if setup.num_gpus > 1 else ""
        yield f"GPUs wait for the host to issue kernels: take {fewer}larger micro-batches"
    if planned.checkpoint_s > planned.checkpoint_every_s:
        yield (
            f"a checkpoint takes {planned.checkpoint_s:,.3g} s to write, one is due every "
            f"{planned.checkpoint_every_s:,.3g} s: raise checkpoint.every_steps"
        )
    if setup.config.engine.compile:
        yield "engine.compile is planned as if it were off: compiled blocks keep twice the memory"


def _smaller_shards(data: DataRates) -> str:
    """Advice, where samples are larger than images of 256 px."""
    is_large = data.bytes_per_s > RESIZED_BYTES * data.images_per_s
    return "; shards at 256 px (data_tools/shard.py) need half as many" if is_large else ""
