"""Results of evaluation tasks in the run directory, and whether a new one belongs beside them."""

import hashlib
import json
import time
from collections.abc import Iterator
from typing import Any

import numpy as np
import torchmetrics

from mixer_dist.checkpoint.layout import versions
from mixer_dist.config import Task
from mixer_dist.data.manifest import Dataset
from mixer_dist.errors import DataError, MissingError, RefusedError
from mixer_dist.eval.comparable import difference, settings_of
from mixer_dist.eval.score import Score
from mixer_dist.eval.setting import Setting
from mixer_dist.run_dir import RunDir, evaluated_step, run_id
from mixer_dist.storage import Storage, join

Result = dict[str, Any]


def checked_origin(task: Task, setting: Setting, run_dir: RunDir) -> Result:
    """What a result says of its origin, known before anything is computed.

    RefusedError where the task's results so far cannot be compared with the one to come.
    """
    origin = _origin(task, setting, run_dir)
    if setting.subject.is_of_run:
        _check_comparable(setting.storage, run_dir, origin)
    return origin


def whole_result(origin: Result, score: Score, setting: Setting, duration_s: float) -> Result:
    """A result as it is written."""
    counts = {f"num_{split}": dataset.num_samples for split, dataset in setting.datasets.items()}
    return origin | {
        "accuracy": score.accuracy,
        "standard_error": score.standard_error,
        "per_seed": list(score.per_seed),
        "seeds": list(score.seeds),
        **score.details,
        **counts,
        "num_judged": score.num_judged,
        "num_classes": score.num_classes,
        "versions": versions()
        | {"numpy": np.__version__, "torchmetrics": torchmetrics.__version__},
        "duration_s": round(duration_s, 3),
        "time": time.time(),
    }


def _origin(task: Task, setting: Setting, run_dir: RunDir) -> Result:
    subject, datasets = setting.subject, setting.datasets
    return {
        "task": task.name,
        **settings_of(task),
        "step": subject.step,
        "checkpoint": subject.checkpoint,
        "checkpoint_sha256": subject.sha256,
        "run_id": run_id(setting.storage, run_dir),
        "urls": task.datasets,
        "datasets": {split: dataset.fingerprint for split, dataset in datasets.items()},
        "classes": {split: _classes_sha256(dataset) for split, dataset in datasets.items()},
    }


def _check_comparable(storage: Storage, run_dir: RunDir, origin: Result) -> None:
    for url, earlier in _earlier(storage, run_dir, origin):
        if meaning := difference(earlier, origin):
            raise RefusedError(
                f"{origin['task']}: {url} {meaning}, so that it cannot be compared with this "
                "evaluation: give the task another name, or remove "
                f"{run_dir.evaluations(origin['task'])}"
            )


def _earlier(storage: Storage, run_dir: RunDir, origin: Result) -> Iterator[tuple[str, Result]]:
    """The task's newest result, and the one that would be replaced."""
    folder = run_dir.evaluations(origin["task"])
    names = [name for name in storage.names(folder) if evaluated_step(name) is not None]
    replaced = run_dir.evaluation(origin["task"], origin["step"])
    for url in {replaced, *(join(folder, name) for name in names[-1:])}:
        try:
            yield url, dict(json.loads(storage.read(url)))
        except MissingError:
            continue
        except (ValueError, TypeError):
            raise DataError(f"{url} is not an evaluation result: remove it") from None


def _classes_sha256(dataset: Dataset) -> str:
    return hashlib.sha256(json.dumps(dataset.classes).encode()).hexdigest()
