"""SGD with momentum, as fine-tuning uses it: the same under every engine, and it resumes."""

import pytest
import torch

from mixer_dist.config import OptimizerConfig
from mixer_dist.errors import ConfigError
from mixer_dist.train.optim import build_optimizer, create_moments
from tests.checkpoint import resume_cases
from tests.ranks import Ranks
from tests.tiny import SGD, tiny_config
from tests.train import engine_cases
from tests.train.engine_cases import Skip

ENGINES = ["ddp", "fsdp", "hsdp"]


def test_updates_are_those_of_plain_sgd():
    generator = torch.Generator().manual_seed(0)
    ours, plain = (torch.nn.Parameter(torch.ones(7)) for _ in range(2))
    config = OptimizerConfig(name="sgd", learning_rate=0.1, momentum=0.9)
    optimizer = build_optimizer([("bias", ours)], config)
    create_moments(optimizer, [ours])
    reference = torch.optim.SGD([plain], lr=0.1, momentum=0.9, foreach=False, fused=False)
    for _ in range(5):
        ours.grad = torch.randn(7, generator=generator)
        plain.grad = ours.grad.clone()
        optimizer.step()
        reference.step()
        torch.testing.assert_close(ours, plain, rtol=1e-6, atol=1e-7)


@pytest.fixture(scope="module")
def of_two(ranks: Ranks) -> dict[str, list[float]]:
    """Losses of each engine on two ranks."""
    return ranks.run(2, engine_cases.losses, ENGINES, "fp32", SGD)[0]


def test_losses_are_those_of_one_process(ranks, of_two):
    alone = ranks.run(1, engine_cases.losses, ["single"], "fp32", SGD)[0]["single"]
    assert alone[-1] < 0.9 * alone[0]
    for engine in ENGINES:
        assert of_two[engine] == pytest.approx(alone, rel=2e-6), engine


def test_a_gradient_that_is_not_finite_never_reaches_the_weights(ranks):
    for of_rank in ranks.run(2, engine_cases.skips, ENGINES, "fp32", SGD):
        for engine in ENGINES:
            assert of_rank[engine] == Skip(True, True, True, False, num_updates=4), engine


def test_a_checkpoint_goes_on_under_another_engine(ranks, tmp_path):
    run_dir, end = str(tmp_path), resume_cases.END
    expected = ranks.run(
        2, resume_cases.train_and_save, run_dir, "fsdp", "fp32", end, SGD
    )[0]  # fmt: skip
    for engine in ("fsdp", "ddp"):
        arguments = [run_dir], engine, "fp32", end, SGD
        for (resumed,) in ranks.run(2, resume_cases.restore_and_train, *arguments):
            assert resumed.is_bitwise and resumed.num_updates == resume_cases.SAVED_AT
            assert resumed.losses == pytest.approx(expected, rel=1e-5)
            assert engine != "fsdp" or resumed.losses == expected


@pytest.mark.parametrize("changes", [{"weight_decay": 0.1}, {}])
def test_what_sgd_is_not_made_for_is_refused(changes):
    engine = "fsdp" if changes else "zero2"
    with pytest.raises(ConfigError, match=r"weight_decay \(0.1\) is decoupled|zero2: take ddp"):
        tiny_config(engine, optimizer=SGD["optimizer"] | changes)
