"""A forecast as text: a column for each number of GPUs; what rests on assumptions has a ~."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from mixer_dist.operations.plan.forecast import Forecast
from mixer_dist.operations.plan.run_plan import RunPlan

WORK = ("matmul_efficiency", "memory_efficiency", "launch_s")
LINKS = ("node_bytes_per_s", "network_bytes_per_s", "collective_s", "node_hop_s", "network_hop_s")
STEP = (*WORK, *LINKS)

Cell = Callable[[RunPlan], str]


@dataclass(frozen=True)
class Row:
    """A quantity, how it is written, and the rates that it rests on."""

    title: str
    cell: Cell
    rates: tuple[str, ...] = ()


def gigabytes(num_bytes: float) -> str:
    """Such as `5.19 GB`."""
    return f"{num_bytes / 1e9:,.2f} GB"


def milliseconds(seconds: float) -> str:
    """Such as `12.3 ms`."""
    return f"{seconds * 1e3:,.1f} ms"


ROWS = (
    Row("GPUs", lambda p: f"{p.num_gpus:,}"),
    Row("micro-batch x accumulation", lambda p: f"{p.micro_batch_size} x {p.grad_accum_steps}"),
    Row("filling", lambda p: f"{p.filling:.1%}"),
    Row("memory a GPU", lambda p: gigabytes(p.memory.total), ("reserve_bytes",)),
    Row("  weights, fp32", lambda p: gigabytes(p.memory.state.weights)),
    Row("  moments, fp32", lambda p: gigabytes(p.memory.state.moments)),
    Row("  weights as computed with", lambda p: gigabytes(p.memory.state.compute_weights)),
    Row("  gradients", lambda p: gigabytes(p.memory.state.gradients)),
    Row("  buffers of collectives", lambda p: gigabytes(p.memory.state.buffers)),
    Row("  activations at their peak", lambda p: gigabytes(p.memory.activations)),
    Row("  reserve", lambda p: gigabytes(p.memory.reserve), ("reserve_bytes",)),
    Row("largest micro-batch that fits", lambda p: str(p.largest_micro_batch), ("reserve_bytes",)),
    Row("host buffer of a save", lambda p: gigabytes(p.memory.snapshot)),
    Row("step", lambda p: milliseconds(p.step.total), STEP),
    Row("  forward and backward", lambda p: milliseconds(p.step.forward_backward), WORK),
    Row("  update", lambda p: milliseconds(p.step.update), ("memory_efficiency",)),
    Row("  exposed communication", lambda p: milliseconds(p.step.exposed), STEP),
    Row("communication in all", lambda p: milliseconds(p.step.communication), LINKS),
    Row("images/s", lambda p: f"{p.images_per_s:,.0f}", STEP),
    Row("MFU", lambda p: f"{p.mfu:.1%}", STEP),
    Row("from the store", lambda p: f"{p.data.bytes_per_s / 1e6:,.0f} MB/s", STEP),
    Row("cores a GPU", lambda p: f"{p.data.cores_per_gpu:.1f}", (*STEP, "images_per_core_s")),
    Row("checkpoint", lambda p: gigabytes(p.schedule.checkpoint_bytes)),
    Row("  written in", lambda p: f"{p.schedule.checkpoint_s:,.1f} s", ("save_bytes_per_s",)),
    Row("  every", lambda p: f"{p.schedule.checkpoint_every_s / 60:,.1f} min", STEP),
    Row("days", lambda p: f"{p.schedule.days:,.2f}", STEP),
    Row("GPU hours", lambda p: f"{p.schedule.gpu_hours:,.0f}", STEP),
)
COST = Row("cost", lambda p: f"{p.schedule.cost or 0:,.0f}", STEP)


def forecast_lines(found: Forecast) -> list[str]:
    """The model, the plans, the engines, what stands in the way, and what is assumed."""
    has_price = any(plan.schedule.cost is not None for plan in found.plans)
    rows = [*ROWS, COST] if has_price else list(ROWS)
    card = f"Card: {found.card}, {gigabytes(found.memory_bytes)}; engine {found.plans[0].engine}."
    size = f"{found.samples.mean_bytes / 1e3:,.0f} KB, {found.samples.source}"
    return [
        found.model,
        f"{card} A sample has {size}.",
        "",
        *aligned([_cells(row, found) for row in rows]),
        "",
        "~ images/s and memory a GPU of each engine:",
        *aligned(list(_engine_rows(found))),
        "",
        *_warning_lines(found),
        *_assumption_lines(found),
    ]


def aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    """Titles to the left, numbers to the right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        "  ".join([title.ljust(widths[0]), *map(str.rjust, cells, widths[1:])]).rstrip()
        for title, *cells in rows
    ]


def _cells(row: Row, found: Forecast) -> list[str]:
    mark = "~ " if set(row.rates) & found.assumed.keys() else "  "
    return [mark + row.title, *map(row.cell, found.plans)]


def _engine_rows(found: Forecast) -> Iterable[list[str]]:
    counts = [plan.num_gpus for plan in found.plans]
    yield ["", *(f"{count:,} GPUs" for count in counts)]
    cells = {
        (each.engine, each.num_gpus): f"{each.images_per_s:,.0f}, {gigabytes(each.memory_bytes)}"
        for each in found.engines
    }
    for engine in dict.fromkeys(each.engine for each in found.engines):
        yield [f"  {engine}", *(cells.get((engine, count), "cannot be") for count in counts)]


def _warning_lines(found: Forecast) -> list[str]:
    of_plans = [f"{plan.num_gpus:,} GPUs: {text}" for plan in found.plans for text in plan.warnings]
    return [f"warning: {text}" for text in (*found.refused, *of_plans)]


def _assumption_lines(found: Forecast) -> list[str]:
    if not found.assumed:
        return []
    values = ", ".join(f"{name} {value:.3g}" for name, value in found.assumed.items())
    return [f"~ rests on rates that are assumed; --calibrate takes measured ones: {values}"]
