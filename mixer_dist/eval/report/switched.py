"""Panels along every axis on which they have points, of which a page shows one at a time."""

from collections.abc import Sequence
from functools import partial

from mixer_dist.eval.report import page
from mixer_dist.eval.report.panels import AXES, Panel, panels_png
from mixer_dist.eval.report.picture import Picture, picture


def switched(name: str, panels: Sequence[Panel]) -> tuple[str, dict[str, bytes]]:
    """HTML, and the pictures as files that begin with the name."""
    drawn: dict[str, Picture] = {}
    files: dict[str, bytes] = {}
    for axis, title in AXES.items():
        if any(panel.reaches(axis) for panel in panels):
            drawn[title] = picture(
                partial(panels_png, panels, axis),
                f"{name.capitalize()} against {title}: the numbers are in the tables.",
            )
            suffix = "" if axis == "step" else f"-{axis.replace('_', '-')}"
            files[f"{name}{suffix}.png"] = drawn[title].png
    return page.switched("Against", drawn), files
