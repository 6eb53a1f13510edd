"""Finding a checkpoint to go on from: the newest whose every byte is right."""

import hashlib
import logging
from collections.abc import Mapping
from dataclasses import dataclass

from mixer_dist import distributed
from mixer_dist.checkpoint.layout import (
    MANIFEST_NAME,
    CheckpointManifest,
    FileEntry,
    checkpoint_step,
    unsealed,
)
from mixer_dist.errors import CheckpointError, ConfigError, MissingError, StorageError
from mixer_dist.run_dir import RunDir
from mixer_dist.sections import parse
from mixer_dist.storage import Storage, join

HASH_BYTES = 16 * 2**20  # read at a time when a file is verified


@dataclass(frozen=True)
class Checkpoint:
    """A committed checkpoint."""

    url: str
    manifest: CheckpointManifest


def read_checkpoint(storage: Storage, url: str) -> Checkpoint:
    """The checkpoint at a URL; MissingError where none is committed, CheckpointError if damaged."""
    location = join(url, MANIFEST_NAME)
    try:
        tree = unsealed(storage.read(location))
        return Checkpoint(url, parse(CheckpointManifest, tree, location))
    except MissingError:
        raise MissingError(
            f"no checkpoint at {url}: it has no {MANIFEST_NAME}; "
            "`mixer-dist checkpoint ls RUN_DIR` lists a run's checkpoints"
        ) from None
    except (ValueError, ConfigError) as error:
        reason = " ".join(str(error).split())
        raise CheckpointError(f"{url} has a damaged manifest: {reason}") from None


def list_checkpoints(storage: Storage, run_dir: RunDir) -> tuple[list[Checkpoint], list[str]]:
    """Committed checkpoints, newest first, and one line for each folder that holds none."""
    found: list[Checkpoint] = []
    problems: list[str] = []
    for name in storage.names(run_dir.checkpoints):
        if checkpoint_step(name) is None:
            continue
        try:
            found.append(read_checkpoint(storage, join(run_dir.checkpoints, name)))
        except (MissingError, CheckpointError) as error:
            problems.append(str(error))
    found.sort(key=lambda c: (c.manifest.attempt, c.manifest.step), reverse=True)
    return found, problems


def newest_verified(storage: Storage, run_dir: RunDir) -> Checkpoint | None:
    """The newest checkpoint whose every byte is right, None for none. All ranks must call this.

    Walks back over torn and damaged ones, naming each; CheckpointError where all are damaged.
    """
    logger = logging.getLogger(__name__)
    urls: list[str] = []
    if distributed.is_main():
        checkpoints, problems = list_checkpoints(storage, run_dir)
        urls = [checkpoint.url for checkpoint in checkpoints]
        for problem in problems:
            logger.warning("passed over: %s", problem)
    found = distributed.share(urls)
    for url in found:
        checkpoint = read_checkpoint(storage, url)
        problems = verify(storage, checkpoint)
        if not problems:
            return checkpoint
        if distributed.is_main():
            logger.warning("passed over: %s: %s", url, "; ".join(problems))
    if found:  # beginning anew would overwrite what may yet be mended
        raise CheckpointError(
            f"none of the {len(found)} checkpoints in {run_dir.checkpoints} verifies: restore one, "
            "or choose another run_dir to begin at step 0"
        )
    return None


def verify(storage: Storage, checkpoint: Checkpoint) -> list[str]:
    """What is wrong with a checkpoint's files, hashed once over all ranks. All ranks must call."""
    mine = checkpoint.manifest.files[distributed.rank() :: distributed.world_size()]
    problems = [p for entry in mine if (p := file_problem(storage, checkpoint.url, entry))]
    return [problem for of_rank in distributed.gather(problems) for problem in of_rank]


def file_problem(storage: Storage, url: str, entry: FileEntry) -> str | None:
    """Why a file is not the one that the manifest names, or None."""
    location = join(url, entry.name)
    try:
        num_bytes = storage.size(location)
        if num_bytes != entry.num_bytes:
            return f"{entry.name} has {num_bytes} bytes, expected {entry.num_bytes}"
        if _sha256(storage, location, num_bytes) != entry.sha256:
            return f"{entry.name} does not have its SHA-256: bytes were changed"
    except (MissingError, StorageError) as error:
        return str(error)
    return None


def _sha256(storage: Storage, location: str, num_bytes: int) -> str:
    digest = hashlib.sha256()
    for start in range(0, num_bytes, HASH_BYTES):
        digest.update(storage.read_range(location, start, min(start + HASH_BYTES, num_bytes)))
    return digest.hexdigest()


def check_same_model(checkpoint: Checkpoint, shapes: Mapping[str, tuple[int, ...]]) -> None:
    """ConfigError where a checkpoint's parameters are not the model's."""
    theirs = checkpoint.manifest.shapes
    for fqn in sorted(theirs.keys() | shapes.keys()):
        if theirs.get(fqn) != shapes.get(fqn):
            raise ConfigError(
                f"{checkpoint.url} holds another model: {fqn} is {theirs.get(fqn, 'not there')} "
                f"in it and {shapes.get(fqn, 'not there')} in the config; "
                "choose another run_dir or the config it was made with"
            )


def verified(storage: Storage, url: str) -> Checkpoint:
    """The checkpoint at a URL, every byte checked; CheckpointError. All ranks must call this."""
    checkpoint = read_checkpoint(storage, url)
    if problems := verify(storage, checkpoint):
        raise CheckpointError(f"{url} is damaged: {'; '.join(problems)}")
    return checkpoint
