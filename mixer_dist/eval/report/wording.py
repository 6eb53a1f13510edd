"""How numbers and models are written on a page."""

from collections.abc import Mapping

from mixer_dist.config import ModelConfig
from mixer_dist.eval.report.chosen import Chosen
from mixer_dist.eval.report.evaluation import LOSS, Measure
from mixer_dist.eval.report.panels import PERCENT

NOT_KNOWN = "–"


def count(number: int | None) -> str:
    return NOT_KNOWN if number is None else f"{number:,}"


def brief(number: float | None) -> str:
    """A few digits of it."""
    return NOT_KNOWN if number is None else f"{number:,.4g}"


def percent(share: float | None) -> str:
    return NOT_KNOWN if share is None else f"{PERCENT * share:.2f} %"


def measured(measures: Mapping[str, Measure], metric: str) -> str:
    """A value with its standard error."""
    measure = measures[metric]
    if metric == LOSS:
        return brief(measure.value)
    if measure.standard_error is None:
        return percent(measure.value)
    return f"{PERCENT * measure.value:.2f} ± {percent(measure.standard_error)}"


def choice(chosen: Chosen | None) -> str:
    """The best checkpoint, and how good it is."""
    if chosen is None:
        return NOT_KNOWN
    value = measured(chosen.evaluation.measures, chosen.criterion.metric)
    return f"step {chosen.evaluation.step:,}{', pinned' if chosen.is_pinned else ''}: {value}"


def model(config: ModelConfig) -> str:
    size = f"{config.hidden_dim} × {config.num_blocks}, patch {config.patch_size}"
    return f"Mixer-{config.variant or size}, {config.image_size} px, {config.num_classes:,} classes"
