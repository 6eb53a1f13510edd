"""Every engine takes the same steps, at any world size."""

import pytest

from tests.ranks import Ranks
from tests.train import engine_cases

SHARDED = ["ddp", "fsdp", "zero1", "zero2"]


@pytest.fixture(scope="module")
def reference(ranks: Ranks) -> list[float]:
    """Losses of one process."""
    return ranks.run(1, engine_cases.losses, "single", "fp32")[0]


def largest_difference(losses: list[float], expected: list[float]) -> float:
    return max(abs(a - b) / b for a, b in zip(losses, expected, strict=True))


@pytest.mark.parametrize("world_size", [2, 3])
@pytest.mark.parametrize("engine", SHARDED)
def test_losses_are_those_of_one_process(ranks, reference, engine, world_size):
    for of_rank in ranks.run(world_size, engine_cases.losses, engine, "fp32"):
        assert largest_difference(of_rank, reference) < 2e-6


def test_training_lowers_the_loss(reference):
    assert reference[-1] < 0.9 * reference[0]


def test_the_first_step_of_a_warmup_changes_nothing(ranks):
    """Its rate is 0: the second batch meets the initial weights, whose logits are the head bias."""
    norms = ranks.run(2, engine_cases.grad_norms, "zero2")
    assert norms[0] == norms[1]
    assert norms[0] == pytest.approx(ranks.run(1, engine_cases.grad_norms, "single")[0], rel=1e-5)


def test_bf16_is_one_arithmetic_in_every_engine(ranks):
    expected = ranks.run(2, engine_cases.losses, "ddp", "bf16")[0]
    for engine in ("fsdp", "zero1", "zero2"):
        found = ranks.run(2, engine_cases.losses, engine, "bf16")[0]
        assert largest_difference(found, expected) < 1e-4, engine


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("engine", SHARDED)
def test_a_gradient_that_is_not_finite_never_reaches_the_weights(ranks, engine, precision):
    for outcome in ranks.run(2, engine_cases.weights_around_nan, engine, precision):
        assert outcome == (True, True, [1.0, 0.0], 4)
