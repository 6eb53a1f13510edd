"""Evaluation tasks on one checkpoint, their results written into the run directory."""

import json
import logging
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from itertools import combinations
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
from mixer_dist.data.manifest import Dataset, load_dataset
from mixer_dist.errors import ConfigError, MissingError
from mixer_dist.eval.results import Result, checked_origin, whole_result
from mixer_dist.eval.setting import Setting
from mixer_dist.eval.subject import Subject, judged
from mixer_dist.eval.tasks import score
from mixer_dist.liveness import Peers, peers_watched
from mixer_dist.run_dir import RunDir
from mixer_dist.storage import Storage

logger = logging.getLogger(__name__)


def evaluate(config: RunConfig, task_name: str, checkpoint: str | None = None) -> dict[str, Any]:
    """Run a task on a checkpoint (a URL, 'untrained', or the newest) and keep the result.

    All ranks must call this; each gets the result, which does not depend on how many they are.
    """
    task = find_task(config, task_name)
    with _connected(config) as judge:
        return judge.one(task, checkpoint)


def evaluate_suite(
    config: RunConfig, suite: Suite, checkpoint: str | None = None
) -> list[dict[str, Any]]:
    """The results of a suite's tasks; one whose dataset is missing is named and left out.

    All ranks must call this. MissingError where all are missing.
    """
    with _connected(config) as judge:
        return judge.all_there(suite, checkpoint)


@contextmanager
def _connected(config: RunConfig) -> Iterator["Judge"]:
    storage = Storage(config.storage)
    with distributed.connected(config.collective_timeout_s), peers_watched() as peers:
        yield Judge(config, storage, peers, storage.write)


@dataclass(frozen=True)
class Judge:
    """Carries out tasks among ranks that are connected."""

    config: RunConfig
    storage: Storage
    peers: Peers
    write: Callable[[str, bytes], None]
    """Puts a result at its URL, on rank 0."""

    def one(self, task: EvaluationConfig, checkpoint: str | None) -> Result:
        """The result of a task, on every rank. All ranks must call this."""
        with self._subject(checkpoint) as subject:
            return self._result(task, subject)

    def all_there(self, suite: Suite, checkpoint: str | None) -> list[Result]:
        """The results of tasks whose datasets are there; MissingError. All ranks must call this."""
        with self._subject(checkpoint) as subject:
            found = [self._result(task, subject) for task in suite.evals if self._is_there(task)]
        if not found:
            places = ", ".join(dict.fromkeys(task.test for task in suite.evals))
            raise MissingError(f"none of the suite's datasets is there: {places}; see --datasets")
        return found

    def _subject(self, checkpoint: str | None) -> AbstractContextManager[Subject]:
        return judged(self.config, self.storage, RunDir(self.config.run_dir), checkpoint)

    def _is_there(self, task: EvaluationConfig) -> bool:
        """Whether no dataset is missing; one that is, is named."""
        missing = distributed.on_main(lambda: _missing(self.storage, task))
        if missing and distributed.is_main():
            logger.warning("%s is left out: no dataset at %s", task.name, " nor ".join(missing))
        return not missing

    def _result(self, task: EvaluationConfig, subject: Subject) -> Result:
        began, run_dir = time.monotonic(), RunDir(self.config.run_dir)
        logger.info("%s on %s (step %d)", task.name, subject.checkpoint, subject.step)
        datasets = {
            split: load_dataset(self.storage, [(url, 1)]) for split, url in task.datasets.items()
        }
        _warn_of_same(datasets)
        setting = Setting(self.config, self.storage, subject, datasets, self.peers)
        origin = distributed.on_main(lambda: checked_origin(task, setting, run_dir))
        found = score(task, setting)

        def finish() -> Result:
            result = whole_result(origin, found, setting, time.monotonic() - began)
            if subject.is_of_run:
                url = run_dir.evaluation(task.name, subject.step)
                self.write(url, (json.dumps(result, indent=1) + "\n").encode())
            else:
                logger.warning("not kept: this is no checkpoint of %s", run_dir.url)
            return result

        return dict(distributed.on_main(finish))


def _warn_of_same(datasets: Mapping[str, Dataset]) -> None:
    """What is learned from and judged on tells nothing."""
    for a, b in combinations(datasets, 2):
        if datasets[a].fingerprint == datasets[b].fingerprint and distributed.is_main():
            logger.warning("%s and %s are the same images", a, b)


def describe_task(config: RunConfig, task_name: str, checkpoint: str | None) -> str:
    """What `evaluate` would do, in a sentence."""
    task = find_task(config, task_name)
    subject = checkpoint or f"the newest checkpoint of {config.run_dir}"
    missing = _missing(Storage(config.storage), task)
    warning = f" There is no dataset at {' nor '.join(missing)}." if missing else ""
    sentence = f"{task.name}: {_method(task)} classifies the images of {task.test}, on {subject}."
    return sentence + warning


def _missing(storage: Storage, task: EvaluationConfig) -> list[str]:
    """URLs of datasets that are not there."""
    return [url for url in task.datasets.values() if not storage.exists(url)]


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
