"""Linear evaluation on all training features: ridge regression, its strength chosen on some.

N images, C channels, D = C + 1, K classes.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from mixer_dist.errors import DataError
from mixer_dist.eval.feature_set import FeatureSet
from mixer_dist.eval.ridge import (
    EPSILON,
    Classifier,
    Floats,
    Whitening,
    classifier,
    moments,
    num_correct,
    solve,
)

Mask = NDArray[np.bool_]


class LinearResult(NamedTuple):
    """What came out."""

    accuracy: float
    l2: float
    """The strength that was chosen."""
    held_out: dict[float, float]
    """Accuracy of each strength on the held-out images."""


class System(NamedTuple):
    """The normal equations of some images."""

    gram: Floats
    """X'X (D, D)."""
    moments: Floats
    """X'Y (D, K)."""

    def plus(self, other: "System") -> "System":
        return System(self.gram + other.gram, self.moments + other.moments)


def linear_accuracy(
    train: FeatureSet, test: FeatureSet, strengths: Sequence[float], held_out: float, seed: int
) -> LinearResult:
    """Top-1 accuracy of the strength that does best on a held-out share of the training images."""
    is_held = held_out_images(len(train), held_out, seed)
    num_classes = int(max(train.labels.single().max(), test.labels.single().max())) + 1
    centre, whitening = _whitening(train)
    fitted, held = _systems(train, centre, whitening, is_held, num_classes)
    candidates = [classifier(weights, whitening) for weights in _path(fitted, strengths)]
    shares = np.array(num_correct(train, candidates, centre, is_held)) / is_held.sum()
    best = strengths[int(shares.argmax())]
    whole = fitted.plus(held)
    final = classifier(solve(whole.gram, whole.moments, best), whitening)
    return LinearResult(
        _accuracy(test, final, centre),
        best,
        dict(zip(strengths, map(float, shares), strict=True)),
    )


def held_out_images(num_images: int, share: float, seed: int) -> Mask:
    """Which images are held out, (N,): at least one, never all; DataError."""
    if num_images < 2:
        raise DataError("a linear task needs 2 training images or more, one of them held out")
    num_held = min(max(1, round(share * num_images)), num_images - 1)
    is_held = np.zeros(num_images, np.bool_)
    is_held[np.random.default_rng(seed).permutation(num_images)[:num_held]] = True
    return is_held


def _whitening(train: FeatureSet) -> tuple[Floats, Whitening]:
    """A centre near the mean, and what whitens features from which it was subtracted."""
    _, first = next(train.blocks())
    centre: Floats = first.mean(0, dtype=np.float64)
    total, squares = np.zeros_like(centre), np.zeros_like(centre)
    for _, features in train.blocks():
        x = features - centre
        total += x.sum(0)
        squares += np.einsum("nc,nc->c", x, x)
    mean = total / len(train)
    std = np.sqrt(np.maximum(squares / len(train) - mean**2, 0))
    return centre, Whitening(mean, std + EPSILON)


def _systems(
    train: FeatureSet, centre: Floats, whitening: Whitening, is_held: Mask, num_classes: int
) -> tuple[System, System]:
    """Of the images that are fitted, and of those held out."""
    size, labels = len(centre) + 1, train.labels.single()
    systems = [System(np.zeros((size, size)), np.zeros((size, num_classes))) for _ in range(2)]
    for block, features in train.blocks():
        white = whitening(features - centre)
        for system, rows in zip(systems, (~is_held[block], is_held[block]), strict=True):
            system.gram[:] += white[rows].T @ white[rows]
            system.moments[:] += moments(white[rows], labels[block][rows], num_classes)
    return systems[0], systems[1]


def _path(system: System, strengths: Sequence[float]) -> list[Floats]:
    """The weights (D, K) of each strength, from one decomposition."""
    values, vectors = np.linalg.eigh(system.gram)
    projected = vectors.T @ system.moments
    return [vectors @ (projected / (values + l2)[:, None]) for l2 in strengths]


def _accuracy(test: FeatureSet, final: Classifier, centre: Floats) -> float:
    return num_correct(test, [final], centre)[0] / len(test)
