"""Picture of where a run's wall time went: the share of each kind over time."""

from itertools import pairwise

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from mixer_dist.eval.look import FONT_SIZE, ROUND_STEPS, Floats, Look, Palette, label, to_png
from mixer_dist.goodput import Goodput, Kind

NUM_BINS = 240
UNITS = ((86_400.0, "days"), (3_600.0, "hours"), (60.0, "minutes"), (1.0, "seconds"))
NAMES: dict[Kind, str] = {
    "productive": "training", "data_wait": "data wait", "checkpoint": "checkpoint",
    "lost": "lost", "start_up": "start-up", "down": "between attempts",
}  # fmt: skip


def timeline_png(spent: Goodput, look: Look) -> bytes:
    """Stacked shares of all kinds in equal stretches of wall time, with a mark at each attempt."""
    figure, (axes,) = look.figure(1, foot=0.35 if look.is_wide else 0.7)
    unit_s, unit = _unit(spent.wall_s)
    edges = np.linspace(0, spent.wall_s, NUM_BINS + 1)
    bottom = np.zeros(NUM_BINS)
    for kind, color in _colors(look.palette).items():
        shares = _shares(spent, kind, edges)
        axes.stairs(bottom + shares, edges / unit_s, baseline=bottom, fill=True, color=color,
                    label=f"{NAMES[kind]} {spent.seconds[kind] / spent.wall_s:.1%}")  # fmt: skip
        bottom += shares
    _mark_attempts(axes, spent, unit_s, look.palette)
    _name_axes(axes, spent, unit, look.palette)
    _add_legend(figure, look)
    return to_png(figure)


def _colors(palette: Palette) -> dict[Kind, str]:
    """In the order in which they are stacked."""
    return {
        "productive": palette.primary, "data_wait": palette.faint, "checkpoint": palette.muted,
        "start_up": palette.secondary, "lost": palette.alert, "down": palette.grid,
    }  # fmt: skip


def _unit(wall_s: float) -> tuple[float, str]:
    """The largest of which there are at least two."""
    return next((unit for unit in UNITS if wall_s >= 2 * unit[0]), UNITS[-1])


def _shares(spent: Goodput, kind: Kind, edges: Floats) -> Floats:
    """Percent of each stretch between two edges (in seconds since the start)."""
    start = spent.spans[0].start
    stops = [span.stop - start for span in spent.spans]
    used = np.cumsum([span.seconds.get(kind, 0.0) for span in spent.spans])
    # Within a span every kind grows evenly, so that the sum up to an edge is on a straight line.
    up_to = np.interp(edges, [0.0, *stops], [0.0, *used])
    shares: Floats = 100 * np.diff(up_to) / np.diff(edges)
    return shares


def _mark_attempts(axes: Axes, spent: Goodput, unit_s: float, palette: Palette) -> None:
    """A tick above the picture where another attempt began."""
    starts = [after.start for before, after in pairwise(spent.spans)
              if after.attempt is not None and after.attempt != before.attempt]  # fmt: skip
    where = [(start - spent.spans[0].start) / unit_s for start in starts]
    axes.plot(
        where, [1.02] * len(where), marker=7, ls="", ms=5, color=palette.muted, clip_on=False,
        transform=axes.get_xaxis_transform(), label="_",
    )  # fmt: skip


def _name_axes(axes: Axes, spent: Goodput, unit: str, palette: Palette) -> None:
    label(axes, f"Goodput {spent.share or 0:.1%}", "share of wall time (%)", palette)
    axes.set_xlabel(f"{unit} since the first start", fontsize=FONT_SIZE, color=palette.muted)
    axes.xaxis.set_major_locator(MaxNLocator(8, steps=ROUND_STEPS))
    axes.set_ylim(0, 100)
    axes.margins(x=0)
    axes.grid(False)


def _add_legend(figure: Figure, look: Look) -> None:
    figure.legend(
        loc="lower center", frameon=False, ncols=6 if look.is_wide else 2, fontsize=FONT_SIZE,
        labelcolor=look.palette.muted,
    )  # fmt: skip
