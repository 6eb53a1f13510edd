"""A spike is what lies far above the last good values, however wild one of those was."""

import torch

from mixer_dist.train.spikes import UpdateGuard, recent_values, robust_z

CPU = torch.device("cpu")
CALM = [1.0, 1.1, 0.9, 1.2, 0.8, 1.0, 1.1, 0.9]


def skips(norms: list[float], before: list[float] = CALM, threshold: float = 10) -> list[int]:
    guard = UpdateGuard(recent_values(before, 8, CPU), threshold)
    return [int(guard(torch.tensor(norm))) for norm in norms]


def test_the_z_score_is_a_sigma_of_normal_values():
    values = torch.randn(100_000, generator=torch.Generator().manual_seed(0)) * 3 + 7
    assert abs(float(robust_z(torch.tensor(7 + 4 * 3.0), values)) - 4) < 0.1


def test_one_spike_is_skipped_and_does_not_hide_the_next():
    assert skips([1.0, 9.0, 1.1, 9.0, 1.0]) == [0, 1, 0, 1, 0]


def test_what_is_not_finite_is_skipped_and_left_out_of_the_window():
    assert skips([float("nan"), float("inf"), 1.0, 9.0]) == [1, 1, 0, 1]


def test_nothing_spikes_before_the_window_is_full():
    assert skips([9.0, 1.0], before=CALM[:6]) == [0, 0]
    assert skips([1.0, 1.1, 9.0], before=CALM[:6]) == [0, 0, 1]


def test_a_guard_goes_on_from_the_values_before():
    norms = [1.0, 1.3, 0.7, 9.0, 1.0, 1.2, 9.0, 1.0]
    kept = [*CALM, 1.0, 1.3, 0.7, 1.0]
    assert skips(norms)[5:] == skips(norms[5:], before=kept)
