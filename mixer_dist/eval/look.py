"""How pictures and pages look: colours, panels and axes."""

import io
from dataclasses import dataclass

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import Formatter, FuncFormatter, LogLocator, MaxNLocator, NullFormatter
from numpy.typing import NDArray

DPI = 130
FONT_SIZE = 9.5

# In inches: pictures, and the room around each panel.
WIDE, NARROW = 11.4, 5.4
ROW_HEIGHT = 3.3
LEFT, RIGHT, BOTTOM, TOP = 0.76, 0.66, 0.58, 0.42

DASHES = (0, (5, 3))
ROUND_STEPS = (1, 2, 2.5, 5, 10)  # between ticks, times a power of ten

WHOLE = FuncFormatter(lambda value, _: f"{value:,.0f}")

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Palette:
    """The colours of pictures and page, chosen to be told apart by everyone."""

    background: str
    text: str
    muted: str
    grid: str
    primary: str
    faint: str
    """For a thin line behind one in the primary colour."""
    secondary: str
    alert: str
    series: tuple[str, ...]
    """Of curves that are compared, in their order."""


LIGHT = Palette(
    background="#ffffff", text="#1d2733", muted="#5f6b7a", grid="#e4e8ed",
    primary="#23578f", faint="#a9c3df", secondary="#b8621b", alert="#c0392b",
    series=("#23578f", "#b8621b", "#2e7d4f", "#8450a8", "#b3375f", "#137f8b", "#7d7320", "#5f6b7a"),
)  # fmt: skip
DARK = Palette(
    background="#161b22", text="#e3e8ee", muted="#98a4b3", grid="#2b333e",
    primary="#86b6ea", faint="#3f5f85", secondary="#e3a063", alert="#ff8a7a",
    series=("#86b6ea", "#e3a063", "#7fcf9d", "#c6a3ea", "#f391ae", "#6fd0d8", "#d2c86e", "#98a4b3"),
)  # fmt: skip


@dataclass(frozen=True)
class Look:
    """How a picture is laid out: for a wide page, or with one panel in a row for a phone."""

    palette: Palette = LIGHT
    is_wide: bool = True

    def figure(self, num_panels: int, foot: float = 0.0) -> tuple[Figure, list[Axes]]:
        """An empty figure with that many panels, and room below them (in inches)."""
        num_columns = min(num_panels, 2) if self.is_wide else 1
        num_rows = -(-num_panels // num_columns)
        width = WIDE if self.is_wide else NARROW
        height = num_rows * ROW_HEIGHT + foot
        figure = Figure((width, height), DPI, facecolor=self.palette.background)
        for i in range(num_panels):
            row, column = divmod(i, num_columns)
            left, bottom = column * width / num_columns, height - (row + 1) * ROW_HEIGHT
            panel = (width / num_columns, ROW_HEIGHT)
            style(_panel(figure, (left, bottom), panel), self.palette)
        return figure, figure.axes


def _panel(figure: Figure, corner: tuple[float, float], size: tuple[float, float]) -> Axes:
    """Axes with fixed room for their names around them: laying out by measuring is far slower."""
    width, height = figure.get_size_inches()
    return figure.add_axes((
        (corner[0] + LEFT) / width,
        (corner[1] + BOTTOM) / height,
        (size[0] - LEFT - RIGHT) / width,
        (size[1] - BOTTOM - TOP) / height,
    ))  # fmt: skip


def style(axes: Axes, palette: Palette) -> None:
    """Quiet axes: a pale grid, no ticks, no box."""
    axes.set_facecolor(palette.background)
    axes.grid(True, color=palette.grid, lw=0.8)
    axes.set_axisbelow(True)
    axes.tick_params(colors=palette.muted, labelsize=FONT_SIZE - 0.5, length=0, which="both")
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(palette.grid)


def label(axes: Axes, title: str, unit: str, palette: Palette, along: str = "step") -> None:
    """Say what a panel shows along which axis, and in which unit."""
    # A name from outside may hold a $, which would else be read as mathematics.
    axes.set_title(
        title, loc="left", fontsize=FONT_SIZE + 1.5, fontweight="bold", color=palette.text,
        parse_math=False,
    )  # fmt: skip
    axes.set_ylabel(unit, fontsize=FONT_SIZE, color=palette.muted)
    axes.set_xlabel(along, fontsize=FONT_SIZE, color=palette.muted)


def steps_axis(axes: Axes, steps: Floats, room_share: float = 0.03) -> None:
    """Whole steps along the horizontal axis."""
    across(axes, steps, WHOLE, room_share)


def across(axes: Axes, values: Floats, shown: Formatter, room_share: float = 0.03) -> None:
    """The horizontal axis with some room at both ends, also around a single value."""
    first, last = values.min(), values.max()
    room = room_share * (last - first) or 1.0
    axes.set_xlim(first - room, last + room)
    if first == last:
        axes.set_xticks([first])
    else:
        is_whole = bool((values == values.round()).all())
        axes.xaxis.set_major_locator(MaxNLocator(5, steps=ROUND_STEPS, integer=is_whole))
    axes.xaxis.set_major_formatter(shown)


def log_axis(axes: Axes, values: Floats) -> None:
    """A logarithmic axis around positive values that has at least two labelled ticks."""
    low, high = values.min() / 1.8, values.max() * 1.8
    axes.set_yscale("log")
    axes.set_ylim(low, high)
    decades = np.log10(high / low)
    marks = (1, 1.5, 2, 3, 5, 7) if decades < 0.8 else (1, 2, 5) if decades < 3 else (1,)
    axes.yaxis.set_major_locator(LogLocator(subs=marks))
    plain_numbers(axes)
    axes.yaxis.set_minor_formatter(NullFormatter())


def plain_numbers(axes: Axes) -> None:
    """Values as 0.0005, 20 or 2.5k, and no power of ten above the axis."""
    axes.yaxis.set_major_formatter(
        FuncFormatter(lambda value, _: f"{value / 1000:g}k" if value >= 1000 else f"{value:g}")
    )


def to_png(figure: Figure) -> bytes:
    """The picture's file."""
    stream = io.BytesIO()
    figure.savefig(stream, format="png", facecolor=figure.get_facecolor())
    return stream.getvalue()
