"""Picture of a run's training: loss, learning rate, gradient norm and throughput over steps."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray

from mixer_dist.eval.look import (
    DASHES,
    FONT_SIZE,
    Floats,
    Look,
    Palette,
    label,
    log_axis,
    plain_numbers,
    steps_axis,
    style,
    to_png,
)
from mixer_dist.metrics import Line

MAX_POINTS = 2000  # a curve has no more, however long the run is
MAX_MEDIANS = 400  # points of a smoothed curve
MAX_RESUME_LINES = 30
SMOOTH_SHARE = 0.02  # of all steps, that a point of a smoothed curve is the median of
WIDE_RANGE = 20  # highest by lowest loss, above which the axis is logarithmic


@dataclass(frozen=True)
class Curves:
    """What the metrics lines say, as arrays over steps; nan where there is no finite number."""

    steps: Floats
    loss: Floats
    learning_rate: Floats
    grad_norm: Floats
    images_per_s: Floats
    data_wait_percent: Floats
    skips: Floats
    """Steps whose update was skipped."""
    resumes: Floats
    """Last steps before another attempt went on."""


def to_curves(lines: Sequence[Line]) -> Curves:
    """Columns of the merged metrics."""
    steps, attempts = _column(lines, "step"), _column(lines, "attempt")
    is_skipped = np.array([bool(line["update_skipped"]) for line in lines])
    return Curves(
        steps=steps,
        loss=_column(lines, "loss"),
        learning_rate=_column(lines, "learning_rate"),
        grad_norm=_column(lines, "grad_norm"),
        images_per_s=_column(lines, "images_per_s"),
        data_wait_percent=100 * _column(lines, "data_wait_share"),
        skips=steps[is_skipped],
        resumes=steps[:-1][np.diff(attempts) > 0],
    )


def curves_png(curves: Curves, loss_name: str, max_grad_norm: float, look: Look) -> bytes:
    """Loss, learning rate, gradient norm and throughput over steps."""
    figure, panels = look.figure(4, foot=0.4 if look.is_wide else 0.7)
    for axes in panels:
        steps_axis(axes, curves.steps)
        _mark_resumes(axes, curves, look.palette)
    _draw_loss(panels[0], curves, loss_name, look.palette)
    _draw_learning_rate(panels[1], curves, look.palette)
    _draw_grad_norm(panels[2], curves, max_grad_norm, look.palette)
    _draw_throughput(panels[3], curves, look.palette)
    _add_legend(figure, panels, look)
    return to_png(figure)


def thinned(steps: Floats, values: Floats) -> tuple[Floats, Floats]:
    """At most MAX_POINTS: of each stretch the lowest and the highest, so that spikes stay."""
    if len(steps) <= MAX_POINTS:
        return steps, values
    edges = np.linspace(0, len(steps), MAX_POINTS // 2 + 1).astype(int)
    stretches = [start + _extremes(values[start:stop]) for start, stop in pairwise(edges)]
    kept = np.concatenate(stretches)
    return steps[kept], values[kept]


def smoothing_steps(num_steps: int) -> int:
    """How many steps go into a smoothed point: an odd number, 1 for a short run."""
    return 2 * int(num_steps * SMOOTH_SHARE / 2) + 1


def smoothed(steps: Floats, values: Floats) -> tuple[Floats, Floats]:
    """Centred moving median of the finite values; nan where a whole window has none."""
    half = smoothing_steps(len(steps)) // 2
    centres = np.linspace(0, len(steps) - 1, min(len(steps), MAX_MEDIANS)).round().astype(int)
    windows = (values[max(centre - half, 0) : centre + half + 1] for centre in centres)
    medians = [np.nan if np.isnan(window).all() else np.nanmedian(window) for window in windows]
    return steps[centres], np.array(medians)


def _column(lines: Sequence[Line], name: str) -> Floats:
    return np.array([line[name] for line in lines], np.float64)


def _extremes(values: Floats) -> NDArray[np.int64]:
    """Indices of the lowest and highest value in their order; 0 where all are nan."""
    if np.isnan(values).all():
        return np.array([0])
    return np.sort([np.nanargmin(values), np.nanargmax(values)])


def _draw_loss(axes: Axes, curves: Curves, loss_name: str, palette: Palette) -> None:
    label(axes, "Loss", f"{loss_name} loss per image", palette)
    _draw_noisy(axes, curves, curves.loss, palette)
    _mark_skips(axes, curves, palette)
    finite = curves.loss[np.isfinite(curves.loss)]
    if not len(finite):
        axes.set_yticks([])
    elif finite.max() > WIDE_RANGE * max(finite.min(), 0.0) > 0:
        log_axis(axes, finite)


def _draw_learning_rate(axes: Axes, curves: Curves, palette: Palette) -> None:
    label(axes, "Learning rate", "learning rate", palette)
    _draw(axes, *thinned(curves.steps, curves.learning_rate), palette.primary)
    axes.set_ylim(bottom=0)
    plain_numbers(axes)


def _draw_grad_norm(axes: Axes, curves: Curves, limit: float, palette: Palette) -> None:
    label(axes, "Gradient norm", "global L2 norm before clipping", palette)
    positive = np.where(curves.grad_norm > 0, curves.grad_norm, np.nan)
    _draw_noisy(axes, curves, positive, palette)
    _mark_skips(axes, curves, palette)
    axes.axhline(limit, color=palette.secondary, lw=1, ls=DASHES, label="clipped above")
    log_axis(axes, np.append(positive[np.isfinite(positive)], limit))


def _draw_throughput(axes: Axes, curves: Curves, palette: Palette) -> None:
    """Images a second, and the share of time that steps waited for data."""
    label(axes, "Throughput", "images/s", palette)
    _draw_waits(axes.twinx(), curves, palette)
    _draw_noisy(axes, curves, curves.images_per_s, palette)
    axes.yaxis.label.set_color(palette.primary)
    axes.tick_params(axis="y", labelcolor=palette.primary)
    axes.set_ylim(0, 1.15 * max(np.nanmax(np.append(curves.images_per_s, 0.0)), 1e-9))
    plain_numbers(axes)


def _draw_waits(axes: Axes, curves: Curves, palette: Palette) -> None:
    style(axes, palette)
    axes.grid(False)
    axes.spines[:].set_visible(False)
    axes.set_ylabel("waiting for data (% of time)", fontsize=FONT_SIZE, color=palette.secondary)
    axes.tick_params(axis="y", labelcolor=palette.secondary)
    axes.set_ylim(0, 100)
    axes.set_yticks([25, 50, 75, 100])
    steps, shares = thinned(curves.steps, curves.data_wait_percent)
    axes.fill_between(steps, shares, color=palette.secondary, alpha=0.25, lw=0)
    _draw(axes, *smoothed(curves.steps, curves.data_wait_percent), palette.secondary)


def _draw_noisy(axes: Axes, curves: Curves, values: Floats, palette: Palette) -> None:
    """Each step thin and pale, the smoothed curve over it; a short run has just the steps."""
    window = smoothing_steps(len(values))
    steps, shown = thinned(curves.steps, values)
    if window == 1:
        _draw(axes, steps, shown, palette.primary, "each step")
        return
    axes.plot(steps, shown, color=palette.faint, lw=0.7, label="each step", zorder=1)
    _draw(axes, *smoothed(curves.steps, values), palette.primary, f"median of {window:,} steps")


def _draw(axes: Axes, steps: Floats, values: Floats, color: str, name: str = "_") -> None:
    marker = "o" if len(steps) <= 30 else ""
    axes.plot(steps, values, color=color, lw=1.5, marker=marker, ms=3, label=name)


def _mark_skips(axes: Axes, curves: Curves, palette: Palette) -> None:
    """A cross at the lower edge for each skipped update."""
    if len(curves.skips):
        steps, _ = thinned(curves.skips, curves.skips)
        axes.plot(
            steps, np.full(len(steps), 0.035), "x", color=palette.alert, ms=5, mew=1.3,
            transform=axes.get_xaxis_transform(), label="update skipped",
        )  # fmt: skip


def _mark_resumes(axes: Axes, curves: Curves, palette: Palette) -> None:
    """A dotted line for each, or a tick at the upper edge where lines would cover the curves."""
    are_few = len(curves.resumes) <= MAX_RESUME_LINES
    if len(curves.resumes):
        axes.vlines(
            curves.resumes, 0 if are_few else 0.96, 1, transform=axes.get_xaxis_transform(),
            color=palette.muted, lw=1, ls=":" if are_few else "-", label="resumed", zorder=1.5,
        )  # fmt: skip


def _add_legend(figure: Figure, panels: Sequence[Axes], look: Look) -> None:
    """One for all panels, below them, so that it covers no curve."""
    entries: dict[str, Artist] = {}
    for axes in panels:
        handles, names = axes.get_legend_handles_labels()
        entries |= dict(zip(names, handles, strict=True))
    figure.legend(
        list(entries.values()), list(entries), loc="lower center", frameon=False,
        ncols=5 if look.is_wide else 2, fontsize=FONT_SIZE, labelcolor=look.palette.muted,
    )  # fmt: skip
