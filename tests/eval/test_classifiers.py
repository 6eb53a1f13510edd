"""Classifiers on features: nearest neighbours, ridge on everything, many few-shot cases at once."""

import numpy as np
import pytest
import torch
from sklearn.linear_model import Ridge
from sklearn.neighbors import KNeighborsClassifier
from torch import nn
from torch.nn import functional as F

from mixer_dist.eval import feature_set
from mixer_dist.eval.feature_set import FeaturePart, FeatureSet, LabelLists, in_memory
from mixer_dist.eval.fewshot import fewshot_accuracies, fewshot_accuracy
from mixer_dist.eval.knn import knn_is_correct
from mixer_dist.eval.linear import held_out_images, linear_accuracy
from mixer_dist.eval.score import standard_error
from mixer_dist.eval.upstream import upstream_outcomes
from tests.eval.test_fewshot import drawn

STRENGTHS = (1e-2, 1.0, 1e2, 1e4)


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch):
    """So that there are many."""
    monkeypatch.setattr(feature_set, "BLOCK_IMAGES", 32)


def cut(features: np.ndarray, labels: np.ndarray, *edges: int) -> FeatureSet:
    """The same in parts, as several ranks leave them."""
    parts = [FeaturePart(len(part), lambda part=part: part) for part in np.split(features, edges)]
    return FeatureSet(parts, LabelLists(labels, np.ones_like(labels)))


def test_all_cases_in_one_pass_are_each_case_alone():
    pool, queries = drawn(1, 200, 40, 6, 4.0), drawn(2, 150, 40, 6, 4.0)
    found = fewshot_accuracies(cut(*pool, 7, 90), cut(*queries, 33), (1, 5, 25), (0, 1, 2), 2**10)
    assert len(found) == 9
    for (shots, seed), accuracy in found.items():
        assert accuracy == fewshot_accuracy(*pool, *queries, shots, seed)


def test_blocks_do_not_depend_on_parts_and_are_dealt_whole():
    features, labels = drawn(1, 111, 3, 4)
    whole, parts = in_memory(features, labels), cut(features, labels, 1, 40, 64, 100)
    expected = [(block, rows.tolist()) for block, rows in whole.blocks()]
    assert [(block, rows.tolist()) for block, rows in parts.blocks()] == expected
    dealt = [found for rank in range(3) for found in parts.blocks(rank, 3)]
    assert [(block, rows.tolist()) for block, rows in dealt] == expected
    chosen = np.array([0, 39, 40, 63, 110])
    assert np.array_equal(parts.take(chosen), features[chosen])


@pytest.mark.parametrize(("k", "world_size"), [(1, 1), (5, 3), (500, 2)])
def test_neighbours_vote_as_in_scikit_learn(k, world_size):
    """500 neighbours of 200 images are all of them."""
    pool, queries = drawn(1, 200, 12, 5, 3.0), drawn(2, 150, 12, 5, 3.0)
    reference = KNeighborsClassifier(
        min(k, 200), metric="cosine", weights=lambda distances: np.exp(-distances / 0.1)
    ).fit(*pool)
    train, test = cut(*pool, 50), cut(*queries, 60)
    found = [knn_is_correct(train, test, k, 0.1, rank, world_size) for rank in range(world_size)]
    expected = reference.predict(queries[0]) == queries[1]
    assert torch.cat(found).tolist() == expected.tolist()
    assert 0.2 < expected.mean() < 1


def test_the_strength_is_chosen_on_held_out_images_and_fitted_on_all():
    pool, queries = drawn(1, 90, 30, 4, 6.0), drawn(2, 300, 30, 4, 6.0)
    train, test = cut(*pool, 50), cut(*queries, 60)
    found = linear_accuracy(train, test, STRENGTHS, 0.3, 0)
    is_held = held_out_images(90, 0.3, 0)
    assert is_held.sum() == 27
    white = np.c_[(pool[0] - pool[0].mean(0)) / (pool[0].std(0) + 1e-5), np.full(90, 100.0)]
    targets = 2.0 * np.eye(4)[pool[1]] - 1.0

    def accuracy(l2: float, fitted: np.ndarray, x: np.ndarray, labels: np.ndarray) -> float:
        model = Ridge(alpha=l2, fit_intercept=False).fit(white[fitted], targets[fitted])
        return float((model.predict(x).argmax(1) == labels).mean())

    expected = {l2: accuracy(l2, ~is_held, white[is_held], pool[1][is_held]) for l2 in STRENGTHS}
    assert found.held_out == expected and len(set(expected.values())) > 1
    assert found.l2 == max(expected, key=expected.get)
    asked = (queries[0] - pool[0].mean(0)) / (pool[0].std(0) + 1e-5)
    asked = np.c_[asked, np.full(300, 100.0)]
    assert found.accuracy == accuracy(found.l2, np.full(90, True), asked, queries[1])


def test_upstream_losses_are_those_of_the_head():
    features, labels = drawn(1, 70, 8, 5)
    head = nn.Linear(8, 5)
    with torch.inference_mode():
        outcomes = [*upstream_outcomes(head, cut(features, labels, 9), 5, "softmax", 0, 1)]
        logits = head(torch.from_numpy(features).float())
    losses, right = (torch.cat(part) for part in zip(*outcomes, strict=True))
    expected = F.cross_entropy(logits, torch.from_numpy(labels), reduction="none")
    torch.testing.assert_close(losses, expected)
    assert right.tolist() == (logits.argmax(1).numpy() == labels).tolist()


def test_the_standard_error_is_over_seeds_or_over_images():
    assert standard_error((0.5, 0.7), 1000) == pytest.approx(0.1)
    assert standard_error((0.5,), 100) == pytest.approx(0.05)
