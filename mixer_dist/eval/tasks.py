"""What each kind of task does: its datasets' features in, a score out."""

import logging
from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from mixer_dist import distributed
from mixer_dist.config import (
    FewshotConfig,
    FinetuneConfig,
    KnnConfig,
    LinearConfig,
    Task,
    TrainedTask,
    UpstreamConfig,
)
from mixer_dist.data.manifest import Dataset
from mixer_dist.errors import ConfigError, DataError
from mixer_dist.eval.feature_set import FeatureSet, Labels
from mixer_dist.eval.fewshot import fewshot_accuracies
from mixer_dist.eval.finetune import Finetuning
from mixer_dist.eval.knn import knn_is_correct
from mixer_dist.eval.linear import linear_accuracy
from mixer_dist.eval.score import Score, mean_over_ranks, standard_error
from mixer_dist.eval.setting import Setting
from mixer_dist.eval.upstream import check_labels, upstream_outcomes

MAX_NAMES = 5  # of classes in one message

logger = logging.getLogger(__name__)


def score(task: Task, setting: Setting) -> Score:
    """Carry out a task; the same on any number of ranks. All ranks must call this."""
    return _KINDS[type(task)](task, setting)


def _fewshot(task: FewshotConfig, setting: Setting) -> Score:
    train, test = _both(task, setting)
    _warn_of_few(task, train)

    def accuracies() -> list[list[float]]:
        found = fewshot_accuracies(train, test, task.shots, task.seeds, task.l2)
        return [[found[k, seed] for seed in task.seeds] for k in task.shots]

    by_shots = dict(zip(task.shots, map(tuple, distributed.on_main(accuracies)), strict=True))
    per_shots = {
        str(k): {
            "accuracy": float(np.mean(found)),
            "standard_error": standard_error(found, len(test)),
            "per_seed": found,
        }
        for k, found in by_shots.items()
    }
    details = {"shots": task.main_shots, "l2": task.l2, "per_shots": per_shots}
    return Score(by_shots[task.main_shots], len(test), _num_classes(test), task.seeds, details)


def _knn(task: KnnConfig, setting: Setting) -> Score:
    if task.k > (num_images := setting.datasets["train"].num_samples):
        raise ConfigError(
            f"{task.name}: k is {task.k}, and {task.train} has {num_images} images: lower k"
        )
    train, test = _both(task, setting)
    place = distributed.rank(), distributed.world_size()
    right = knn_is_correct(train, test, task.k, task.temperature, *place)
    accuracy = mean_over_ranks([right])
    return Score((accuracy,), len(test), _num_classes(test), details={"k": task.k})


def _linear(task: LinearConfig, setting: Setting) -> Score:
    train, test = _both(task, setting)
    accuracy, l2, held_out = distributed.on_main(
        lambda: linear_accuracy(train, test, task.l2, task.held_out, task.seed)
    )
    details = {"l2": l2, "held_out_accuracy": held_out}
    return Score((accuracy,), len(test), _num_classes(test), details=details)


def _finetune(task: FinetuneConfig, setting: Setting) -> Score:
    _check_same_classes(task, setting)
    return Finetuning(task, setting).score()


def _upstream(task: UpstreamConfig, setting: Setting) -> Score:
    model = setting.subject.model()
    head, num_classes = model.head, model.num_classes
    named = setting.datasets["test"].classes
    if head is None or (named and len(named) != num_classes):
        raise ConfigError(
            f"{task.name}: {setting.subject.checkpoint} has a head of {num_classes} classes, "
            f"{task.test} has {len(named or ()) or 'more'}: choose the split that belongs to the "
            "pretraining data, or a fewshot, knn or linear task"
        )
    test = setting.features(task, "test")
    check_labels(test, num_classes)
    place = distributed.rank(), distributed.world_size()
    with torch.inference_mode():
        found = list(upstream_outcomes(head, test, num_classes, setting.config.loss, *place))
    losses, right = ([part[index] for part in found] for index in (0, 1))
    num_judged = int((test.labels.counts > 0).sum())
    details = {"loss": mean_over_ranks(losses)}
    return Score((mean_over_ranks(right),), num_judged, num_classes, details=details)


_KINDS: dict[type[Task], Callable[[Any, Setting], Score]] = {
    FewshotConfig: _fewshot,
    KnnConfig: _knn,
    LinearConfig: _linear,
    FinetuneConfig: _finetune,
    UpstreamConfig: _upstream,
}


def _both(task: TrainedTask, setting: Setting) -> tuple[FeatureSet, FeatureSet]:
    """Features of both splits; ConfigError, DataError. All ranks must call this."""
    _check_same_classes(task, setting)
    found = setting.features(task, "train"), setting.features(task, "test")
    known, asked = (np.unique(each.labels.single()) for each in found)
    if len(missing := np.setdiff1d(asked, known)):
        raise DataError(
            f"{task.name}: {task.train} has no image of {_named(found[0], missing)}, which "
            f"{task.test} asks for: shard both from the same classes"
        )
    return found


def _check_same_classes(task: TrainedTask, setting: Setting) -> None:
    train = setting.datasets["train"]
    for split, dataset in setting.datasets.items():
        if train.classes != dataset.classes:
            raise ConfigError(
                f"{task.name}: train has {_classes(train)} and {split} {_classes(dataset)}: "
                "shard both from folders with the same class names"
            )


def _num_classes(test: FeatureSet) -> int:
    return len(np.unique(test.labels.single()))


def _warn_of_few(task: FewshotConfig, train: FeatureSet) -> None:
    labels, counts = np.unique(train.labels.single(), return_counts=True)
    most = max(task.shots)
    if distributed.is_main() and len(few := labels[counts < most]):
        logger.warning(
            "%s: fewer than %d images of %s in %s: those there are count",
            task.name, most, _named(train, few), task.train,
        )  # fmt: skip


def _named(data: FeatureSet, labels: Labels) -> str:
    names = [data.class_name(int(label)) for label in labels[:MAX_NAMES]]
    more = f" and {len(labels) - MAX_NAMES} more classes" if len(labels) > MAX_NAMES else ""
    return ", ".join(names) + more


def _classes(dataset: Dataset) -> str:
    names = dataset.classes or ()
    return f"{len(names)} classes ({', '.join(names[:3])}…)"
