"""micro_batch_size: auto finds the largest that fits, and halves it where memory no longer does."""

import pytest

from mixer_dist.train.micro_batch import halved, largest_fitting
from tests.train import micro_batch_cases


@pytest.mark.parametrize("largest", [2, 6, 64, 86])
@pytest.mark.parametrize("limit", [0, 1, 2, 3, 8, 13, 62, 63, 64, 1000])
def test_the_largest_even_size_that_fits_is_found(largest, limit):
    tried = []

    def fits(size):
        tried.append(size)
        return size <= limit

    assert largest_fitting(fits, largest) == min(largest, limit // 2 * 2)
    assert all(size % 2 == 0 and 2 <= size <= largest for size in tried)
    assert len(tried) == len(set(tried)) < 14


def test_half_of_an_even_size_is_even():
    assert [halved(size) for size in (2, 4, 6, 10, 64)] == [2, 2, 2, 4, 32]


@pytest.mark.parametrize("engine", ["fsdp", "zero2"])
def test_auto_is_what_memory_suffices_for_on_all_ranks(ranks, engine):
    assert ranks.run(2, micro_batch_cases.found_size, engine, 7) == [6, 6]
    assert ranks.run(2, micro_batch_cases.found_size, engine, 1000) == [10, 10]  # of 20 images


@pytest.mark.parametrize("engine", ["hsdp", "zero1"])
def test_a_step_that_runs_out_of_memory_is_taken_again_in_halves(ranks, engine):
    expected = ranks.run(2, micro_batch_cases.undisturbed, engine)[0]
    for outcome in ranks.run(2, micro_batch_cases.shrunken, engine, 3):
        assert outcome.losses == pytest.approx(expected, rel=1e-6)
        assert outcome.num_updates == len(expected)
        assert outcome.sizes == {2}  # 10, then 4, then 2
        assert outcome.forward_s > 0


@pytest.mark.parametrize("engine", ["fsdp", "ddp"])
def test_a_rank_that_runs_out_of_memory_alone_ends_the_run_with_its_name(ranks, engine):
    with pytest.raises(AssertionError) as failure:
        ranks.run(2, micro_batch_cases.alone_out_of_memory, engine)
    assert "rank 1 ran out of memory and other ranks did not, within 1 s" in str(failure.value)


def test_a_limit_of_the_operating_system_changes_the_micro_batches_and_not_the_losses(ranks):
    expected = ranks.run(1, micro_batch_cases.losses_of_large)[0]
    size, losses = ranks.run(1, micro_batch_cases.auto_where_the_system_refuses_more)[0]
    assert 2 <= size < 48
    assert losses == pytest.approx(expected, rel=1e-5)
    shrunken = ranks.run(1, micro_batch_cases.shrunken_where_the_system_refuses_more)[0]
    assert shrunken.losses == pytest.approx(expected, rel=1e-5)
    assert min(shrunken.sizes) < max(shrunken.sizes) == 48


def test_an_update_is_never_made_twice(ranks):
    said = ranks.run(1, micro_batch_cases.out_of_memory_in_update, "single")[0]
    assert said.startswith("MixerError: step 1 ran out of memory with micro-batches of 4 images")


def test_not_even_two_images_fit(ranks):
    with pytest.raises(AssertionError, match="not even 2 images"):
        ranks.run(1, micro_batch_cases.found_size, "single", 1)
