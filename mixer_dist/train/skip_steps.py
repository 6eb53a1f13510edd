"""Data left out by hand: what steps to come would read, as windows of global positions."""

from collections.abc import Sequence

from mixer_dist.checkpoint.layout import TrainingState
from mixer_dist.data.order import Window, position_after
from mixer_dist.errors import ConfigError
from mixer_dist.run_dir import RunDir, SkippedSteps, step_name


def newly_skipped(
    requested: Sequence[tuple[int, int]],
    known: Sequence[SkippedSteps],
    state: TrainingState,
    batch_size: int,
) -> list[SkippedSteps]:
    """The requests that are not on record, each with what it would read from a state on.

    All of them mean the steps as they would be without any new one.
    """
    recorded = {(each.first, each.last) for each in known}
    return [
        SkippedSteps(first=first, last=last, window=_window(first, last, state, batch_size))
        for first, last in requested
        if (first, last) not in recorded
    ]


def _window(first: int, last: int, state: TrainingState, batch_size: int) -> tuple[int, int]:
    skipped = [Window(*window) for window in state.skipped]
    before = (first - 1 - state.step) * batch_size
    start = position_after(state.position, before, skipped)
    final = position_after(state.position, (last - state.step) * batch_size - 1, skipped)
    return start, final + 1


def check_to_come(
    skipped: Sequence[SkippedSteps], state: TrainingState, saved: Sequence[int], run_dir: RunDir
) -> None:
    """ConfigError where steps are trained already; `saved` are the steps of all checkpoints."""
    late = next((each for each in skipped if each.first <= state.step), None)
    if late is None:
        return
    before = max((step for step in saved if step < late.first), default=None)
    way = (
        f"move the checkpoints after {run_dir.checkpoint(before)} away, which is then resumed from"
        if before is not None
        else "begin the run anew in another run_dir"
    )
    raise ConfigError(
        f"data.skip_steps: step {late.first} of [{late.first}, {late.last}] is trained already, as "
        f"{step_name(state.step)} is resumed from. To leave its data out, {way}; or take the "
        "entry away"
    )
