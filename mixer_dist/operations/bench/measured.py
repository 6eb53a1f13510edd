"""What a bench found: figures for people, the same as JSON, and the rates that `plan` takes."""

from dataclasses import dataclass, field
from typing import Any, NamedTuple

from mixer_dist.operations.plan.rates import Rates


class Figure(NamedTuple):
    """One number."""

    key: str
    """In JSON, with its unit."""
    title: str
    value: float
    unit: str = ""
    """In the table, where the value is divided by `scale`."""
    scale: float = 1.0


@dataclass(frozen=True)
class Measured:
    """All numbers of one bench."""

    setting: str
    """On what, in a sentence."""
    figures: tuple[Figure, ...]
    rates: dict[str, float] = field(default_factory=dict)
    """What `plan --calibrate` takes of them."""
    notes: tuple[str, ...] = ()
    """Further lines."""

    def __post_init__(self) -> None:
        assert self.rates.keys() <= Rates.model_fields.keys(), self.rates


def measured_tree(found: Measured) -> dict[str, Any]:
    """The same as JSON takes it."""
    figures = {figure.key: figure.value for figure in found.figures}
    return {"setting": found.setting, **figures, "rates": found.rates, "notes": found.notes}


def measured_lines(found: Measured) -> list[str]:
    """A line a figure."""
    width = max((len(figure.title) for figure in found.figures), default=0)
    return [
        found.setting,
        *(f"{f.title:{width}}  {_number(f.value / f.scale)} {f.unit}" for f in found.figures),
        *found.notes,
    ]


def _number(value: float) -> str:
    return f"{value:>12,.0f}" if value >= 1000 else f"{value:>12.3g}"
