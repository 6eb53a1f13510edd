"""Which checkpoints a run has: a folder counts by its manifest, never by being listed.

A store's listing may lag behind. The trainer therefore leaves a hint of its last commits; what the
hint or the listing names is looked up, and is a checkpoint if its manifest can be read.
"""

import json
from dataclasses import dataclass

from mixer_dist.checkpoint.layout import (
    MANIFEST_NAME,
    TOMBSTONE_NAME,
    CheckpointManifest,
    Tombstone,
    check_version,
    unsealed,
)
from mixer_dist.errors import CheckpointError, ConfigError, MissingError, MixerError, RefusedError
from mixer_dist.run_dir import RunDir, step_name, step_of
from mixer_dist.sections import Section, parse
from mixer_dist.storage import Storage, join, parent

HINT_STEPS = 20


class CommitHint(Section):
    """Steps that were committed last, oldest first; some may be gone by now."""

    steps: tuple[int, ...] = ()


@dataclass(frozen=True)
class Checkpoint:
    """A committed checkpoint."""

    url: str
    manifest: CheckpointManifest


def read_checkpoint(storage: Storage, url: str) -> Checkpoint:
    """The checkpoint at a URL; MissingError where none is committed, CheckpointError if damaged."""
    try:
        checkpoint = Checkpoint(url, read_manifest(storage, url))
    except MissingError:
        raise MissingError(
            f"no checkpoint at {url}: it has no {MANIFEST_NAME}; "
            "`mixer-dist checkpoint ls RUN_DIR` lists a run's checkpoints"
        ) from None
    tombstone = read_tombstone(storage, url)
    if tombstone and tombstone.attempt >= checkpoint.manifest.attempt:
        raise MissingError(
            f"no checkpoint at {url}: it is being removed, as its {TOMBSTONE_NAME} says; "
            "`mixer-dist checkpoint pin` keeps it if it is still whole"
        )
    return checkpoint


def list_checkpoints(
    storage: Storage, run_dir: RunDir
) -> tuple[list[Checkpoint], list[MixerError]]:
    """Committed checkpoints, newest first, and an error for each folder that holds none."""
    found: list[Checkpoint] = []
    problems: list[MixerError] = []
    for step in known_steps(storage, run_dir):
        url = run_dir.checkpoint(step)
        try:
            found.append(read_checkpoint(storage, url))
        except CheckpointError as error:
            problems.append(error)
        except MissingError as error:
            if storage.names(url):  # else it is only hinted at, or was removed
                problems.append(error)
    found.sort(key=lambda c: (c.manifest.attempt, c.manifest.step), reverse=True)
    return found, problems


def known_steps(storage: Storage, run_dir: RunDir) -> list[int]:
    """Steps that may have a checkpoint, ascending: those with a folder, and those hinted at."""
    steps = {*_read_hint(storage, run_dir).steps}
    listed = (step_of(name) for name in storage.names(run_dir.checkpoints))
    return sorted(steps | {step for step in listed if step is not None})


def record_commit(storage: Storage, run_dir: RunDir, step: int) -> None:
    """Hint at a checkpoint that was just committed, for readers whose listing lags."""
    before = [known for known in _read_hint(storage, run_dir).steps if known != step]
    hint = CommitHint(steps=(*before, step)[-HINT_STEPS:])
    storage.write(run_dir.commit_hint, hint.model_dump_json().encode())


def read_manifest(storage: Storage, url: str) -> CheckpointManifest:
    """The manifest in a folder; MissingError where there is none, CheckpointError if damaged."""
    location = join(url, MANIFEST_NAME)
    try:
        tree = unsealed(storage.read(location))
        check_version(tree, url)
        return parse(CheckpointManifest, tree, location)
    except (ValueError, ConfigError) as error:
        raise CheckpointError(f"{url} has a damaged manifest: {_line(error)}") from None


def read_tombstone(storage: Storage, url: str) -> Tombstone | None:
    """What announces a checkpoint's end; CheckpointError where nobody can read it."""
    location = join(url, TOMBSTONE_NAME)
    try:
        return parse(Tombstone, json.loads(storage.read(location)), location)
    except MissingError:
        return None
    except (ValueError, ConfigError) as error:
        raise CheckpointError(f"{location} is damaged ({_line(error)}): remove it") from None


def run_and_step(url: str) -> tuple[RunDir, int]:
    """The run that a checkpoint's URL belongs to, and its step; RefusedError."""
    folder, _, name = url.rstrip("/").rpartition("/")
    step = step_of(name)
    if step is None or folder.rpartition("/")[2] != "checkpoints":
        raise RefusedError(
            f"expected a checkpoint of a run, such as RUN_DIR/checkpoints/{step_name(100)}, "
            f"got {url!r}"
        )
    return RunDir(parent(folder)), step


def _read_hint(storage: Storage, run_dir: RunDir) -> CommitHint:
    location = run_dir.commit_hint
    try:
        return parse(CommitHint, json.loads(storage.read(location)), location)
    except (MissingError, ValueError, ConfigError):  # no more than a hint is lost
        return CommitHint()


def _line(error: Exception) -> str:
    return " ".join(str(error).split())
