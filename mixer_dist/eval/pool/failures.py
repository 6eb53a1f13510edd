"""What went wrong with an assignment: a file for each worker that failed or vanished.

Whoever looks counts them: a pool that is started anew, or a second one, knows them too.
"""

import json
import re
import time
from collections import Counter
from typing import Literal

from mixer_dist.eval.pool.assignments import Assignment
from mixer_dist.run_dir import RunDir, step_name, step_of
from mixer_dist.storage import Storage, join

Kind = Literal["failed", "refused", "lost"]
"""Refused is what would be so at every further try."""
Failures = Counter[tuple[int, str]]
"""How many, by step and kind."""
_NAME = re.compile(r"^(step-\d+)-(failed|refused|lost)-.+\.json$")


def record_failure(
    storage: Storage, assignment: Assignment, kind: Kind, holder: str, reason: str
) -> None:
    """Write down how a worker ended; to do so twice is to do so once."""
    record = {"holder": holder, "reason": reason, "time": time.time()}
    storage.write(_file(assignment, kind, holder), (json.dumps(record) + "\n").encode())


def has_failed(storage: Storage, assignment: Assignment, holder: str) -> bool:
    """Whether a worker has written down why it failed."""
    return any(storage.exists(_file(assignment, kind, holder)) for kind in ("failed", "refused"))


def read_failures(storage: Storage, run_dir: RunDir, task: str) -> Failures:
    """All failures of a task so far."""
    matches = (_NAME.match(name) for name in storage.names(run_dir.failures(task)))
    return Counter((step_of(match[1]) or 0, match[2]) for match in matches if match)


def last_reason(storage: Storage, assignment: Assignment) -> str:
    """Why the last of them failed, by their own clocks."""
    folder, prefix = assignment.run_dir.failures(assignment.task), step_name(assignment.step)
    urls = [join(folder, n) for n in storage.names(folder) if n.startswith(f"{prefix}-")]
    records = [json.loads(storage.read(url)) for url in urls]
    return str(max(records, key=lambda record: record["time"])["reason"]) if records else "unknown"


def _file(assignment: Assignment, kind: Kind, holder: str) -> str:
    folder = assignment.run_dir.failures(assignment.task)
    return join(folder, f"{step_name(assignment.step)}-{kind}-{holder}.json")
