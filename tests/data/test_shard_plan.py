"""Which image goes into which shard."""

import time
from dataclasses import replace

import pytest

from mixer_dist.data.image_files import ImageFile, ImageSource, LeftOut
from mixer_dist.data.image_folder import scan_images
from mixer_dist.data.shard_plan import (
    cut,
    fingerprint_plan,
    shuffle,
    split_off,
    tar_bytes,
    without,
)


def images(num_images: int) -> list[ImageFile]:
    return [ImageFile(f"a/{i}.jpg", f"a/{i}", (0,), 100_000) for i in range(num_images)]


def test_shards_are_cut_near_the_target(digit_images):
    found = scan_images(digit_images / "train").images
    largest = max(tar_bytes(image.num_bytes) for image in found)
    for target in (20_000, 500_000, 1e9):
        runs = cut(found, target)
        assert [image for run in runs for image in run] == list(found)
        sizes = [sum(tar_bytes(image.num_bytes) for image in run) for run in runs]
        assert max(sizes) <= target + largest
        assert min(sizes) >= min(target, sum(sizes)) / 2 - largest


def test_planning_takes_time_in_proportion_to_the_images():
    many = images(100_000)
    began = time.process_time()
    assert len(cut(shuffle(many, 0), 256e6)) == 40
    assert time.process_time() - began < 5


def test_no_images_make_no_shards():
    assert cut([], 1e6) == []


def test_shards_of_smaller_images_hold_more_of_them():
    assert len(cut(images(1000), 1e6, shrinkage=0.25)) == pytest.approx(
        len(cut(images(1000), 1e6)) / 4, abs=2
    )


def test_more_images_move_none_to_the_other_side():
    few, many = images(1000), images(3000)
    train, val = split_off(few, 0.1)
    more_train, more_val = split_off(many, 0.1)
    assert set(train) <= set(more_train) and set(val) <= set(more_val)
    assert sorted(train + val) == sorted(few)
    assert 70 < len(val) < 130 and 240 < len(more_val) < 360


SOURCE = ImageSource("root", ("a",), tuple(images(3)))


@pytest.mark.parametrize(
    "other",
    [
        replace(SOURCE, classes=("b",)),
        replace(SOURCE, images=SOURCE.images[:2]),
        replace(SOURCE, images=(*SOURCE.images[:2], SOURCE.images[2]._replace(num_bytes=1))),
        replace(SOURCE, images=(*SOURCE.images[:2], SOURCE.images[2]._replace(modified_ns=1))),
        without(SOURCE, [LeftOut("a/2.jpg", "missing", "")]),
    ],
)
def test_another_source_is_another_plan(other):
    assert fingerprint_plan(other, {"seed": 0}) != fingerprint_plan(SOURCE, {"seed": 0})


def test_the_plan_depends_on_settings_and_not_on_the_place():
    moved = replace(SOURCE, root="elsewhere", num_ignored=7)
    assert fingerprint_plan(moved, {"seed": 0}) == fingerprint_plan(SOURCE, {"seed": 0})
    assert fingerprint_plan(SOURCE, {"seed": 1}) != fingerprint_plan(SOURCE, {"seed": 0})
