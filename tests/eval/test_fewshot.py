"""k-shot linear evaluation against the algebra of big_vision's evaluators/fewshot_lsr.py.

N images, D features, K classes.
"""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mixer_dist.eval.fewshot import chosen_examples, fewshot_accuracy
from mixer_dist.eval.ridge import ridge

the_same_cases = settings(derandomize=True, database=None, deadline=None, max_examples=40)


def drawn(seed: int, num_images: int, num_features: int, num_classes: int, spread: float = 1.0):
    """Features (N, D) around one centre a class, and labels (N,); the centres never change."""
    centres = np.random.default_rng(99).normal(size=(num_classes, num_features))
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, num_classes, num_images)
    features = centres[labels] + spread * rng.normal(size=(num_images, num_features))
    return features * 3.0 + 7.0, labels


def reference_accuracy(features, labels, test_features, test_labels, shots, seed, l2) -> float:
    """Class by class and by the pseudo-inverse of one stacked least-squares problem, in float64."""
    rng = np.random.default_rng(seed)
    few, targets = [], []
    num_classes = max(labels.max(), test_labels.max()) + 1
    for label in range(num_classes):
        found = np.where(labels == label)[0]
        for index in rng.permutation(found)[:shots] if len(found) else []:
            few.append(features[index].astype(np.float64))
            targets.append([1.0 if label == other else -1.0 for other in range(num_classes)])
    few = np.array(few)
    mean = few.sum(0) / len(few)
    std = np.sqrt(((few - mean) ** 2).sum(0) / len(few)) + 1e-5
    x = np.hstack([(few - mean) / std, np.full((len(few), 1), 100.0)])
    # Ridge regression is plain least squares with sqrt(l2) times the identity stacked below.
    stacked = np.vstack([x, np.sqrt(l2) * np.eye(x.shape[1])])
    wanted = np.vstack([targets, np.zeros((x.shape[1], num_classes))])
    weights = np.linalg.lstsq(stacked, wanted, rcond=None)[0]
    queries = np.hstack([(test_features - mean) / std, np.full((len(test_features), 1), 100.0)])
    return float(np.mean((queries @ weights).argmax(1) == test_labels))


@pytest.mark.parametrize("shots", [1, 5, 10, 25])
@pytest.mark.parametrize(("num_features", "spread"), [(4, 1.0), (40, 4.0), (300, 8.0)])
@pytest.mark.parametrize("l2", [1.0, 2.0**10])
def test_accuracy_equals_the_official_algebra(shots, num_features, spread, l2):
    """With fewer images than features and with more: the dual and the primal system."""
    pool = drawn(1, 200, num_features, 6, spread)
    queries = drawn(2, 150, num_features, 6, spread)
    for seed in (0, 1, 2):
        found = fewshot_accuracy(*pool, *queries, shots, seed, l2)
        assert found == reference_accuracy(*pool, *queries, shots, seed, l2)
    assert 0.05 < found < 1.0  # perfect, it would tell nothing


