"""Before the first step: the data, the checks, the checkpoint to go on from, the attempt."""

import logging
import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from mixer_dist import distributed
from mixer_dist.checkpoint.catalog import Checkpoint, list_checkpoints
from mixer_dist.checkpoint.layout import TrainingState
from mixer_dist.checkpoint.restore import check_same_model, newest_verified
from mixer_dist.config import RunConfig
from mixer_dist.data.manifest import Dataset
from mixer_dist.data.run_data import resolve_order, sample_order, training_data
from mixer_dist.data.stages import user_stage
from mixer_dist.errors import ConfigError
from mixer_dist.models.mixer import MlpMixer
from mixer_dist.run_dir import (
    Attempt,
    RunDir,
    SkippedSteps,
    attempt_numbers,
    read_attempt,
    write_attempt,
)
from mixer_dist.storage import Storage
from mixer_dist.train.build import build_model, check_engine, empty_model
from mixer_dist.train.changes import changes_since, check_allowed, in_words, keeping_order
from mixer_dist.train.description import NOTHING_DONE, describe_changes
from mixer_dist.train.init_from import first_model
from mixer_dist.train.micro_batch import with_micro_batch_size
from mixer_dist.train.skip_steps import check_to_come, newly_skipped

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Run:
    """A run that has been checked and may begin, or go on."""

    config: RunConfig
    """With every default resolved."""
    storage: Storage
    run_dir: RunDir
    dataset: Dataset
    attempt: Attempt
    checkpoint: Checkpoint | None
    state: TrainingState
    hosts: Sequence[str]
    """Of each rank."""


def start_run(
    config: RunConfig, may_change: Sequence[str], hosts: Sequence[str]
) -> tuple[Run, MlpMixer]:
    """Check everything that can be refused, then record the attempt; the model at step 0.

    All ranks must call this.
    """
    storage, run_dir = Storage(config.storage), RunDir(config.run_dir)
    distributed.on_main(lambda: _check_inputs(config, storage))
    checkpoint = newest_verified(storage, run_dir)
    config = with_micro_batch_size(config)
    # Once there is a checkpoint, init_from is no longer read: its values would be overwritten.
    model, sha256 = (build_model(config), None) if checkpoint else first_model(config, storage)
    attempt = Attempt.model_validate(
        distributed.on_main(
            lambda: _begin(config, may_change, storage, run_dir, checkpoint, sha256)
        )
    )
    dataset = training_data(attempt.config, storage)
    state = state_of(checkpoint).model_copy(update={"skipped": attempt.skipped})
    run = Run(attempt.config, storage, run_dir, dataset, attempt, checkpoint, state, hosts)
    return run, model


def _check_inputs(config: RunConfig, storage: Storage) -> None:
    """Refuse what cannot work, whatever the run directory holds."""
    check_engine(config, distributed.world_size())
    _check_classes(config, training_data(config, storage))
    for name in config.data.stages:
        user_stage(name)


def _check_classes(config: RunConfig, dataset: Dataset) -> None:
    if dataset.classes is not None and len(dataset.classes) != config.model.num_classes:
        raise ConfigError(
            f"model.num_classes is {config.model.num_classes}, but the data have "
            f"{len(dataset.classes)} classes: set model.num_classes={len(dataset.classes)}"
        )


def _begin(
    config: RunConfig,
    may_change: Sequence[str],
    storage: Storage,
    run_dir: RunDir,
    checkpoint: Checkpoint | None,
    init_from_hash: str | None,
) -> dict[str, Any]:
    """The attempt as plain data, recorded once nothing speaks against it."""
    dataset, state = training_data(config, storage), state_of(checkpoint)
    begun = _binding_attempt(storage, run_dir, checkpoint)
    config = _resolved(config, begun, dataset)
    changes = changes_since(begun, config, dataset.fingerprint, state.step) if begun else []
    check_allowed(changes, may_change, run_dir.url)
    _check_state(config, dataset, checkpoint)
    skipped = _newly_skipped(config, begun, storage, run_dir, state)
    storage.check_writable(run_dir.url)
    numbers = attempt_numbers(storage, run_dir)
    attempt = Attempt(
        attempt=(numbers or [0])[-1] + 1,
        attempt_id=secrets.token_hex(8),
        resumed_from=state.step,
        position=state.position,
        skipped=tuple(sorted({*state.skipped, *(each.window for each in skipped)})),
        skipped_steps=(*(begun.skipped_steps if begun else ()), *skipped),
        changes=(*(begun.changes if begun else ()), *changes),
        dataset=dataset.fingerprint,
        init_from_hash=begun.init_from_hash if begun else init_from_hash,
        config=config,
    )
    write_attempt(storage, run_dir, attempt)
    _log_start(attempt, checkpoint)
    _log_skipped(skipped)
    if begun and changes:
        logger.info(describe_changes(changes, begun.config, config))
    if numbers and not begun:
        _log_unbound(attempt, read_attempt(storage, run_dir, numbers[-1]))
    return attempt.model_dump(mode="json")


