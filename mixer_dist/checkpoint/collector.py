"""Removing checkpoints: a tombstone first, then a grace, then the manifest, the pieces last.

Nothing looks committed that is not, whenever a collector is killed: with its tombstone, and again
with its manifest, a checkpoint is none any more, and the next collector finishes what it finds.
All time is measured on the collector's own clock; several at once do each other's work twice.
"""

import logging
import secrets
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial

from mixer_dist.checkpoint.catalog import (
    Checkpoint,
    known_steps,
    read_manifest,
    read_tombstone,
)
from mixer_dist.checkpoint.evaluations import best_by_evaluation
from mixer_dist.checkpoint.gc_plan import Folder, Outcome, Plan
from mixer_dist.checkpoint.holders import Stillness
from mixer_dist.checkpoint.layout import (
    MANIFEST_NAME,
    TOMBSTONE_NAME,
    Tombstone,
    pieces_attempt,
)
from mixer_dist.checkpoint.leases import LeaseWatch
from mixer_dist.checkpoint.pins import is_pinned, pinned_steps
from mixer_dist.checkpoint.retention import (
    UNPROVEN,
    Circumstances,
    Commit,
    may_pass,
    reasons_to_keep,
)
from mixer_dist.checkpoint.verification import Verify, damages
from mixer_dist.config import CheckpointConfig
from mixer_dist.errors import CheckpointError, MissingError
from mixer_dist.run_dir import RunDir
from mixer_dist.storage import Storage, join

logger = logging.getLogger(__name__)


