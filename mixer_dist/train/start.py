"""Before the first step: the data, the checks, the checkpoint to go on from, the attempt."""

import logging
import secrets
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from mixer_dist import distributed
from mixer_dist.checkpoint.catalog import Checkpoint
from mixer_dist.checkpoint.layout import TrainingState
from mixer_dist.checkpoint.restore import check_same_model, newest_verified
from mixer_dist.config import RunConfig
from mixer_dist.data.manifest import Dataset
from mixer_dist.data.run_data import resolve_order, sample_order, training_data
from mixer_dist.data.stream import user_stage
from mixer_dist.errors import ConfigError
from mixer_dist.models.mixer import MlpMixer
from mixer_dist.run_dir import Attempt, RunDir, attempt_numbers, read_attempt, write_attempt
from mixer_dist.storage import Storage
from mixer_dist.train.build import build_model, check_engine, empty_model
from mixer_dist.train.init_from import first_model

FREE_TO_CHANGE = (
    "run_dir", "micro_batch_size", "max_consecutive_skips", "engine", "checkpoint", "logging",
    "storage", "evals", "data.train", "data.num_threads", "data.prefetch_batches",
    "data.max_bad_fraction", "umask",
)  # fmt: skip
"""What decides how a run is carried out, not what it is; the data are compared by content."""


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
    model: MlpMixer
    """At step 0, on the CPU; the engine takes it over."""


def start_run(config: RunConfig) -> Run:
    """Check everything that can be refused, then record the attempt. All ranks must call this."""
    storage, run_dir = Storage(config.storage), RunDir(config.run_dir)
    resolved = distributed.on_main(lambda: _checked(config, storage, run_dir))
    config = RunConfig.model_validate(resolved)
    dataset = training_data(config, storage)
    checkpoint = newest_verified(storage, run_dir)
    state = checkpoint.manifest.state if checkpoint else TrainingState(
        step=0, num_updates=0, position=0
    )  # fmt: skip
    # Once there is a checkpoint, init_from is no longer read: its values would be overwritten.
    model, sha256 = (build_model(config), None) if checkpoint else first_model(config, storage)
    recorded = distributed.on_main(
        lambda: _record_attempt(
            config, storage, run_dir, dataset.fingerprint, checkpoint, state, sha256
        )
    )
    attempt = Attempt.model_validate(recorded)
    return Run(config, storage, run_dir, dataset, attempt, checkpoint, state, model)


def _checked(config: RunConfig, storage: Storage, run_dir: RunDir) -> dict[str, Any]:
    """The resolved configuration as plain data, once nothing speaks against it."""
    check_engine(config, distributed.world_size())
    dataset = training_data(config, storage)
    _check_classes(config, dataset)
    for name in config.data.stages:
        user_stage(name)
    numbers = attempt_numbers(storage, run_dir)
    if numbers:
        config = as_begun(config, dataset, read_attempt(storage, run_dir, numbers[-1]))
    sample_order(config, dataset)
    storage.check_writable(run_dir.url)
    order = resolve_order(config, dataset)
    data = config.data.model_copy(update={"order": order})
    return config.model_copy(update={"data": data}).model_dump(mode="json")


def _check_classes(config: RunConfig, dataset: Dataset) -> None:
    if dataset.classes is not None and len(dataset.classes) != config.model.num_classes:
        raise ConfigError(
            f"model.num_classes is {config.model.num_classes}, but the data have "
            f"{len(dataset.classes)} classes: set model.num_classes={len(dataset.classes)}"
        )


def as_begun(config: RunConfig, dataset: Dataset, last: Attempt) -> RunConfig:
    """The configuration with the order the run began with; ConfigError at a forbidden change."""
    given = {k: v for k, v in config.data.order.model_dump().items() if v is not None}
    order = last.config.data.order.model_copy(update=given)
    data = config.data.model_copy(update={"order": order})
    config = config.model_copy(update={"data": data})
    changes = list(_changes(last.config.model_dump(mode="json"), config.model_dump(mode="json")))
    if dataset.fingerprint != last.dataset:
        changes.append("the content of data.train")
    if changes:
        raise ConfigError(
            f"{config.run_dir} holds a run that began otherwise: {'; '.join(changes)}. "
            "Give it the old values, or choose another run_dir"
        )
    return config


def _changes(old: Any, new: Any, path: str = "") -> Iterator[str]:
    """Lines `key: old -> new` for what differs and is not free to change."""
    if path in FREE_TO_CHANGE or old == new:
        return
    if isinstance(old, dict) and isinstance(new, dict):
        for key in sorted(old.keys() | new.keys()):
            yield from _changes(old.get(key), new.get(key), f"{path}.{key}" if path else key)
    else:
        yield f"{path}: {old} -> {new}"


def _record_attempt(
    config: RunConfig,
    storage: Storage,
    run_dir: RunDir,
    fingerprint: str,
    checkpoint: Checkpoint | None,
    state: TrainingState,
    init_from_hash: str | None,
) -> dict[str, Any]:
    shapes = {fqn: tuple(p.shape) for fqn, p in empty_model(config.model).named_parameters()}
    if checkpoint:
        check_same_model(checkpoint, shapes)
    numbers = attempt_numbers(storage, run_dir)
    last = read_attempt(storage, run_dir, numbers[-1]) if numbers else None
    attempt = Attempt(
        attempt=last.attempt + 1 if last else 1,
        attempt_id=secrets.token_hex(8),
        resumed_from=state.step,
        position=state.position,
        skipped=state.skipped,
        dataset=fingerprint,
        init_from_hash=_same_weights(config, init_from_hash, last),
        config=config,
    )
    write_attempt(storage, run_dir, attempt)
    _log_start(attempt, checkpoint)
    return attempt.model_dump(mode="json")


def _same_weights(config: RunConfig, sha256: str | None, last: Attempt | None) -> str | None:
    """The hash of what the run began with; ConfigError where a start would begin with another."""
    begun_with = last.init_from_hash if last else None
    if last and sha256 and begun_with and sha256 != begun_with:
        raise ConfigError(
            f"init_from: {config.init_from} has changed since attempt {last.attempt} of "
            f"{config.run_dir} began with it: put the old one back, or choose another run_dir"
        )
    return sha256 or begun_with


def _log_start(attempt: Attempt, checkpoint: Checkpoint | None) -> None:
    logger = logging.getLogger(__name__)
    if checkpoint is None:
        logger.info("Attempt %d begins at step 0.", attempt.attempt)
        return
    written_by = checkpoint.manifest.written_by
    logger.info(
        "Attempt %d resumes from %s (step %d, written by %s, world size %d).",
        attempt.attempt, checkpoint.url, checkpoint.manifest.step, written_by.engine,
        written_by.world_size,
    )  # fmt: skip