@pytest.mark.parametrize("num_features", [8, 100])
def test_rare_classes_weigh_as_in_the_official_algebra(num_features):
    """Where classes differ in size, the constant column of 100 decides between them."""
    features, labels = drawn(1, 400, num_features, 6, 6.0)
    kept = np.concatenate([np.flatnonzero(labels == c)[: 25 // (c + 1)] for c in range(6)])
    queries = drawn(2, 300, num_features, 6, 6.0)
    for seed in range(4):
        found = fewshot_accuracy(features[kept], labels[kept], *queries, 25, seed)
        pool = features[kept], labels[kept]
        assert found == reference_accuracy(*pool, *queries, 25, seed, 2.0**10)


@the_same_cases
@given(st.integers(1, 30), st.integers(1, 30), st.integers(1, 4), st.floats(0.1, 2000))
def test_both_systems_solve_the_same_equations(num_images, num_features, num_classes, l2):
    rng = np.random.default_rng(num_images * 31 + num_features)
    x, labels = (
        rng.normal(size=(num_images, num_features)),
        rng.integers(0, num_classes, num_images),
    )
    targets = 2.0 * np.eye(num_classes)[labels] - 1.0
    expected = np.linalg.inv(x.T @ x + l2 * np.eye(num_features)) @ x.T @ targets
    found = ridge(x, labels, num_classes, l2)
    np.testing.assert_allclose(found, expected, rtol=1e-8, atol=1e-10)


def test_the_default_strength_is_the_official_one():
    pool, queries = drawn(1, 60, 8, 6, 4.0), drawn(2, 150, 8, 6, 4.0)
    by_strength = [fewshot_accuracy(*pool, *queries, 5, 0, l2) for l2 in (2**10, 1e-3)]
    assert fewshot_accuracy(*pool, *queries, 5, 0) == by_strength[0] != by_strength[1]


def test_examples_are_chosen_class_by_class_from_one_generator():
    labels = np.array([2, 0, 1, 0, 2, 2, 0, 1, 2, 0, 0, 5])
    rng = np.random.default_rng(3)
    expected = [rng.permutation(np.flatnonzero(labels == c))[:3] for c in (0, 1, 2, 5)]
    assert chosen_examples(labels, 3, 3).tolist() == np.concatenate(expected).tolist()


@the_same_cases
@given(st.lists(st.integers(0, 4), min_size=1, max_size=40), st.integers(1, 7), st.integers(0, 9))
def test_each_class_gives_its_shots_or_all_it_has(labels, shots, seed):
    labels = np.array(labels)
    chosen = chosen_examples(labels, shots, seed)
    assert len(set(chosen.tolist())) == len(chosen)
    for label in set(labels.tolist()):
        assert (labels[chosen] == label).sum() == min(shots, (labels == label).sum())
    assert chosen.tolist() == chosen_examples(labels, shots, seed).tolist()


def test_known_examples():
    """numpy's generator decides: should its stream ever change, published numbers change too."""
    labels = np.arange(20) % 4
    assert chosen_examples(labels, 2, 0).tolist() == [8, 16, 17, 5, 2, 10, 15, 11]


def test_separated_classes_are_told_apart():
    pool, queries = drawn(1, 100, 16, 5, 0.01), drawn(2, 100, 16, 5, 0.01)
    assert fewshot_accuracy(*pool, *queries, 5, 0) == 1.0
    assert fewshot_accuracy(*pool, *queries, 1, 0) == 1.0


def test_features_without_meaning_give_chance():
    rng = np.random.default_rng(0)
    pool = rng.normal(size=(500, 32)), rng.integers(0, 10, 500)
    queries = rng.normal(size=(2000, 32)), rng.integers(0, 10, 2000)
    assert fewshot_accuracy(*pool, *queries, 5, 0) == pytest.approx(0.1, abs=0.03)


def test_accuracy_is_a_function_of_its_arguments():
    pool, queries = drawn(1, 60, 8, 6, 4.0), drawn(2, 150, 8, 6, 4.0)
    before = [array.copy() for array in (*pool, *queries)]
    first = fewshot_accuracy(*pool, *queries, 5, 1)
    np.random.default_rng(5).normal(size=10)
    np.random.seed(1)
    assert fewshot_accuracy(*pool, *queries, 5, 1) == first
    assert all(np.array_equal(a, b) for a, b in zip(before, (*pool, *queries), strict=True))
    as_float32 = [pool[0].astype(np.float32), pool[1], queries[0].astype(np.float32), queries[1]]
    in_lists = [array.tolist() for array in as_float32]
    assert fewshot_accuracy(*as_float32, 5, 1) == fewshot_accuracy(*in_lists, 5, 1)
    assert len({fewshot_accuracy(*pool, *queries, 1, seed) for seed in range(5)}) > 1


def test_constant_features_and_missing_classes_do_no_harm():
    """A unit that is always 0, and classes that only the test or only the pool has."""
    pool, queries = drawn(1, 80, 8, 4, 0.01), drawn(2, 60, 8, 6, 0.01)
    for features in (pool[0], queries[0]):
        features[:, 3] = 0.0
    found = fewshot_accuracy(*pool, *queries, 5, 0)
    assert found == pytest.approx((queries[1] < 4).mean())
    assert fewshot_accuracy(*queries, *pool, 5, 0) == 1.0
