"""Saving beside training: a host copy at once; files, hashes and the commit in the background.

Each rank writes its pieces, then rank 0 commits by writing the manifest. One save at a time.
"""

import logging
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, wait
from dataclasses import dataclass
from typing import Any

from mixer_dist import distributed
from mixer_dist.checkpoint.catalog import record_commit
from mixer_dist.checkpoint.layout import (
    MANIFEST_NAME,
    CheckpointManifest,
    FileEntry,
    TrainingState,
    WrittenBy,
    parameter_entries,
    pieces_file,
    versions,
)
from mixer_dist.checkpoint.piece_file import write_pieces
from mixer_dist.checkpoint.pieces import Piece
from mixer_dist.checkpoint.snapshot import Snapshot
from mixer_dist.errors import CheckpointError, MixerError, SupersededError
from mixer_dist.run_dir import Attempt, RunDir, check_not_superseded
from mixer_dist.storage import Storage, join

ABANDON_S = 5.0  # for a save that was told to stop

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Saved:
    """A checkpoint that was committed."""

    step: int
    url: str
    stall_s: float
    """How long training stood still for it."""
    seconds: float
    """From then on until the commit."""


class Saver:
    """Writes the checkpoints of one attempt."""

    def __init__(
        self,
        storage: Storage,
        run_dir: RunDir,
        attempt: Attempt,
        shapes: Mapping[str, tuple[int, ...]],
        pieces: Sequence[Piece],
        before_commit: Callable[[], None] = lambda: None,
        after_commit: Callable[[], None] = lambda: None,
    ) -> None:
        """Takes memory for a copy of the pieces. All ranks must call this.

        Rank 0 calls `before_commit` and `after_commit` in the thread that saves.
        """
        self._storage = storage.twin()
        self._run_dir = run_dir
        self._attempt = attempt
        self._shapes = shapes
        self._snapshot = Snapshot(pieces)
        self._before_commit = before_commit
        self._after_commit = after_commit
        self._group = distributed.background_group(attempt.config.checkpoint.timeout_s)
        self._under_way: Future[Saved] | None = None

    @property
    def is_busy(self) -> bool:
        """Whether a save is under way, or its end was not asked for yet."""
        return self._under_way is not None

    def start(self, pieces: Sequence[Piece], state: TrainingState) -> None:
        """Copy the pieces, and have them saved while training goes on. All ranks must call this."""
        assert not self.is_busy, "one save at a time: its copy is the memory of the next"
        began = time.monotonic()
        copied = self._snapshot.take(pieces)
        stall_s = time.monotonic() - began
        self._under_way = _in_thread(lambda: self._save(copied, state, stall_s))

    def poll(self) -> Saved | None:
        """What the save under way came to, None as long as it is; CheckpointError."""
        return self.wait() if self._under_way and self._under_way.done() else None

    def wait(self) -> Saved:
        """What the save under way comes to; CheckpointError where nothing was committed."""
        assert self._under_way is not None, "no save was started"
        under_way = self._under_way
        wait([under_way])
        self._under_way = None
        return under_way.result()

    def close(self, grace_s: float) -> None:
        """Let the save under way end within some seconds, else abandon it: nothing is committed."""
        if self._under_way and not wait([self._under_way], grace_s).done:
            self._storage.stop()
            wait([self._under_way], ABANDON_S)
            logger.warning("The save under way did not end within %g s: abandoned.", grace_s)

    def _save(self, pieces: Sequence[Piece], state: TrainingState, stall_s: float) -> Saved:
        began = time.monotonic()
        url = self._run_dir.checkpoint(state.step)
        try:
            reports = distributed.on_all(lambda: self._write_mine(url, pieces), self._group)
            distributed.on_main(lambda: self._commit(url, reports, state), self._group)
        except MixerError as error:  # this rank's own, or another's
            if error.exit_code == SupersededError.exit_code:
                raise
            raise CheckpointError(str(error)) from error
        except RuntimeError as error:  # of the collective: a rank is gone, or too late
            raise CheckpointError(f"a rank was lost: {str(error).splitlines()[0]}") from error
        saved = Saved(state.step, url, stall_s, time.monotonic() - began)
        if distributed.is_main():
            self._after_commit()
        return saved

    def _write_mine(self, url: str, pieces: Sequence[Piece]) -> dict[str, Any]:
        name = pieces_file(self._attempt.attempt, distributed.rank())
        held = [(p.fqn, p.start, p.stop) for p in pieces if p.kind == "param"]
        return {
            "file": write_pieces(self._storage, url, name, pieces).model_dump(),
            "held": held,
        }

    def _commit(self, url: str, reports: Sequence[dict[str, Any]], state: TrainingState) -> None:
        check_not_superseded(self._storage, self._run_dir, self._attempt)
        self._before_commit()
        manifest = build_manifest(self._shapes, reports, state, self._attempt)
        self._storage.write(join(url, MANIFEST_NAME), manifest.to_json())
        try:
            record_commit(self._storage, self._run_dir, state.step)
        except MixerError as error:  # it is committed all the same
            logger.warning("no hint for readers whose listing lags: %s", error)


def build_manifest(
    shapes: Mapping[str, tuple[int, ...]],
    reports: Sequence[dict[str, Any]],
    state: TrainingState,
    attempt: Attempt,
) -> CheckpointManifest:
    """The manifest of what all ranks report to have written."""
    held = [(*entry, file) for file, report in enumerate(reports) for entry in report["held"]]
    return CheckpointManifest(
        **state.model_dump(),
        attempt=attempt.attempt,
        config=attempt.config.model_dump(mode="json"),
        dataset=attempt.dataset,
        parameters=parameter_entries(shapes, held),
        files=tuple(FileEntry(**report["file"]) for report in reports),
        written_by=WrittenBy(
            engine=attempt.config.engine.name, world_size=len(reports), versions=versions()
        ),
    )


def _in_thread(action: Callable[[], Saved]) -> Future[Saved]:
    """The outcome to come of an action in a thread that does not keep the process alive."""
    future: Future[Saved] = Future()

    def run() -> None:
        try:
            future.set_result(action())
        except BaseException as error:  # noqa: BLE001, raised where the outcome is asked for
            future.set_exception(error)

    threading.Thread(target=run, name="save", daemon=True).start()
    return future
