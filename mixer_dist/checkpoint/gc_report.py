"""What a collection did, or would do, in words and as JSON."""

from collections.abc import Iterator
from typing import Any

from mixer_dist.checkpoint.gc_plan import Outcome, Plan
from mixer_dist.checkpoint.leftovers import Leftovers


def report_tree(plan: Plan, outcome: Outcome | None, leftovers: Leftovers) -> dict[str, Any]:
    """As JSON; without an outcome, what would be done."""
    going = [folder.step for folder in (*plan.unfinished, *plan.going)]
    return {
        "dry_run": outcome is None,
        "removed": sorted(going if outcome is None else outcome.removed),
        "kept": {str(step): list(reasons) for step, reasons in plan.reasons.items() if reasons},
        "leftovers": leftovers.urls,
        "problems": [*plan.problems, *leftovers.problems],
    }


def report_lines(plan: Plan, outcome: Outcome | None, leftovers: Leftovers) -> list[str]:
    """A line for each checkpoint and leftover."""
    return [*_lines(report_tree(plan, outcome, leftovers))]


def _lines(tree: dict[str, Any]) -> Iterator[str]:
    verb = "would remove" if tree["dry_run"] else "removed"
    yield from (f"{verb} step {step}" for step in tree["removed"])
    for step, reasons in tree["kept"].items():
        yield f"kept step {step}: {', '.join(reasons)}"
    yield from (f"{verb} leftover {url}" for url in tree["leftovers"])
    yield from tree["problems"]
    if not tree["removed"] and not tree["leftovers"]:
        yield "nothing to remove"
