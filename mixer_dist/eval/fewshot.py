"""k-shot linear evaluation: ridge regression on frozen features, in closed form.

As big_vision's evaluators/fewshot_lsr.py: l2 fixed at 2^10. N images, C channels, K classes.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike

from mixer_dist.eval.feature_set import Features, FeatureSet, Labels, in_memory
from mixer_dist.eval.ridge import (
    EPSILON,
    Classifier,
    Floats,
    Whitening,
    classifier,
    num_correct,
    ridge,
)

Case = tuple[int, int]
"""Shots and seed."""


def fewshot_accuracy(
    features: ArrayLike,
    labels: ArrayLike,
    test_features: ArrayLike,
    test_labels: ArrayLike,
    shots: int,
    seed: int,
    l2: float = 2**10,
) -> float:
    """Top-1 accuracy on test features (M, C) after `shots` examples a class of features (N, C).

    Computed in float64: a pure function of its arguments.
    """
    train, test = in_memory(features, labels), in_memory(test_features, test_labels)
    return fewshot_accuracies(train, test, [shots], [seed], l2)[shots, seed]


def fewshot_accuracies(
    train: FeatureSet, test: FeatureSet, shots: Sequence[int], seeds: Sequence[int], l2: float
) -> dict[Case, float]:
    """Top-1 accuracy of each number of shots with each seed, in one pass over each set."""
    labels, test_labels = train.labels.single(), test.labels.single()
    num_classes = int(max(labels.max(), test_labels.max())) + 1
    chosen = {(k, seed): chosen_examples(labels, k, seed) for k in shots for seed in seeds}
    images = np.unique(np.concatenate(list(chosen.values())))
    pool = train.take(images)
    centre = pool.mean(0, dtype=np.float64)  # features far from 0 would cost digits
    classifiers = [
        _fit(pool[np.searchsorted(images, few)] - centre, labels[few], num_classes, l2)
        for few in chosen.values()
    ]
    correct = num_correct(test, classifiers, centre)
    return {case: count / len(test) for case, count in zip(chosen, correct, strict=True)}


def chosen_examples(labels: Labels, shots: int, seed: int) -> Labels:
    """Indices of `shots` random examples of each class, fewer where a class has fewer."""
    generator = np.random.default_rng(seed)
    of_class = (np.flatnonzero(labels == label) for label in np.unique(labels))
    return np.concatenate([generator.permutation(found)[:shots] for found in of_class])


def _fit(few: Features, labels: Labels, num_classes: int, l2: float) -> Classifier:
    mean: Floats = few.mean(0)
    whitening = Whitening(mean, few.std(0) + EPSILON)
    return classifier(ridge(whitening(few), labels, num_classes, l2), whitening)
