"""The checkpoints of a run as rows to print."""

import time
from collections.abc import Sequence
from typing import Any

from mixer_dist.checkpoint.catalog import Checkpoint, list_checkpoints
from mixer_dist.checkpoint.holders import Holder
from mixer_dist.checkpoint.layout import MANIFEST_NAME
from mixer_dist.checkpoint.leases import LeaseWatch
from mixer_dist.checkpoint.pins import pinned_steps
from mixer_dist.checkpoint.verification import Verify
from mixer_dist.errors import MissingError
from mixer_dist.run_dir import RunDir
from mixer_dist.storage import Storage, join

AGES = ((86_400.0, "d"), (3_600.0, "h"), (60.0, "min"), (1.0, "s"))


def list_rows(
    storage: Storage, run_dir: RunDir, verify: Verify | None = None
) -> list[dict[str, Any]]:
    """One row a committed checkpoint, newest first; then those that are none, with the reason."""
    checkpoints, errors = list_checkpoints(storage, run_dir)
    problems = [str(error) for error in errors]
    if not checkpoints and not problems:
        raise MissingError(f"no checkpoints in {run_dir.checkpoints}")
    pinned = pinned_steps(storage, run_dir)
    holders = LeaseWatch(storage, run_dir).all_holders()
    rows = []
    for found in checkpoints:
        damages = verify(found) if verify else []
        problems += [f"{found.url}: {damage}" for damage in damages]
        step = found.manifest.step
        row = _row(storage, found, holders.get(step, []))
        rows.append(row | {"verified": not damages if verify else None, "pinned": step in pinned})
    return rows + [{"problem": problem} for problem in problems]


def list_lines(rows: Sequence[dict[str, Any]]) -> list[str]:
    """The rows as an aligned table; problems as sentences below it."""
    cells = [_cells(row) for row in rows if "step" in row]
    table = [*([tuple(cells[0])] if cells else []), *[tuple(line.values()) for line in cells]]
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    lines = ["  ".join(cell.ljust(w) for cell, w in zip(line, widths, strict=True)).rstrip()
             for line in table]  # fmt: skip
    return lines + [row["problem"] for row in rows if "problem" in row]


def _row(storage: Storage, found: Checkpoint, holders: Sequence[Holder]) -> dict[str, Any]:
    manifest = found.manifest
    committed = storage.modified(join(found.url, MANIFEST_NAME))
    return {
        "step": manifest.step,
        "age_s": round(max(0.0, time.time() - committed), 1),  # clocks may differ
        "num_bytes": sum(entry.num_bytes for entry in manifest.files),
        "engine": manifest.written_by.engine,
        "ranks": manifest.written_by.world_size,
        "attempt": manifest.attempt,
        "leases": [holder.name for holder in holders],
        "checkpoint": found.url,
    }


def _cells(row: dict[str, Any]) -> dict[str, str]:
    """A row as it is printed, by the titles of its columns."""
    return {
        "step": str(row["step"]),
        "age": age(row["age_s"]),
        "size": f"{row['num_bytes'] / 1e6:,.1f} MB",
        "engine": row["engine"],
        "ranks": str(row["ranks"]),
        "attempt": str(row["attempt"]),
        "verified": {None: "-", True: "yes", False: "no"}[row["verified"]],
        "leases": ", ".join(row["leases"]) or "-",
        "pinned": "yes" if row["pinned"] else "-",
        "checkpoint": row["checkpoint"],
    }


def age(age_s: float) -> str:
    """In the largest unit of which there are at least two, such as `47 h`."""
    for unit_s, unit in AGES:
        if age_s >= 2 * unit_s:
            return f"{age_s / unit_s:.0f} {unit}"
    return f"{age_s:.0f} s"
