"""A checksum sees every flipped bit, and the majority tells whose it was."""

import pytest
import torch

from mixer_dist.train.replicas import Difference, checksum, differing, first_difference


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_flipped_bit_anywhere_changes_the_sum(dtype):
    tensor = torch.randn(37, 5, generator=torch.Generator().manual_seed(0)).to(dtype)
    words = tensor.view(-1).view(torch.int16)
    before = checksum(tensor)
    for place in range(len(words)):
        for bit in range(15):
            words[place] ^= 1 << bit
            assert checksum(tensor) != before
            words[place] ^= 1 << bit
    assert checksum(tensor) == before


def test_exchanged_values_change_the_sum():
    assert checksum(torch.tensor([1.0, 2.0, 3.0])) != checksum(torch.tensor([2.0, 1.0, 3.0]))


def test_the_majority_is_right_and_of_two_nobody_knows():
    assert differing([(0, 7), (0, 7), (0, 8), (0, 7)]) == (2,)
    assert differing([(0, 7), (1, 5), (0, 8), (1, 5)]) == (0, 2)
    assert differing([(0, 7), (1, 5), (2, 8)]) == ()


def test_the_first_tensor_that_differs_is_named():
    right, wrong = [["a", 1], ["b", 2], ["c", 3]], [["a", 1], ["b", 9], ["c", 8]]
    assert first_difference([(0, right), (0, right), (0, wrong)]) == Difference((2,), "b")
