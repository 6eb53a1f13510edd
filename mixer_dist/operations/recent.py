"""The newest of what a run has left: enough to say how it is, however long it is."""

from dataclasses import dataclass

from mixer_dist.checkpoint.catalog import Checkpoint, known_steps, read_checkpoint
from mixer_dist.checkpoint.layout import MANIFEST_NAME
from mixer_dist.errors import CheckpointError, MissingError
from mixer_dist.goodput import AttemptRecord
from mixer_dist.metrics import Line, lines_of, living_lines, metrics_files, read_events
from mixer_dist.run_dir import Attempt, RunDir, attempt_numbers, read_attempt
from mixer_dist.storage import Storage, join

NUM_FILES = 4  # of metrics, each of 4 MB at most: about 13,000 steps
NUM_ATTEMPTS = 16  # of which some may have left no metrics
NUM_CHECKPOINTS = 3  # whose manifests are read to find the newest


@dataclass(frozen=True)
class Committed:
    """A checkpoint, and when it was committed by the clock of its disk or store."""

    checkpoint: Checkpoint
    time: float


@dataclass(frozen=True)
class Recent:
    """The last attempts of a run."""

    url: str
    attempt: Attempt
    """The last one."""
    started: float
    """When that was recorded, by the clock of the disk or store."""
    num_attempts: int
    """All there were."""
    records: tuple[AttemptRecord, ...]
    """Of the last ones, oldest first; the first of them may lack its beginning."""
    is_whole: bool
    """Whether these are all attempts, from their beginning."""
    committed: Committed | None
    """The newest checkpoint."""

    @property
    def lines(self) -> list[Line]:
        """Metrics of steps that count."""
        return living_lines((record.resumed_from, record.lines) for record in self.records)

    @property
    def events(self) -> list[Line]:
        """Of rank 0, oldest first."""
        return [event for record in self.records for event in record.events]

    @property
    def last_record(self) -> float | None:
        """When the run was heard of last, by the clock of rank 0."""
        ends = [line for record in self.records for line in record.lines[-1:]]
        return max((each["time"] for each in [*ends, *self.events]), default=None)


def read_recent(storage: Storage, run_dir: RunDir) -> Recent:
    """Read the last few files of a run; MissingError where none was started."""
    numbers = attempt_numbers(storage, run_dir)
    if not numbers:
        raise MissingError(
            f"no run in {run_dir.url}: expected attempts/0001.yaml, which mixer-dist pretrain "
            "writes when it starts; is this the run_dir?"
        )
    files = metrics_files(storage, run_dir)
    left_out, chosen = files[:-NUM_FILES], files[-NUM_FILES:]
    first = chosen[0][0] if left_out else numbers[0]
    attempts = [read_attempt(storage, run_dir, n) for n in numbers[-NUM_ATTEMPTS:] if n >= first]
    cut = left_out[-1][0] if left_out else None
    records = [
        _record(
            storage, run_dir, attempt,
            [url for number, url in chosen if number == attempt.attempt],
            lacks_beginning=attempt.attempt == cut,
        )
        for attempt in attempts
    ]  # fmt: skip
    return Recent(
        url=run_dir.url,
        attempt=attempts[-1],
        started=storage.modified(run_dir.attempt_file(numbers[-1])),
        num_attempts=len(numbers),
        records=tuple(records),
        is_whole=len(attempts) == len(numbers) and not left_out,
        committed=newest_committed(storage, run_dir),
    )


def _record(
    storage: Storage, run_dir: RunDir, attempt: Attempt, urls: list[str], *, lacks_beginning: bool
) -> AttemptRecord:
    lines = [line for url in urls for line in lines_of(storage, url)]
    since = lines[0]["time"] if lacks_beginning else 0.0
    events = read_events(storage, run_dir, attempt.attempt, rank=0)
    events = [event for event in events if event["time"] >= since]
    return AttemptRecord(attempt.attempt, attempt.resumed_from, events, lines)


def newest_committed(storage: Storage, run_dir: RunDir) -> Committed | None:
    """The newest checkpoint of a run, by its attempt and step; its files are not looked at."""
    found: list[Checkpoint] = []
    for step in reversed(known_steps(storage, run_dir)):
        try:
            found.append(read_checkpoint(storage, run_dir.checkpoint(step)))
        except (CheckpointError, MissingError):
            continue
        if len(found) == NUM_CHECKPOINTS:
            break
    if not found:
        return None
    newest = max(found, key=lambda c: (c.manifest.attempt, c.manifest.step))
    return Committed(newest, storage.modified(join(newest.url, MANIFEST_NAME)))
