"""The checkpoints of a run as rows to print."""

from collections.abc import Sequence
from typing import Any

from mixer_dist.checkpoint.catalog import list_checkpoints
from mixer_dist.errors import MissingError
from mixer_dist.run_dir import RunDir
from mixer_dist.storage import Storage

COLUMNS = ("step", "attempt", "engine", "ranks", "MB", "checkpoint")


def list_rows(url: str) -> list[dict[str, Any]]:
    """One row a committed checkpoint, newest first; then those that are none, with the reason."""
    checkpoints, problems = list_checkpoints(Storage(), RunDir(url))
    if not checkpoints and not problems:
        raise MissingError(f"no checkpoints in {RunDir(url).checkpoints}")
    rows = [
        {
            "step": found.manifest.step,
            "attempt": found.manifest.attempt,
            "engine": found.manifest.written_by.engine,
            "ranks": found.manifest.written_by.world_size,
            "MB": round(sum(entry.num_bytes for entry in found.manifest.files) / 1e6, 1),
            "checkpoint": found.url,
        }
        for found in checkpoints
    ]
    return rows + [{"problem": problem} for problem in problems]


def list_lines(rows: Sequence[dict[str, Any]]) -> list[str]:
    """The rows as an aligned table; problems as sentences below it."""
    table = [COLUMNS, *[tuple(str(row[c]) for c in COLUMNS) for row in rows if "step" in row]]
    widths = [max(len(line[i]) for line in table) for i in range(len(COLUMNS))]
    lines = ["  ".join(cell.ljust(w) for cell, w in zip(line, widths, strict=True)).rstrip()
             for line in table]  # fmt: skip
    return lines + [row["problem"] for row in rows if "problem" in row]