def _newly_skipped(
    config: RunConfig,
    begun: Attempt | None,
    storage: Storage,
    run_dir: RunDir,
    state: TrainingState,
) -> list[SkippedSteps]:
    """What data.skip_steps leaves out from here on; ConfigError where it was trained on."""
    known = begun.skipped_steps if begun else ()
    batch_size = (begun.config if begun else config).global_batch_size  # of the steps it numbers
    skipped = newly_skipped(config.data.skip_steps, known, state, batch_size)
    if skipped:
        saved = [each.manifest.step for each in list_checkpoints(storage, run_dir)[0]]
        check_to_come(skipped, state, saved, run_dir)
    return skipped


def state_of(checkpoint: Checkpoint | None) -> TrainingState:
    """Where a run stands that goes on from a checkpoint, or from none."""
    return checkpoint.manifest.state if checkpoint else NOTHING_DONE


def _binding_attempt(
    storage: Storage, run_dir: RunDir, checkpoint: Checkpoint | None
) -> Attempt | None:
    """The attempt whose values hold until they are changed: the one that wrote the checkpoint.

    None where no step is committed, and where the weights were imported.
    """
    number = checkpoint.manifest.attempt if checkpoint else 0
    return read_attempt(storage, run_dir, number) if number else None


def _resolved(config: RunConfig, begun: Attempt | None, dataset: Dataset) -> RunConfig:
    """The configuration with the run's order, which the first start has chosen."""
    config = keeping_order(config, begun.config) if begun else config
    order = resolve_order(config, dataset)
    return config.model_copy(update={"data": config.data.model_copy(update={"order": order})})


def _check_state(config: RunConfig, dataset: Dataset, checkpoint: Checkpoint | None) -> None:
    """ConfigError where the order cannot be, or the checkpoint does not fit."""
    sample_order(config, dataset)
    if checkpoint is None:
        return
    if config.total_steps < checkpoint.manifest.step:
        raise ConfigError(
            f"total_steps is {config.total_steps}, but {checkpoint.url} has "
            f"{checkpoint.manifest.step} steps done: give at least as many"
        )
    shapes = {fqn: tuple(p.shape) for fqn, p in empty_model(config.model).named_parameters()}
    check_same_model(checkpoint, shapes)


def _log_start(attempt: Attempt, checkpoint: Checkpoint | None) -> None:
    if checkpoint is None:
        logger.info("Attempt %d begins at step 0.", attempt.attempt)
        return
    written_by = checkpoint.manifest.written_by
    logger.info(
        "Attempt %d resumes from %s (step %d, written by %s, world size %d).",
        attempt.attempt, checkpoint.url, checkpoint.manifest.step, written_by.engine,
        written_by.world_size,
    )  # fmt: skip


def _log_skipped(skipped: Sequence[SkippedSteps]) -> None:
    for each in skipped:
        logger.info(
            "Left out: what steps %d to %d would have read, positions %d to %d.",
            each.first, each.last, each.window[0], each.window[1] - 1,
        )  # fmt: skip


def _log_unbound(attempt: Attempt, before: Attempt) -> None:
    """Say what differs from an attempt of which nothing is left but its record."""
    changes = changes_since(before, attempt.config, attempt.dataset, attempt.resumed_from)
    if changes:
        logger.warning(
            "Attempt %d has saved no checkpoint, so its values do not bind this one: %s",
            before.attempt, "; ".join(map(in_words, changes)),
        )  # fmt: skip
