"""Every engine takes the same steps, at any world size."""

import shutil

import pytest
import torch

from mixer_dist.models.mixer import build_mixer
from mixer_dist.train.torch_engine import units
from tests.ranks import Ranks
from tests.train import engine_cases
from tests.train.engine_cases import Skip

SHARDED = ["ddp", "fsdp", "hsdp", "zero1", "zero2", "zero3"]


@pytest.fixture(scope="module")
def reference(ranks: Ranks) -> list[float]:
    """Losses of one process."""
    return ranks.run(1, engine_cases.losses, ["single"], "fp32")[0]["single"]


def largest_difference(losses: list[float], expected: list[float]) -> float:
    return max(abs(a - b) / b for a, b in zip(losses, expected, strict=True))


@pytest.mark.parametrize("world_size", [2, 3])
def test_losses_are_those_of_one_process(ranks, reference, world_size):
    for of_rank in ranks.run(world_size, engine_cases.losses, SHARDED, "fp32"):
        worst = {name: largest_difference(of_rank[name], reference) for name in SHARDED}
        assert max(worst.values()) < 2e-6, worst


def test_training_lowers_the_loss(reference):
    assert reference[-1] < 0.9 * reference[0]


def test_the_first_step_of_a_warmup_changes_nothing(ranks):
    """Its rate is 0: the second batch meets the initial weights, whose logits are the head bias."""
    norms = ranks.run(2, engine_cases.grad_norms, "zero2")
    assert norms[0] == norms[1]
    assert norms[0] == pytest.approx(ranks.run(1, engine_cases.grad_norms, "single")[0], rel=1e-5)


def test_bf16_is_one_arithmetic_in_every_engine(ranks):
    found = ranks.run(2, engine_cases.losses, SHARDED, "bf16")[0]
    worst = {name: largest_difference(found[name], found["ddp"]) for name in SHARDED}
    # Where weights lie in memory may decide on the product's kernel, so on rounding: bf16 has 4e-3.
    assert max(worst.values()) < 5e-4, worst


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_gradient_that_is_not_finite_never_reaches_the_weights(ranks, precision):
    for of_rank in ranks.run(2, engine_cases.skips, SHARDED, precision):
        for engine in SHARDED:
            assert of_rank[engine] == Skip(True, True, True, False, num_updates=4), engine


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_an_update_that_the_guard_stops_changes_nothing(ranks, precision):
    for of_rank in ranks.run(2, engine_cases.guarded, SHARDED, precision):
        for engine in SHARDED:
            assert of_rank[engine] == Skip(True, True, True, False, num_updates=4), engine


def test_blocks_that_are_computed_again_give_the_same_losses(ranks):
    for of_rank in ranks.run(2, engine_cases.recomputed_losses, ("fsdp", "zero1", "zero3")):
        for engine, (plain, again) in of_rank.items():
            assert again == plain, engine


def test_small_blocks_make_one_unit_and_large_ones_each_their_own():
    def of(variant: str) -> list[int]:
        with torch.device("meta"):
            return [len(unit) for unit in units(build_mixer(variant, num_classes=10))]

    assert of("S/16") == [5, 3, 1]  # the last is all that is in no block
    assert of("B/16") == [3, 3, 3, 3, 1]
    assert of("H/14") == [1] * 33


@pytest.mark.parametrize(
    ("engine", "world_size"),
    [*((engine, size) for engine in ("ddp", "fsdp", "zero3") for size in (2, 3)), ("hsdp", 4)],
)
def test_the_gradient_norm_is_that_of_one_process(ranks, engine, world_size):
    expected = ranks.run(1, engine_cases.grad_norms, "single")[0]
    for norms in ranks.run(world_size, engine_cases.grad_norms, engine):
        assert norms == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("engine", ["ddp", "fsdp", "hsdp"])
def test_how_many_blocks_make_a_unit_changes_no_loss(ranks, engine):
    for of_rank in ranks.run(2, engine_cases.losses_by_unit, engine):
        assert len({tuple(losses) for losses in of_rank.values()}) == 1, of_rank


@pytest.mark.skipif(shutil.which("g++") is None, reason="the compiler of CPU kernels needs g++")
def test_compiled_blocks_give_the_losses_of_eager_ones(ranks):
    eager, compiled, num_graphs, breaks = ranks.run(1, engine_cases.compiled_losses, "single")[0]
    assert compiled == pytest.approx(eager, rel=1e-5)
    assert num_graphs > 0 and not breaks
