"""A proof in words, as a picture and for machines."""

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import numpy as np
from matplotlib.axes import Axes

from mixer_dist.eval.look import (
    FONT_SIZE,
    Floats,
    Look,
    Palette,
    label,
    log_axis,
    steps_axis,
    to_png,
)
from mixer_dist.metrics import Line
from mixer_dist.operations.verify_resume.plan import Plan
from mixer_dist.operations.verify_resume.proof import Proof

DASHES = (0, (4, 3))


def proof_lines(proof: Proof) -> list[str]:
    """What the two runs have in common, and the verdict."""
    steps, values = proof.steps, proof.values
    hits = ", ".join(map(str, proof.hits))
    return [
        f"interrupted   after steps {hits}; {proof.num_repeated_steps} steps lost and done again",
        f"same data     {steps.num_same_data} of {steps.num_steps} steps, by batch_digest",
        f"same loss     {steps.num_same_losses} of {steps.num_steps} steps to the last bit",
        f"same state    {values.num_same:,} of {values.num_values:,} values to the last bit",
        f"farthest      losses {steps.loss_distance:.1e}, state {values.distance:.1e}",
        f"allowed       {_allowed(proof)}",
        _verdict(proof),
    ]


def proof_tree(plan: Plan, proof: Proof) -> dict[str, Any]:
    """The same as plain data."""
    return {
        "holds": proof.holds,
        "steps": asdict(proof.steps),
        "values": asdict(proof.values),
        "tolerance": asdict(proof.tolerance),
        "hits": list(proof.hits),
        "num_repeated_steps": proof.num_repeated_steps,
        "starts": [str(start) for start in plan.starts],
        "incidents": [asdict(incident) for incident in plan.incidents],
    }


def _allowed(proof: Proof) -> str:
    if proof.tolerance.losses == 0:
        return "nothing, as all starts are alike"
    return (
        f"losses {proof.tolerance.losses:.1e}, state {proof.tolerance.values:.1e}, as other "
        "starts sum in another order"
    )


def _verdict(proof: Proof) -> str:
    if proof.holds:
        return "proved        the interrupted run is the run that nothing happened to"
    step = proof.steps.first_difference
    where = "in its weights alone" if step is None else f"from step {step} on"
    return f"NOT the same  the interrupted run differs {where}"


def proof_png(plan: Plan, proof: Proof, look: Look) -> bytes:
    """Both losses over steps, and how far they are apart."""
    figure, (losses, distance) = look.figure(2)
    whole, interrupted = (
        _losses(lines, plan.num_steps) for lines in (proof.lines, proof.interrupted_lines)
    )
    steps = np.arange(1, plan.num_steps + 1, dtype=np.float64)
    for axes in (losses, distance):
        steps_axis(axes, steps)
        _mark(axes, proof.hits, look.palette)
    _draw_losses(losses, steps, whole, interrupted, plan.config.loss, look.palette)
    _draw_distance(distance, steps, whole, interrupted, look.palette)
    return to_png(figure)


def _losses(lines: Sequence[Line], num_steps: int) -> Floats:
    """The loss of each step, nan where it is not finite or missing."""
    found = {line["step"]: line["loss"] for line in lines}
    return np.array([found.get(step) for step in range(1, num_steps + 1)], dtype=np.float64)


def _mark(axes: Axes, hits: Sequence[int], palette: Palette) -> None:
    """A line where each interruption hit, between two steps."""
    for step in hits:
        axes.axvline(step + 0.5, color=palette.alert, lw=1, ls=DASHES)


def _draw_losses(
    axes: Axes, steps: Floats, whole: Floats, interrupted: Floats, name: str, palette: Palette
) -> None:
    axes.plot(steps, whole, color=palette.faint, lw=6, solid_capstyle="round", label="left alone")
    axes.plot(steps, interrupted, color=palette.primary, lw=1.4, label="interrupted")
    axes.plot([], [], color=palette.alert, lw=1, ls=DASHES, label="interruption")
    axes.legend(frameon=False, fontsize=FONT_SIZE - 0.5, labelcolor=palette.text)
    label(axes, "Loss of both runs", name, palette)


def _draw_distance(
    axes: Axes, steps: Floats, whole: Floats, interrupted: Floats, palette: Palette
) -> None:
    distance = np.abs(whole - interrupted) / np.maximum(np.abs(whole), np.abs(interrupted))
    apart = distance > 0
    if apart.any():
        axes.plot(steps[apart], distance[apart], "o", ms=4, color=palette.primary)
        log_axis(axes, distance[apart])
    else:
        axes.set_yticks([0])
        axes.plot(steps, np.zeros_like(steps), color=palette.primary, lw=2)
        axes.text(
            0.5, 0.56, "equal to the last bit in every step", transform=axes.transAxes,
            ha="center", color=palette.muted, fontsize=FONT_SIZE,
        )  # fmt: skip
    label(axes, "How far they are apart", "relative difference", palette)