class Collector:
    """Passes over a run's checkpoints, none of which waits; what was seen is remembered."""

    def __init__(
        self,
        storage: Storage,
        run_dir: RunDir,
        rules: CheckpointConfig,
        now: Callable[[], float] = time.monotonic,
        verify: Verify | None = None,
    ) -> None:
        self._storage = storage
        self._run_dir = run_dir
        self._rules = rules
        self._find_damages = verify or partial(damages, storage)
        self._leases = LeaseWatch(storage, run_dir, now)
        self._tombstones = Stillness(now)
        self._attempts: dict[str, tuple[float, int]] = {}
        self._verified: set[Commit] = set()
        self._damaged: dict[Commit, str] = {}

    def plan(self) -> Plan:
        """Look at everything, decide, change nothing; a checkpoint may have to be verified."""
        folders, problems = self._look()
        holders = self._leases.all_holders()
        known = Circumstances(
            condemned={folder.step for folder in folders if folder.tombstone},
            pinned=pinned_steps(self._storage, self._run_dir),
            leased={step: ", ".join(h.name for h in held) for step, held in holders.items()},
            best=best_by_evaluation(
                self._storage, self._run_dir, self._rules.keep_best, {f.step for f in folders}
            ),
        )
        commits = [Commit(f.attempt, f.step) for f in folders if f.attempt is not None]
        reasons = self._proven_reasons(commits, known)
        problems += [line for commit, line in self._damaged.items() if commit in commits]
        return Plan(tuple(folders), reasons, tuple(problems), holders)

    def carry_out(self, plan: Plan) -> Outcome:
        """Announce, call back and remove as planned, as far as the grace allows."""
        outcome = Outcome()
        for folder in plan.unfinished:
            self._finish(folder, outcome)
        for folder in plan.folders:
            if folder.attempt is not None and folder.tombstone and plan.reasons[folder.step]:
                self._call_back(folder, outcome)
        for folder in plan.going:
            self._advance(folder, outcome)
        standing = {folder.step for folder in plan.folders if folder.attempt is not None}
        for step in self._leases.steps() - standing.difference(outcome.removed):
            self._leases.remove_lapsed(step)
        return outcome

    def _look(self) -> tuple[list[Folder], list[str]]:
        folders, problems = [], []
        for step in known_steps(self._storage, self._run_dir):
            try:
                folders.append(self._folder(step))
            except CheckpointError as error:
                problems.append(str(error))
        return folders, problems

    def _folder(self, step: int) -> Folder:
        url = self._run_dir.checkpoint(step)
        attempt, tombstone = self._attempt(url), read_tombstone(self._storage, url)
        is_meant = tombstone and (attempt is None or attempt <= tombstone.attempt)
        return Folder(step, url, attempt, tombstone if is_meant else None)

    def _attempt(self, url: str) -> int | None:
        """Of the checkpoint in a folder; a large manifest is read once, not at every pass."""
        try:
            modified = self._storage.modified(join(url, MANIFEST_NAME))
            if self._attempts.get(url, (None, 0))[0] != modified:
                self._attempts[url] = (modified, read_manifest(self._storage, url).attempt)
        except MissingError:
            return None
        return self._attempts[url][1]

    def _proven_reasons(
        self, commits: list[Commit], known: Circumstances
    ) -> dict[int, tuple[str, ...]]:
        """The reasons, once the newest that verifies is known as far as it matters."""
        unchecked = sorted(set(commits) - self._verified - self._damaged.keys())
        while True:
            known = replace(known, verified=self._verified)
            reasons = reasons_to_keep(commits, self._rules, known)
            proof_matters = any(UNPROVEN in r and may_pass(r) for r in reasons.values())
            newest_good = max(self._verified.intersection(commits), default=Commit(-1, -1))
            if not (proof_matters and unchecked and unchecked[-1] > newest_good):
                return reasons
            self._verify(unchecked.pop())

    def _verify(self, commit: Commit) -> None:
        url = self._run_dir.checkpoint(commit.step)
        try:
            found = self._find_damages(Checkpoint(url, read_manifest(self._storage, url)))
        except (MissingError, CheckpointError) as error:  # it went, or broke, meanwhile
            found = [str(error)]
        if found:
            self._damaged[commit] = f"{url} is damaged: {'; '.join(found)}"
        else:
            self._verified.add(commit)

    def _advance(self, folder: Folder, outcome: Outcome) -> None:
        """One stage further: announce it, let its grace pass, or remove it."""
        if folder.tombstone is None:
            tombstone = Tombstone(attempt=folder.attempt or 0, token=secrets.token_hex(8))
            location = join(folder.url, TOMBSTONE_NAME)
            try:
                self._storage.write(location, tombstone.model_dump_json().encode())
            except MissingError:  # another collector has just removed the folder
                return
            logger.info("to be removed: %s", folder.url)
            outcome.announced.append(folder.step)
        else:
            tombstone = folder.tombstone
        stood_s = self._tombstones.seconds(folder.url, tombstone.token)
        if stood_s < self._rules.lease_grace_s:
            outcome.due_in_s.append(self._rules.lease_grace_s - stood_s)
        else:
            self._remove(folder, outcome)

    def _remove(self, folder: Folder, outcome: Outcome) -> None:
        """Unless somebody saved here anew, or claimed it, since this pass began."""
        self._attempts.pop(folder.url, None)  # to be read, however young
        if self._folder(folder.step) != folder:
            return
        is_held = bool(self._leases.holders(folder.step))
        if is_held or is_pinned(self._storage, self._run_dir, folder.step):
            self._call_back(folder, outcome)
            return
        self._storage.delete(join(folder.url, MANIFEST_NAME))
        self._finish(folder, outcome)

    def _finish(self, folder: Folder, outcome: Outcome) -> None:
        """Delete what was a checkpoint; what a later attempt is writing here stays."""
        assert folder.tombstone
        for name in self._storage.names(folder.url):
            attempt = pieces_attempt(name)
            is_old = attempt is not None and attempt <= folder.tombstone.attempt
            if is_old or name.startswith(f".{TOMBSTONE_NAME}."):  # of a collector that was killed
                self._storage.delete(join(folder.url, name))
        self._storage.delete(join(folder.url, TOMBSTONE_NAME))
        self._storage.delete_folder(folder.url)
        logger.info("removed %s", folder.url)
        outcome.removed.append(folder.step)

    def _call_back(self, folder: Folder, outcome: Outcome) -> None:
        self._storage.delete(join(folder.url, TOMBSTONE_NAME))
        logger.info("to be kept after all: %s", folder.url)
        outcome.called_back.append(folder.step)
