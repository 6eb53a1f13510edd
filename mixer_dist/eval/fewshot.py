"""k-shot linear evaluation: ridge regression on frozen features, in closed form.

As big_vision's evaluators/fewshot_lsr.py: whitened features with a constant column, targets of -1
and 1, l2 fixed at 2^10. N images, D features, K classes.
"""

import numpy as np
from numpy.typing import ArrayLike, NDArray

BIAS = 100.0  # the constant column; regularised like the features
EPSILON = 1e-5

Floats = NDArray[np.float64]
Labels = NDArray[np.int64]


def fewshot_accuracy(
    features: ArrayLike,
    labels: ArrayLike,
    test_features: ArrayLike,
    test_labels: ArrayLike,
    shots: int,
    seed: int,
    l2: float = 2**10,
) -> float:
    """Top-1 accuracy on test features (M, D) after `shots` examples a class of features (N, D).

    Computed in float64: a pure function of its arguments.
    """
    features, test_features = (
        np.asarray(features, np.float64),
        np.asarray(test_features, np.float64),
    )
    labels, test_labels = np.asarray(labels, np.int64), np.asarray(test_labels, np.int64)
    chosen = chosen_examples(labels, shots, seed)
    few = features[chosen]
    mean, std = few.mean(0), few.std(0) + EPSILON
    num_classes = int(max(labels.max(), test_labels.max())) + 1
    weights = ridge(_whitened(few, mean, std), _targets(labels[chosen], num_classes), l2)
    predicted = (_whitened(test_features, mean, std) @ weights).argmax(1)
    return float((predicted == test_labels).mean())


def chosen_examples(labels: Labels, shots: int, seed: int) -> Labels:
    """Indices of `shots` random examples of each class, fewer where a class has fewer."""
    generator = np.random.default_rng(seed)
    of_class = (np.flatnonzero(labels == label) for label in np.unique(labels))
    return np.concatenate([generator.permutation(found)[:shots] for found in of_class])


def ridge(x: Floats, y: Floats, l2: float) -> Floats:
    """(X'X + l2 I)^-1 X'Y for x (N, D) and y (N, K), by the smaller of the two systems."""
    num_images, num_features = x.shape
    if num_images < num_features:
        kernel = x @ x.T + l2 * np.eye(num_images)
        return np.asarray(x.T @ np.linalg.solve(kernel, y))
    return np.asarray(np.linalg.solve(x.T @ x + l2 * np.eye(num_features), x.T @ y))


def _whitened(features: Floats, mean: Floats, std: Floats) -> Floats:
    constant = np.full((len(features), 1), BIAS)
    return np.concatenate([(features - mean) / std, constant], axis=1)


def _targets(labels: Labels, num_classes: int) -> Floats:
    return np.where(labels[:, None] == np.arange(num_classes), 1.0, -1.0)
