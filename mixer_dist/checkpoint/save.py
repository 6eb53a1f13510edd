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

        Rank 0 calls `before_commit` and `after_commit` in the thread that saves. The save is over
        once it is committed: what comes after holds up no other, and is left out where it still
        goes on after an earlier save.
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
        self._thread: threading.Thread | None = None
        self._after_one = threading.Lock()
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
        under_way: Future[Saved] = Future()
        self._thread = threading.Thread(
            target=self._run, args=(under_way, state, began), name="save", daemon=True
        )
        self._thread.start()
        self._under_way = under_way
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

    def ends_by(self, give_up: float, is_urgent: Callable[[], bool] = lambda: False) -> bool:
        """Wait for the save under way until then (monotonic), as long as nothing is urgent."""
        while self._under_way and not self._under_way.done():
            left_s = give_up - time.monotonic()
            if left_s <= 0 or is_urgent():
                return False
            wait([self._under_way], min(left_s, POLL_S))
        return True

    def close(self, seconds: float) -> None:
        """Give what comes after the last commit that long to end."""
        if self._thread:
            self._thread.join(max(0.0, seconds))

    def abandon(self) -> None:
        """Drop the save under way: it commits nothing."""
        if self._under_way:
            self._storage.stop()
            wait([self._under_way], ABANDON_S)
            self._under_way = None
            if distributed.is_main():
                logger.warning("The save under way did not end in time: abandoned.")

    def _run(self, under_way: Future[Saved], state: TrainingState, began: float) -> None:
        try:
            under_way.set_result(self._save(state, began))
        except BaseException as error:  # noqa: BLE001, raised where the outcome is asked for
            under_way.set_exception(error)
            return
        if distributed.is_main() and self._after_one.acquire(blocking=False):
            try:
                self._after_commit()
            finally:
                self._after_one.release()

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
        except RuntimeError as error:  # the group cannot be used again: no later save can succeed
            raise MixerError(
                f"step {state.step} was not saved: a rank is gone, or was not ready within "
                f"checkpoint.timeout_s ({str(error).splitlines()[0]})"
            ) from error
        return Saved(state.step, url, time.monotonic() - began)

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
