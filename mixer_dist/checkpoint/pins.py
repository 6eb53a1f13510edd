"""Pins: checkpoints that a user wants kept, whatever the rules say."""

from mixer_dist.checkpoint.catalog import read_checkpoint, run_and_step
from mixer_dist.checkpoint.layout import TOMBSTONE_NAME
from mixer_dist.errors import CheckpointError, MissingError
from mixer_dist.run_dir import RunDir, step_of
from mixer_dist.storage import Storage, join


def pin(storage: Storage, url: str) -> None:
    """Keep a checkpoint for good, also one that was about to go; MissingError where it is gone."""
    run_dir, step = run_and_step(url)
    storage.write(run_dir.pin(step), b"")
    storage.delete(join(url, TOMBSTONE_NAME))
    try:
        read_checkpoint(storage, url)
    except (MissingError, CheckpointError):
        storage.delete(run_dir.pin(step))
        raise


def unpin(storage: Storage, url: str) -> None:
    """Leave a checkpoint to the rules again; MissingError where it is not pinned."""
    run_dir, step = run_and_step(url)
    if not is_pinned(storage, run_dir, step):
        raise MissingError(f"{url} is not pinned: there is no {run_dir.pin(step)}")
    storage.delete(run_dir.pin(step))


def is_pinned(storage: Storage, run_dir: RunDir, step: int) -> bool:
    """Whether a step is pinned, asked for directly, since a listing may lag."""
    return storage.exists(run_dir.pin(step))


def pinned_steps(storage: Storage, run_dir: RunDir) -> set[int]:
    """All steps that are pinned."""
    listed = (step_of(name) for name in storage.names(run_dir.pins))
    return {step for step in listed if step is not None}
