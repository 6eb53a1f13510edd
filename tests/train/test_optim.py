"""Learning rates and updates are the paper's, as big_vision computes them."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from mixer_dist.config import OptimizerConfig
from mixer_dist.models.mixer import MlpMixer
from mixer_dist.train.optim import (
    build_optimizer,
    create_moments,
    learning_rate,
    parameter_groups,
    scheduled_rate,
)

PAPER = {"peak": 1e-3, "warmup_steps": 10_000, "total_steps": 1_025_391}


@pytest.mark.parametrize(
    ("step", "decay", "end", "rate"),
    [
        (0, "linear", 0.0, 0.0),
        (1, "linear", 0.0, 1e-7),
        (5_000, "linear", 0.0, 5e-4),
        (10_000, "linear", 0.0, 1e-3),
        (517_695, "linear", 0.0, 5.0000049242e-4),
        (1_025_390, "linear", 0.0, 1e-3 / 1_015_391),
        (1_025_391, "linear", 0.0, 0.0),
        (2_000_000, "linear", 0.0, 0.0),
        (0, "cosine", 0.0, 0.0),
        (10_000, "cosine", 0.0, 1e-3),
        (10_000 + 1_015_391 / 4, "cosine", 0.0, 1e-3 * (2 + math.sqrt(2)) / 4),
        (10_000 + 1_015_391 / 2, "cosine", 0.0, 5e-4),
        (1_025_391, "cosine", 0.0, 0.0),
        (5_000, "linear", 1e-5, 5e-4),
        (307_617, "staircase", 0.0, 1e-3),
        (307_618, "staircase", 0.0, 1e-4),
        (1_025_390, "staircase", 0.0, 1e-6),
        (1_025_390, "staircase", 1e-5, 1e-5),
        (5_000, "staircase", 0.0, 5e-4),
        (1_025_391, "linear", 1e-5, 1e-5),
        (1_025_391, "cosine", 1e-5, 1e-5),
        (10_000 + 1_015_391 / 2, "linear", 1e-5, 5.05e-4),
    ],
)
def test_the_papers_schedule(step, decay, end, rate):
    found = learning_rate(step, **PAPER, decay=decay, end=end)
    assert found == pytest.approx(rate, rel=1e-9, abs=1e-18)


@pytest.mark.parametrize("decay", ["linear", "cosine"])
def test_without_warmup_the_first_step_has_the_peak(decay):
    rates = [
        learning_rate(step, peak=2.0, warmup_steps=0, total_steps=4, decay=decay, end=1.0)
        for step in range(5)
    ]
    assert rates[0] == 2.0 and rates[4] == pytest.approx(1.0)
    assert rates == sorted(rates, reverse=True) and rates[2] == pytest.approx(1.5)


@settings(derandomize=True, database=None, deadline=None, max_examples=60)
@given(st.integers(1, 500), st.floats(0, 1), st.sampled_from(["linear", "cosine"]), st.floats(0, 1))
def test_rates_rise_to_the_peak_and_then_only_fall(total, warmup_share, decay, end):
    warmup = int(warmup_share * (total - 1))
    rates = [
        learning_rate(s, peak=1.0, warmup_steps=warmup, total_steps=total, decay=decay, end=end)
        for s in range(total + 1)
    ]
    assert rates[warmup] == pytest.approx(1.0) and rates[total] == pytest.approx(end)
    assert (np.diff(rates[: warmup + 1]) >= 0).all() and (np.diff(rates[warmup:]) <= 1e-12).all()
    if warmup:
        assert rates[:warmup] == pytest.approx([s / warmup for s in range(warmup)])


def test_a_configuration_gives_its_schedule():
    config = OptimizerConfig(
        learning_rate=3e-3, warmup_steps=20, decay="cosine", end_learning_rate=1e-4
    )
    arguments = {"peak": 3e-3, "warmup_steps": 20, "total_steps": 90, "decay": "cosine"}
    for step in (0, 7, 20, 55, 89):
        assert scheduled_rate(step, 90, config) == learning_rate(step, **arguments, end=1e-4)


def tiny_mixer() -> MlpMixer:
    torch.manual_seed(0)
    sizes = {"patch_size": 4, "hidden_dim": 6, "num_blocks": 2, "tokens_mlp_dim": 3}
    return MlpMixer(8, **sizes, channels_mlp_dim=5, num_classes=4)


def test_only_weight_matrices_decay():
    """The stem, every MLP and the head (`.*/kernel`); neither biases nor LayerNorms."""
    model = tiny_mixer()
    decayed, others = parameter_groups(model.named_parameters(), 0.1)
    assert (decayed["weight_decay"], others["weight_decay"]) == (0.1, 0.0)
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    in_groups = [[names[id(p)] for p in group["params"]] for group in (decayed, others)]
    norms = {
        f"{module}.{name}"
        for module, part in model.named_modules()
        if isinstance(part, nn.LayerNorm)
        for name, _ in part.named_parameters()
    }
    assert len(norms) == 2 * (2 * 2 + 1)
    kernels = {name for name in names.values() if name.endswith("weight") and name not in norms}
    assert len(kernels) == 1 + 2 * 4 + 1
    assert set(in_groups[0]) == kernels
    assert sorted(in_groups[0] + in_groups[1]) == sorted(names.values())


class OfficialAdam:
    """scale_by_adam, add_decayed_weights, scale by the schedule: optax as big_vision chains it.

    The decay is `schedule * weight_decay_bv * p`, not multiplied by the learning rate.
    """

    def __init__(self, values: np.ndarray, peak: float, decay_bv: float) -> None:
        self.values, self.peak, self.decay_bv = values.astype(np.float64), peak, decay_bv
        self.first, self.second, self.count = np.zeros_like(self.values), 0.0, 0

    def step(self, gradient: np.ndarray, schedule: float) -> None:
        self.count += 1
        self.first = 0.9 * self.first + 0.1 * gradient
        self.second = 0.999 * self.second + 0.001 * gradient**2
        first = self.first / (1 - 0.9**self.count)
        second = self.second / (1 - 0.999**self.count)
        update = self.peak * first / (np.sqrt(second) + 1e-8)
        self.values = self.values - schedule * (update + self.decay_bv * self.values)


def test_updates_are_the_official_ones():
    """Weight decay 0.1 at rate 1e-3 is big_vision's 1e-4, on kernels alone; over twelve steps."""
    config = OptimizerConfig(learning_rate=1e-3, warmup_steps=5, weight_decay=0.1)
    model = tiny_mixer()
    for parameter in model.parameters():
        nn.init.normal_(parameter)
    optimizer = build_optimizer(model.named_parameters(), config)
    is_kernel = {name: p.ndim > 1 for name, p in model.named_parameters()}
    official = {
        name: OfficialAdam(p.detach().numpy(), 1e-3, 1e-4 if is_kernel[name] else 0.0)
        for name, p in model.named_parameters()
    }
    start = {name: p.detach().clone() for name, p in model.named_parameters()}
    rng = np.random.default_rng(0)
    for step in range(12):
        rate = scheduled_rate(step, 100, config)
        for group in optimizer.param_groups:
            group["lr"] = rate
        for name, parameter in model.named_parameters():
            gradient = rng.normal(size=parameter.shape).astype(np.float32) * 10.0 ** (step % 3 - 2)
            parameter.grad = torch.from_numpy(gradient)
            official[name].step(gradient, rate / 1e-3)
        optimizer.step()
        for name, parameter in model.named_parameters():
            assert torch.equal(parameter, start[name]) == (step == 0)
            np.testing.assert_allclose(
                parameter.detach().numpy(), official[name].values, rtol=0, atol=1e-6
            )


def test_moments_made_beforehand_are_those_of_a_first_step():
    """An engine restores into them before it has taken any step."""
    config = OptimizerConfig(learning_rate=1e-3, weight_decay=0.1)
    trained = []
    for is_made_beforehand in (False, True):
        model = tiny_mixer()
        optimizer = build_optimizer(model.named_parameters(), config)
        if is_made_beforehand:
            create_moments(optimizer, model.parameters())
        for _ in range(3):
            for parameter in model.parameters():
                parameter.grad = torch.ones_like(parameter)
            optimizer.step()
        state = optimizer.state[next(model.parameters())]
        assert {name: value.dtype for name, value in state.items()} == {
            "step": torch.float32, "exp_avg": torch.float32, "exp_avg_sq": torch.float32,
        }  # fmt: skip
        assert state["step"] == 3 and not state["exp_avg"].requires_grad
        trained.append(list(model.parameters()))
    assert all(torch.equal(a, b) for a, b in zip(*trained, strict=True))
