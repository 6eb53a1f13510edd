"""The plans for all numbers of GPUs that were asked for, and how other engines would do there."""

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from mixer_dist.config import RunConfig
from mixer_dist.errors import ConfigError
from mixer_dist.operations.plan.cards import Card
from mixer_dist.operations.plan.data_rates import Samples, samples_of
from mixer_dist.operations.plan.memory import rank_memory, with_largest_micro_batch
from mixer_dist.operations.plan.rates import Rates
from mixer_dist.operations.plan.run_plan import RunPlan, plan_run
from mixer_dist.operations.plan.setup import Setup, set_up
from mixer_dist.operations.plan.step_time import step_time
from mixer_dist.train.description import describe

ENGINES = ("ddp", "fsdp", "hsdp", "zero1", "zero2", "zero3")
CURVE_GPUS = tuple(2**power for power in range(3, 13))  # 8 to 4,096


@dataclass(frozen=True)
class EngineOutlook:
    """A run under one engine."""

    engine: str
    num_gpus: int
    images_per_s: float
    memory_bytes: float


@dataclass(frozen=True)
class Forecast:
    """What a run will need, wherever it may run."""

    model: str
    """In a sentence."""
    card: str
    memory_bytes: int
    """Of the card."""
    samples: Samples
    plans: tuple[RunPlan, ...]
    engines: tuple[EngineOutlook, ...]
    refused: tuple[str, ...]
    """Numbers of GPUs that cannot be, and why."""
    assumed: dict[str, float]
    """Rates that were not measured."""


def forecast(
    config: RunConfig,
    gpu_counts: Sequence[int],
    card: Card,
    rates: Rates,
    price_per_gpu_hour: float | None = None,
) -> Forecast:
    """Plan each number of GPUs that can be; ConfigError where none can."""
    setups, refused = [], []
    for num_gpus in gpu_counts:
        try:
            setups.append(_set_up(config, num_gpus, card, rates))
        except ConfigError as error:
            refused.append(str(error))
    if not setups:
        raise ConfigError("; ".join(refused))
    samples = samples_of(config, rates)
    return Forecast(
        model=describe(config, setups[0].num_gpus)[0],
        card=card.title,
        memory_bytes=card.memory_bytes,
        samples=samples,
        plans=tuple(plan_run(setup, samples, price_per_gpu_hour) for setup in setups),
        engines=tuple(outlooks(config, [each.num_gpus for each in setups], card, rates)),
        refused=tuple(refused),
        assumed=rates.assumed(card),
    )


def outlooks(
    config: RunConfig, gpu_counts: Sequence[int], card: Card, rates: Rates
) -> Iterator[EngineOutlook]:
    """Each engine on each number of GPUs that it can run on."""
    for num_gpus in gpu_counts:
        for engine in ENGINES:
            try:
                setup = _set_up(config, num_gpus, card, rates, engine)
            except ConfigError:
                continue
            images_per_s = config.global_batch_size / step_time(setup).total
            yield EngineOutlook(engine, num_gpus, images_per_s, rank_memory(setup).total)


def scaling(config: RunConfig, card: Card, rates: Rates) -> dict[str, list[tuple[int, float]]]:
    """(GPUs, images a second) of each engine, up to where the batch cannot be cut further."""
    curves: dict[str, list[tuple[int, float]]] = {engine: [] for engine in ENGINES}
    for engine, curve in curves.items():
        for num_gpus in CURVE_GPUS:
            try:
                setup = _set_up(config, num_gpus, card, rates, engine)
            except ConfigError:
                continue
            curve.append((num_gpus, config.global_batch_size / step_time(setup).total))
    return {engine: curve for engine, curve in curves.items() if curve}


def _set_up(
    config: RunConfig, num_gpus: int, card: Card, rates: Rates, engine: str | None = None
) -> Setup:
    return with_largest_micro_batch(set_up(config, num_gpus, card, rates, engine))


def forecast_tree(found: Forecast) -> dict[str, Any]:
    """The same as plain data, sums included."""
    tree = asdict(found)
    for plan, plain in zip(found.plans, tree["plans"], strict=True):
        plain["memory"]["total"] = plan.memory.total
        plain["step"]["total"] = plan.step.total
    return tree
