"""Finding a checkpoint to go on from: the newest whose every byte is right."""

import logging
from collections.abc import Callable, Mapping
from functools import partial

from mixer_dist import distributed
from mixer_dist.checkpoint.catalog import Checkpoint, list_checkpoints, read_checkpoint
from mixer_dist.checkpoint.layout import CheckpointManifest
from mixer_dist.checkpoint.verification import file_problems
from mixer_dist.errors import CheckpointError, ConfigError
from mixer_dist.run_dir import RunDir
from mixer_dist.storage import Storage

logger = logging.getLogger(__name__)


def newest_verified(storage: Storage, run_dir: RunDir) -> Checkpoint | None:
    """The newest checkpoint whose every byte is right, None for none. All ranks must call this.

    Walks back over torn and damaged ones, naming each; CheckpointError where all are damaged.
    """
    candidates: list[Checkpoint] = []  # rank 0's alone: listings may differ
    urls, num_damaged = distributed.on_main(lambda: _newest_first(storage, run_dir, candidates))
    for number, url in enumerate(urls):
        checkpoint = _shared(url, partial(candidates.__getitem__, number))
        problems = verify(storage, checkpoint)
        if not problems:
            return checkpoint
        if distributed.is_main():
            logger.warning("passed over: %s: %s", url, "; ".join(problems))
    if num_damaged := num_damaged + len(urls):  # to begin anew would overwrite what may be mended
        raise CheckpointError(
            f"none of the {num_damaged} checkpoints in {run_dir.checkpoints} verifies: restore "
            "one, or choose another run_dir to begin at step 0"
        )
    return None


def _newest_first(
    storage: Storage, run_dir: RunDir, candidates: list[Checkpoint]
) -> tuple[list[str], int]:
    """URLs of the checkpoints, which become candidates, and how many have a damaged manifest."""
    checkpoints, problems = list_checkpoints(storage, run_dir)
    for problem in problems:
        logger.warning("passed over: %s", problem)
    candidates += checkpoints
    damaged = [problem for problem in problems if isinstance(problem, CheckpointError)]
    return [checkpoint.url for checkpoint in checkpoints], len(damaged)


def _shared(url: str, read: Callable[[], Checkpoint]) -> Checkpoint:
    """A checkpoint that rank 0 alone has read. All ranks must call this."""
    manifest = distributed.on_main(lambda: read().manifest.model_dump(mode="json"))
    return Checkpoint(url, CheckpointManifest.model_validate(manifest))


def verify(storage: Storage, checkpoint: Checkpoint) -> list[str]:
    """What is wrong with a checkpoint's files, hashed once over all ranks. All ranks must call."""
    mine = checkpoint.manifest.files[distributed.rank() :: distributed.world_size()]
    found = distributed.on_all(lambda: file_problems(storage, checkpoint.url, mine))
    return [problem for of_rank in found for problem in of_rank]


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
    checkpoint = _shared(url, partial(read_checkpoint, storage, url))
    if problems := verify(storage, checkpoint):
        raise CheckpointError(f"{url} is damaged: {'; '.join(problems)}")
    return checkpoint
