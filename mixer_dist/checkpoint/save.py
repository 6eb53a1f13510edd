"""Saving beside training: the host copy before the next update, all else in the background.

Each rank writes its pieces, then rank 0 commits by writing the manifest. One save at a time.
"""

import logging
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, wait
from dataclasses import dataclass, replace
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
POLL_S = 0.1

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Saved:
    """A checkpoint that was committed."""

    step: int
    url: str
    seconds: float
    """Until the commit."""
    stall_s: float = 0.0
    """How long training stood still for it."""


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
        self._stall_s = 0.0

    @property
    def is_busy(self) -> bool:
        """Whether a save is under way, or its end was not asked for yet."""
        return self._under_way is not None

    def start(self, pieces: Sequence[Piece], state: TrainingState) -> None:
        """Have the pieces saved as they are now, while training goes on. All ranks must call this.

        Before they change, `settle` has to be called.
        """
        assert not self.is_busy, "one save at a time: its copy is the memory of the next"
        began = time.monotonic()
        self._snapshot.begin(pieces)
        self._under_way = _in_thread(lambda: self._save(state, began))
        self._stall_s = time.monotonic() - began

    def settle(self) -> None:
        """Let the copy come to its end, before the pieces change."""
        if self._under_way:
            began = time.monotonic()
            self._snapshot.settle()
            self._stall_s += time.monotonic() - began

    def poll(self) -> Saved | None:
        """What the save under way came to, None as long as it is; CheckpointError."""
        return self.wait() if self._under_way and self._under_way.done() else None

    def wait(self) -> Saved:
        """What the save under way comes to; CheckpointError where nothing was committed."""
        assert self._under_way is not None, "no save was started"
        under_way = self._under_way
        wait([under_way])
        self._under_way = None
        return replace(under_way.result(), stall_s=self._stall_s)

    def ends_within(self, seconds: float, is_urgent: Callable[[], bool] = lambda: False) -> bool:
        """Wait for the save under way that long, and no longer than nothing is urgent."""
        give_up = time.monotonic() + seconds
        while self._under_way and not self._under_way.done():
            left_s = give_up - time.monotonic()
            if left_s <= 0 or is_urgent():
                return False
            wait([self._under_way], min(left_s, POLL_S))
        return True

    def abandon(self) -> None:
        """Drop the save under way: it commits nothing."""
        if self._under_way:
            self._storage.stop()
            wait([self._under_way], ABANDON_S)
            self._under_way = None
            if distributed.is_main():
                logger.warning("The save under way did not end in time: abandoned.")

    def _save(self, state: TrainingState, began: float) -> Saved:
        url = self._run_dir.checkpoint(state.step)
        pieces = self._snapshot.copied()
        try:
            reports = distributed.on_all(lambda: self._write_mine(url, pieces), self._group)
            distributed.on_main(lambda: self._commit(url, reports, state), self._group)
        except SupersededError:  # on rank 0, which looks and then ends all
            raise
        except MixerError as error:  # this rank's own, or another's
            raise CheckpointError(str(error)) from error
        except RuntimeError as error:  # of the collective: a rank is gone, or too late
            raise CheckpointError(f"a rank was lost: {str(error).splitlines()[0]}") from error
        saved = Saved(state.step, url, time.monotonic() - began)
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
