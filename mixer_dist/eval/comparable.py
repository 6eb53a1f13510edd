"""Whether results of one task may stand beside each other."""

from collections.abc import Mapping
from typing import Any

from mixer_dist.config import Task

# What all results of a task have in common, and what is said where one differs.
_COMMON = {
    "run_id": "is of another run",
    "kind": "is of another kind of task",
    "config": "comes from other settings of the task",
    "classes": "comes from datasets with other classes",
    "datasets": "comes from other datasets",
}


def settings_of(task: Task) -> dict[str, Any]:
    """What a result says of its task: its kind, and all that decides the outcome but the data."""
    tree = task.model_dump(mode="json")
    config = {key: tree[key] for key in tree if key not in ("name", *task.datasets)}
    return {"kind": tree["kind"], "config": config}


def difference(earlier: Mapping[str, Any], later: Mapping[str, Any]) -> str | None:
    """Why an earlier result cannot be compared with a later one, as far as both tell."""
    for key, meaning in _COMMON.items():
        if None not in (earlier.get(key), later.get(key)) and earlier[key] != later[key]:
            return meaning
    return None
