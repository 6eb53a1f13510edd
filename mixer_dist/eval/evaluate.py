"""Evaluation tasks on one checkpoint, their results written into the run directory."""

import logging
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from mixer_dist import distributed
from mixer_dist.config import (
    EvaluationConfig,
    FewshotConfig,
    FinetuneConfig,
    RunConfig,
    Suite,
    UpstreamConfig,
)
from mixer_dist.data.manifest import load_dataset
from mixer_dist.errors import ConfigError, MissingError
from mixer_dist.eval.results import Result, checked_origin, whole_result, write_result
from mixer_dist.eval.subject import Subject, judged
from mixer_dist.eval.tasks import Setting, score
from mixer_dist.liveness import Peers, peers_watched
from mixer_dist.run_dir import RunDir
from mixer_dist.storage import Storage

logger = logging.getLogger(__name__)


def evaluate(config: RunConfig, task_name: str, checkpoint: str | None = None) -> dict[str, Any]:
    """Run a task on a checkpoint (a URL, 'untrained', or the newest) and keep the result.

    All ranks must call this; each gets the result, which does not depend on how many they are.
    """
    task, storage = find_task(config, task_name), Storage(config.storage)
    with _judged(config, storage, checkpoint) as (subject, peers):
        return _evaluate(config, task, subject, storage, peers)


def evaluate_suite(
    config: RunConfig, suite: Suite, checkpoint: str | None = None
) -> list[dict[str, Any]]:
    """The results of a suite's tasks; one whose dataset is missing is named and left out.

    All ranks must call this. MissingError where all are missing.
    """
    storage = Storage(config.storage)
    with _judged(config, storage, checkpoint) as (subject, peers):
        found = [_evaluate_if_there(config, t, subject, storage, peers) for t in suite.evals]
    results = [result for result in found if result]
    if not results:
        places = ", ".join(dict.fromkeys(task.test for task in suite.evals))
        raise MissingError(f"none of the suite's datasets is there: {places}; see --datasets")
    return results


def describe_task(config: RunConfig, task_name: str, checkpoint: str | None) -> str:
    """What `evaluate` would do, in a sentence."""
    task = find_task(config, task_name)
    subject = checkpoint or f"the newest checkpoint of {config.run_dir}"
    return f"{task.name}: {_method(task)} classifies the images of {task.test}, on {subject}."


def _method(task: EvaluationConfig) -> str:
    match task:
        case FewshotConfig():
            shots = ", ".join(map(str, task.shots))
            return f"ridge regression on {shots} images a class of {task.train}"
        case UpstreamConfig():
            return "the model's own head"
        case FinetuneConfig():
            return f"the model, fine-tuned for {task.total_steps} steps on {task.train},"
        case _:
            return f"{task.kind} on the features of {task.train}"


def find_task(config: RunConfig, name: str) -> EvaluationConfig:
    """The task of that name; ConfigError names those there are."""
    for task in config.evals:
        if task.name == name:
            return task
    known = ", ".join(task.name for task in config.evals) or "none; add evals: to the config"
    raise ConfigError(f"no evaluation task {name!r}; tasks of this config: {known}")


@contextmanager
def _judged(
    config: RunConfig, storage: Storage, checkpoint: str | None
) -> Iterator[tuple[Subject, Peers]]:
    """What is evaluated, among ranks that are connected now. All ranks must call this."""
    with (
        distributed.connected(config.collective_timeout_s),
        peers_watched() as peers,
        judged(config, storage, RunDir(config.run_dir), checkpoint) as subject,
    ):
        yield subject, peers


def _evaluate_if_there(
    config: RunConfig, task: EvaluationConfig, subject: Subject, storage: Storage, peers: Peers
) -> dict[str, Any] | None:
    urls = task.datasets.values()
    missing = distributed.on_main(lambda: [url for url in urls if not storage.exists(url)])
    if missing and distributed.is_main():
        logger.warning("%s is left out: no dataset at %s", task.name, " nor ".join(missing))
    return None if missing else _evaluate(config, task, subject, storage, peers)


def _evaluate(
    config: RunConfig, task: EvaluationConfig, subject: Subject, storage: Storage, peers: Peers
) -> dict[str, Any]:
    """The result of a task, on every rank. All ranks must call this."""
    began, run_dir = time.monotonic(), RunDir(config.run_dir)
    logger.info("%s on %s (step %d)", task.name, subject.checkpoint, subject.step)
    datasets = {split: load_dataset(storage, [(url, 1)]) for split, url in task.datasets.items()}
    setting = Setting(config, storage, subject, datasets, peers)
    origin = distributed.on_main(lambda: checked_origin(task, setting, run_dir))
    found = score(task, setting)

    def finish() -> Result:
        result = whole_result(origin, found, setting, time.monotonic() - began)
        if subject.is_of_run:
            write_result(storage, run_dir, result)
        return result

    return dict(distributed.on_main(finish))
