"""A picture of how a run's speed grows with the number of GPUs, under each engine."""

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

from mixer_dist.eval.look import (
    FONT_SIZE,
    Floats,
    Look,
    Palette,
    label,
    log_axis,
    plain_numbers,
    to_png,
)

Curves = Mapping[str, Sequence[tuple[int, float]]]
"""(GPUs, images a second) by engine."""

# The engines' lines, apart from each other by more than their colour.
DASHES = {"ddp": "-", "fsdp": "-", "hsdp": "-", "zero1": "--", "zero2": "--", "zero3": "--"}
MARKERS = {"ddp": "o", "fsdp": "s", "hsdp": "^", "zero1": "o", "zero2": "s", "zero3": "^"}


def scaling_png(curves: Curves, card: str, look: Look) -> bytes:
    """Images a second, and what each GPU does of that, relative to the best on the fewest GPUs."""
    figure, (speed, share) = look.figure(2)
    fewest = min(curve[0][0] for curve in curves.values())
    best = max(rate / count for curve in curves.values() for count, rate in curve[:1])
    for engine, curve in curves.items():
        counts, rates = np.array(curve, dtype=np.float64).T
        lines = [(speed, rates), (share, 100 * rates / counts / best)]
        for axes, values in lines:
            axes.plot(
                counts, values, DASHES[engine], marker=MARKERS[engine], ms=4, lw=1.5,
                color=_colour(engine, look.palette), label=engine,
            )  # fmt: skip
    counts = np.unique([count for curve in curves.values() for count, _ in curve]).astype(float)
    speed.plot(counts, counts * best, color=look.palette.grid, lw=5, zorder=0, label="linear")
    log_axis(speed, counts * best)
    plain_numbers(speed)
    share.set_ylim(0, 105)
    for axes in (speed, share):
        _gpus_axis(axes, counts)
    label(speed, f"Images a second on {card}", "images/s, planned", look.palette)
    label(share, "Speed of one GPU", f"% of the best engine on {fewest} GPUs", look.palette)
    for axes in (speed, share):
        axes.set_xlabel("GPUs", fontsize=FONT_SIZE, color=look.palette.muted)
    speed.legend(frameon=False, fontsize=FONT_SIZE - 0.5, labelcolor=look.palette.text)
    return to_png(figure)


def _colour(engine: str, palette: Palette) -> str:
    """One for the engines that keep the state whole, share it in a node, or among all."""
    colours = (palette.alert, palette.primary, palette.secondary)
    return colours[list(MARKERS).index(engine) % len(colours)]


def _gpus_axis(axes: Axes, counts: Floats) -> None:
    axes.set_xscale("log", base=2)
    axes.xaxis.set_major_locator(FixedLocator(list(counts)))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(FuncFormatter(lambda count, _: f"{count:,.0f}"))
