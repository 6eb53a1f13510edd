"""One evaluation task on one checkpoint, its result written into the run directory."""

import json
import logging
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from mixer_dist import distributed
from mixer_dist.checkpoint.catalog import Checkpoint
from mixer_dist.checkpoint.load import full_tensors
from mixer_dist.checkpoint.restore import (
    check_same_model,
    newest_verified,
    verified,
)
from mixer_dist.config import EvaluationConfig, RunConfig
from mixer_dist.data.manifest import Dataset, load_dataset
from mixer_dist.errors import ConfigError, MissingError
from mixer_dist.eval.features import dataset_features
from mixer_dist.eval.fewshot import fewshot_accuracy
from mixer_dist.liveness import peers_watched
from mixer_dist.models.mixer import MlpMixer
from mixer_dist.run_dir import RunDir
from mixer_dist.storage import Storage
from mixer_dist.train.build import empty_model
from mixer_dist.train.init_from import first_model

UNTRAINED = "untrained"

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Subject:
    """The model that is judged, and where it comes from."""

    model: MlpMixer
    step: int
    checkpoint: str
    is_of_run: bool
    """Whether its result belongs into the run's directory."""


def evaluate(config: RunConfig, task_name: str, checkpoint: str | None = None) -> dict[str, Any]:
    """Run a task on a checkpoint (a URL, 'untrained', or the newest) and keep the result.

    All ranks must call this; each gets the result, which does not depend on how many they are.
    """
    storage = Storage(config.storage)
    with distributed.connected(config.collective_timeout_s), peers_watched():
        return judge(config, storage, task_name, checkpoint, storage.write)


def judge(
    config: RunConfig,
    storage: Storage,
    task_name: str,
    checkpoint: str | None,
    write: Callable[[str, bytes], None],
) -> dict[str, Any]:
    """The same among ranks that are connected; rank 0 writes. All ranks must call this."""
    task, run_dir = find_task(config, task_name), RunDir(config.run_dir)
    subject = find_subject(config, storage, run_dir, checkpoint)
    logger.info("%s on %s (step %d)", task.name, subject.checkpoint, subject.step)
    result = fewshot_result(config, task, subject, storage)
    if subject.is_of_run and distributed.is_main():
        url = run_dir.evaluation(task.name, subject.step)
        write(url, (json.dumps(result, indent=1) + "\n").encode())
    return result


def describe_task(config: RunConfig, task_name: str, checkpoint: str | None) -> str:
    """What `evaluate` would do, in a sentence."""
    task = find_task(config, task_name)
    subject = checkpoint or f"the newest checkpoint of {config.run_dir}"
    return (
        f"{task.name}: {task.shots} images a class of {task.train}, with seeds "
        f"{', '.join(map(str, task.seeds))}, classify the images of {task.test}, on features of "
        f"{subject}."
    )


def find_task(config: RunConfig, name: str) -> EvaluationConfig:
    """The task of that name; ConfigError names those there are."""
    for task in config.evals:
        if task.name == name:
            return task
    known = ", ".join(task.name for task in config.evals) or "none; add evals: to the config"
    raise ConfigError(f"no evaluation task {name!r}; tasks of this config: {known}")


def find_subject(
    config: RunConfig, storage: Storage, run_dir: RunDir, checkpoint: str | None
) -> Subject:
    """The model to judge; MissingError where there is no checkpoint."""
    if checkpoint == UNTRAINED:
        model, _ = first_model(config, storage)
        model = model.to(distributed.device()).eval()
        return Subject(model, 0, UNTRAINED, is_of_run=True)
    found = verified(storage, checkpoint) if checkpoint else newest_verified(storage, run_dir)
    if found is None:
        raise MissingError(
            f"no checkpoint in {run_dir.checkpoints}: pretrain first, or give --checkpoint "
            f"URL or --checkpoint {UNTRAINED}"
        )
    is_of_run = found.url.rstrip("/").startswith(run_dir.checkpoints)
    model = restored_model(config, storage, found)
    return Subject(model, found.manifest.step, found.url, is_of_run)


def restored_model(config: RunConfig, storage: Storage, checkpoint: Checkpoint) -> MlpMixer:
    """The configured model with a checkpoint's weights, in fp32; ConfigError for another model."""
    model = empty_model(config.model)
    check_same_model(checkpoint, {fqn: tuple(p.shape) for fqn, p in model.named_parameters()})
    model.load_state_dict(full_tensors(storage, checkpoint), assign=True)
    return model.to(distributed.device(), torch.float32).eval()


def _classes(dataset: Dataset) -> str:
    names = dataset.classes or ()
    return f"{len(names)} classes ({', '.join(names[:3])}…)"


def fewshot_result(
    config: RunConfig, task: EvaluationConfig, subject: Subject, storage: Storage
) -> dict[str, Any]:
    """Accuracy of each seed and their mean, with how it was computed. All ranks must call this."""
    train, test = (load_dataset(storage, [(url, 1)]) for url in (task.train, task.test))
    if train.classes != test.classes:
        raise ConfigError(
            f"{task.name}: train has {_classes(train)} and test {_classes(test)}: "
            "shard both from folders with the same class names"
        )
    pool = dataset_features(subject.model, config, task, train, storage)
    queries = dataset_features(subject.model, config, task, test, storage)
    per_seed = distributed.on_main(
        lambda: [fewshot_accuracy(*pool, *queries, task.shots, s, task.l2) for s in task.seeds]
    )
    return {
        "task": task.name,
        "kind": task.kind,
        "step": subject.step,
        "checkpoint": subject.checkpoint,
        "shots": task.shots,
        "l2": task.l2,
        "accuracy": float(np.mean(per_seed)),
        "per_seed": per_seed,
        "seeds": list(task.seeds),
        "num_train": train.num_samples,
        "num_test": test.num_samples,
        "num_classes": len(np.unique(queries[1])),
        "time": time.time(),
    }
