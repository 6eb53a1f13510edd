"""The training step: images/s, the share of the card's peak, memory; data are drawn."""

from collections.abc import Callable, Iterator
from statistics import median

from mixer_dist import distributed
from mixer_dist.config import RunConfig
from mixer_dist.data.stream import micro_batch_shape
from mixer_dist.models.mixer import patch_grid
from mixer_dist.operations.bench.kernels import kernel_lines, profiled
from mixer_dist.operations.bench.machine import card_here, device_name, peak_memory_bytes
from mixer_dist.operations.bench.matmuls import MatmulTime, time_matmuls
from mixer_dist.operations.bench.measured import Figure, Measured
from mixer_dist.operations.bench.stopwatch import seconds_of
from mixer_dist.operations.plan.micro_batch import MicroBatch, image_flops, micro_batch
from mixer_dist.train.build import build_engine, build_model, model_dimensions
from mixer_dist.train.drawn_batch import drawn_batch
from mixer_dist.train.freed_memory import keep_freed_memory


def measure_step(config: RunConfig, num_steps: int, trace: str | None = None) -> Measured:
    """Steps of the config's engine on noise; `trace` is a file for a profile of some of them.

    All ranks must call this.
    """
    size, _ = micro_batch_shape(config, distributed.world_size())
    engine = build_engine(config, build_model(config))
    batch = drawn_batch(config).to(distributed.device())
    if distributed.device().type == "cpu":
        keep_freed_memory()  # as a run does

    def step() -> None:
        engine.train_step(batch, learning_rate=0.0)  # weights stay as they are

    mine = median(seconds_of(step, num_steps))
    seconds = max(distributed.gather(mine))
    notes = _profile(step, trace) if trace else []
    if card_here() is None:
        notes.append("no rates for plan --calibrate: those are of a card that plan knows")
    figures = tuple(_figures(config, seconds, micro_batch(config, size), size))
    bare = time_matmuls(config, size)
    return Measured(
        _setting(config, num_steps), (*figures, *_of_matmuls(bare)), _rates(config, bare),
        tuple(notes),
    )  # fmt: skip


def _figures(
    config: RunConfig, seconds: float, work: MicroBatch, micro_batch_size: int
) -> Iterator[Figure]:
    sizes = model_dimensions(config.model)
    rows, columns = patch_grid(sizes["image_size"], sizes["patch_size"])
    images_per_s = config.global_batch_size / seconds
    flops = image_flops(config) * images_per_s / distributed.world_size()
    yield Figure("seconds", "a step", seconds, "s")
    yield Figure("images_per_s", "images", images_per_s, "/s")
    yield Figure("tokens_per_s", "tokens", images_per_s * rows * columns, "/s")
    yield Figure("flops_per_s", "arithmetic of a rank", flops, "TFLOP/s", 1e12)
    if card := card_here():
        yield Figure(
            "mfu", f"of {card.title}", flops / card.peak_flops(config.engine.precision), "%", 0.01
        )
    saved, peak = (each / micro_batch_size for each in (work.saved_bytes, work.peak_bytes))
    yield Figure("saved_bytes_per_image", "kept for backward, an image", saved, "MB", 1e6)
    yield Figure("activation_bytes_per_image", "held at most, an image", peak, "MB", 1e6)
    yield Figure("peak_memory_bytes", "peak memory of a rank", peak_memory_bytes(), "GB", 1e9)


def _of_matmuls(bare: MatmulTime) -> Iterator[Figure]:
    yield Figure("matmul_seconds", "a micro-batch's matrix products alone", bare.seconds, "s")
    rate = bare.flops / bare.seconds
    yield Figure("matmul_flops_per_s", "arithmetic in these", rate, "TFLOP/s", 1e12)


def _rates(config: RunConfig, bare: MatmulTime) -> dict[str, float]:
    card = card_here()
    if card is None:
        return {}
    efficiency = bare.flops / bare.seconds / card.peak_flops(config.engine.precision)
    return {"matmul_efficiency": min(1.0, efficiency)}


def _profile(step: Callable[[], None], trace: str) -> list[str]:
    """Every rank steps, rank 0 writes."""
    lines = kernel_lines(profiled(step, trace if distributed.is_main() else None))
    return [*lines, f"wrote {trace}: open it in chrome://tracing or ui.perfetto.dev"]


def _setting(config: RunConfig, num_steps: int) -> str:
    size, accumulation = micro_batch_shape(config, distributed.world_size())
    return (
        f"Step: {config.engine.name}, {config.engine.precision}, {distributed.world_size()} x "
        f"{device_name()}, {config.global_batch_size:,} images in micro-batches of {size} "
        f"({accumulation} a rank); median of {num_steps} steps."
    )
