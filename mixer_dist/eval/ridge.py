"""Linear classifiers in closed form: ridge regression on whitened features with a constant column.

As big_vision's evaluators/fewshot_lsr.py: targets of -1 and 1, everything in float64. N images,
C channels, D = C + 1, K classes.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from mixer_dist.eval.feature_set import Features, FeatureSet, Labels

BIAS = 100.0  # the constant column; regularised like the features
EPSILON = 1e-5

Floats = NDArray[np.float64]


class Whitening(NamedTuple):
    """What makes features (N, C) of mean 0 and standard deviation 1."""

    mean: Floats
    std: Floats

    def __call__(self, features: Features) -> Floats:
        """(N, D), with the constant column."""
        white = np.full((len(features), features.shape[1] + 1), BIAS)
        inner = white[:, :-1]
        np.subtract(features, self.mean, out=inner)
        inner /= self.std
        return white


class Classifier(NamedTuple):
    """Scores of features as they are: features @ weights + bias."""

    weights: Floats
    """(C, K)."""
    bias: Floats
    """(K,)."""


def classifier(white_weights: Floats, whitening: Whitening) -> Classifier:
    """The same scores as weights (D, K) give of whitened features."""
    weights = white_weights[:-1] / whitening.std[:, None]
    return Classifier(weights, BIAS * white_weights[-1] - whitening.mean @ weights)


def ridge(x: Floats, labels: Labels, num_classes: int, l2: float) -> Floats:
    """(X'X + l2 I)^-1 X'Y for x (N, D), by the smaller of the two systems: (D, K)."""
    num_images, num_columns = x.shape
    if num_images < num_columns:
        targets = np.where(labels[:, None] == np.arange(num_classes), 1.0, -1.0)
        return np.asarray(x.T @ solve(x @ x.T, targets, l2))
    return solve(x.T @ x, moments(x, labels, num_classes), l2)


def solve(gram: Floats, right: Floats, l2: float) -> Floats:
    """(gram + l2 I)^-1 right."""
    return np.asarray(np.linalg.solve(gram + l2 * np.eye(len(gram)), right))


def moments(x: Floats, labels: Labels, num_classes: int) -> Floats:
    """X'Y (D, K) for targets Y of -1 and 1, by sums over classes: Y is never laid out."""
    sums = np.zeros((num_classes, x.shape[1]))
    for label in np.unique(labels):
        sums[label] = x[labels == label].sum(0)
    return np.asarray((2 * sums - x.sum(0)).T)


def num_correct(
    data: FeatureSet,
    classifiers: Sequence[Classifier],
    centre: Floats,
    among: NDArray[np.bool_] | None = None,
) -> list[int]:
    """Images that each classifier of centred features gets right, in one pass over all.

    `among` (N,) says which images count.
    """
    weights = np.concatenate([each.weights for each in classifiers], axis=1)
    bias = np.concatenate([each.bias for each in classifiers])
    num_classes = len(classifiers[0].bias)
    labels, correct = data.labels.single(), np.zeros(len(classifiers), np.int64)
    for block, features in data.blocks():
        chosen = slice(None) if among is None else among[block]
        scores = (features[chosen] - centre) @ weights
        scores += bias
        predicted = scores.reshape(len(scores), len(classifiers), num_classes).argmax(2)
        correct += (predicted == labels[block][chosen, None]).sum(0)
    return [int(count) for count in correct]
