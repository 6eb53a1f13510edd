"""Pictures of measured values over steps, samples seen or GPU-hours: a panel a task.

Curves are those of one run by method, or those of several runs.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import cycle, product

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patheffects import withStroke
from matplotlib.ticker import EngFormatter, Formatter, FuncFormatter, MaxNLocator

from mixer_dist.eval.look import (
    DASHES,
    FONT_SIZE,
    ROUND_STEPS,
    WHOLE,
    Floats,
    Look,
    Palette,
    across,
    label,
    log_axis,
    plain_numbers,
    to_png,
)
from mixer_dist.eval.report.effort import Axis, Effort

AXES: dict[Axis, str] = {"step": "step", "samples": "samples seen", "gpu_hours": "GPU-hours"}

PERCENT = 100.0
MAX_LABELS = 8  # values written beside the points of one panel
MAX_MARKED = 30  # points of a curve, each with a marker
MAX_NAME = 28  # letters of a task's name
WIDE_RANGE = 20  # highest by lowest loss, above which the axis is logarithmic

_FORMATS: dict[Axis, Formatter] = {
    "step": WHOLE,
    "samples": EngFormatter(sep=""),
    "gpu_hours": FuncFormatter(lambda value, _: f"{value:,g}"),
}
_DASHES = ("-", DASHES, ":")  # for more curves than there are colours


@dataclass(frozen=True)
class Point:
    """A value as it is drawn, accuracies in percent, and its standard error."""

    effort: Effort
    value: float
    error: float = 0.0


@dataclass(frozen=True)
class Series:
    """A curve; the only one of a panel needs no name."""

    points: Sequence[Point]
    name: str = ""


@dataclass(frozen=True)
class Panel:
    """What is drawn on one pair of axes."""

    title: str
    unit: str
    series: Sequence[Series]
    chance: float | None = None
    """In percent; None where values are no accuracies."""

    def reaches(self, axis: Axis) -> bool:
        """Whether the axis tells more than where it begins."""
        efforts = [point.effort for series in self.series for point in series.points]
        return axis == "step" or any(effort.along(axis) for effort in efforts)


def panels_png(panels: Sequence[Panel], axis: Axis, look: Look) -> bytes:
    """All panels that have points along an axis."""
    shown = [panel for panel in panels if panel.reaches(axis)]
    styles = _styles(shown, look.palette)
    figure, places = look.figure(len(shown), foot=_foot(len(styles), look))
    for axes, panel in zip(places, shown, strict=True):
        _draw_panel(axes, panel, axis, styles, look.palette)
    _add_legend(figure, styles, look)
    return to_png(figure)


@dataclass(frozen=True)
class _Style:
    color: str
    dashes: object


def _styles(panels: Sequence[Panel], palette: Palette) -> dict[str, _Style]:
    """The same for a name in all panels, so that one legend tells."""
    names = dict.fromkeys(each.name for panel in panels for each in panel.series if each.name)
    styles = (_Style(color, dashes) for dashes, color in product(_DASHES, palette.series))
    return dict(zip(names, cycle(styles), strict=False))


def _draw_panel(
    axes: Axes, panel: Panel, axis: Axis, styles: Mapping[str, _Style], palette: Palette
) -> None:
    label(axes, _short(panel.title), panel.unit, palette, along=AXES[axis])
    only = _Style(palette.primary, "-")
    drawn = [_draw_series(axes, each, axis, styles.get(each.name, only)) for each in panel.series]
    across(axes, np.concatenate([xs for xs, _ in drawn]), _FORMATS[axis], room_share=0.08)
    values = np.concatenate([tops for _, tops in drawn])
    if panel.chance is None:
        _loss_axis(axes, values)
    else:
        _percent_axis(axes, 1.2 * max(values.max(), panel.chance))
        _mark_chance(axes, panel.chance, palette)
    if len(panel.series) == 1:
        _write_values(axes, panel, axis, palette)


def _draw_series(axes: Axes, series: Series, axis: Axis, style: _Style) -> tuple[Floats, Floats]:
    """A curve whose bars are one standard error long; its places, and its highest values."""
    points = _along(series, axis)
    places = np.array([place for place, _ in points])
    values = np.array([point.value for _, point in points])
    errors = np.array([point.error for _, point in points])
    axes.errorbar(
        places, values, errors if errors.any() else None, color=style.color, ls=style.dashes,
        marker="o" if len(points) <= MAX_MARKED else "", ms=4.5, lw=1.5, elinewidth=1.1,
        capsize=3,
    )  # fmt: skip
    return places, values + errors


def _along(series: Series, axis: Axis) -> list[tuple[float, Point]]:
    """Points whose place on the axis is known, and that place."""
    places = ((point.effort.along(axis), point) for point in series.points)
    return [(place, point) for place, point in places if place is not None]


def _mark_chance(axes: Axes, chance: float, palette: Palette) -> None:
    axes.axhline(chance, color=palette.muted, lw=1, ls=DASHES)
    note = f"dashed: chance, {chance:.3g} %"
    axes.set_title(note, loc="right", fontsize=FONT_SIZE - 1, color=palette.muted)


def _percent_axis(axes: Axes, top: float) -> None:
    """From just below 0, so that points there are whole, with no tick above 100 %."""
    ticks = MaxNLocator(6, steps=ROUND_STEPS).tick_values(0, top)
    axes.set_yticks([tick for tick in ticks if 0 <= tick <= min(top, 100)])
    axes.set_ylim(-0.03 * top, top)


def _loss_axis(axes: Axes, values: Floats) -> None:
    if values.max(initial=0.0) > WIDE_RANGE * max(values.min(initial=np.inf), 0.0) > 0:
        log_axis(axes, values)
    else:
        axes.margins(y=0.15)
        plain_numbers(axes)


def _write_values(axes: Axes, panel: Panel, axis: Axis, palette: Palette) -> None:
    """Numbers above points, on the side from which the curve does not go on."""
    points = _along(panel.series[0], axis)
    last = len(points) - 1
    for i in np.linspace(0, last, min(len(points), MAX_LABELS)).round().astype(int):
        place, point = points[i]
        slope = points[i + 1][1].value - point.value if i < last else 0.0
        axes.annotate(
            f"{point.value:.3g}" if panel.chance is None else f"{point.value:.1f}",
            (place, point.value + point.error), xytext=(2 * np.sign(slope), 4),
            textcoords="offset points", va="bottom", fontsize=FONT_SIZE - 0.5,
            ha="right" if slope > 0 else "left" if slope < 0 else "center", color=palette.text,
            path_effects=[withStroke(linewidth=3, foreground=palette.background)],
        )  # fmt: skip


def _num_columns(look: Look) -> int:
    return 4 if look.is_wide else 2


def _foot(num_names: int, look: Look) -> float:
    """Inches that the legend takes."""
    return 0.25 * -(-num_names // _num_columns(look)) + 0.15 if num_names else 0.0


def _add_legend(figure: Figure, styles: Mapping[str, _Style], look: Look) -> None:
    """One for all panels, below them, so that it covers no curve."""
    if not styles:
        return
    lines = [
        Line2D([], [], color=s.color, ls=s.dashes, marker="o", ms=4.5) for s in styles.values()
    ]
    legend = figure.legend(
        lines, [_short(name) for name in styles], loc="lower center", frameon=False,
        ncols=_num_columns(look), fontsize=FONT_SIZE, labelcolor=look.palette.muted,
    )  # fmt: skip
    for text in legend.get_texts():
        text.set_parse_math(False)


def _short(name: str) -> str:
    return name if len(name) <= MAX_NAME else name[: MAX_NAME - 1] + "…"
