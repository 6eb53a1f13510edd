"""Runs that are killed while they save go on from a whole checkpoint: benchmarks/save_kills.py."""

import pytest

from benchmarks.kill_points import FINISHED, Kill
from benchmarks.kill_trials import NOTHING, TORN, WHOLE, Place, Series
from mixer_dist.storage import Storage


@pytest.fixture
def disk(digits, tmp_path) -> Place:
    manifest = digits / "train" / "manifest.json"
    return Place("disk", str(tmp_path / "runs"), {}, Storage(), manifest, tmp_path)


def kill_at(point: str, rank: int, save: int, *, is_of_all: bool = False) -> Kill:
    return Kill(point, rank, save, delay_s=0, is_of_all=is_of_all)


def test_a_run_killed_while_it_saves_loses_no_more_than_that_save(ranks, disk):
    run = Series(disk, "run", total_steps=12)
    for world, kill, left, newest in [
        (("fsdp", 2), kill_at("piece file half written", rank=1, save=1), TORN, 0),
        (("zero2", 2), kill_at("manifest half written", rank=0, save=2, is_of_all=True), TORN, 3),
        (("ddp", 1), kill_at("manifest written", rank=0, save=1), WHOLE, 6),
    ]:
        trial = run.train(ranks, world, kill)
        assert trial.was_killed and not trial.problems
        assert (trial.last_save, run.newest) == (left, newest)
    last = run.train(ranks, ("single", 1))
    assert last.endings == (FINISHED,) and not last.problems
    assert [line["step"] for line in run.lines()] == list(range(1, 13))


def test_an_upload_that_is_cut_off_is_no_checkpoint(ranks, swift, digits, tmp_path):
    options, bucket = {"s3://": swift.options()}, swift.new_bucket()
    manifest = digits / "train" / "manifest.json"
    place = Place("Swift", bucket, options, swift.storage(), manifest, tmp_path)
    run = Series(place, "run")
    for point, left in [("piece file half written", NOTHING), ("manifest half written", TORN)]:
        trial = run.train(ranks, ("ddp", 1), kill_at(point, rank=0, save=1))
        assert trial.was_killed and not trial.problems
        assert (trial.last_save, run.newest) == (left, 0)
