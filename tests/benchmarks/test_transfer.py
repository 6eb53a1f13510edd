"""What the benchmark of transfer compares with, and what it draws its images from."""

import csv
from pathlib import Path

import pytest

from benchmarks.image_lists import write_list
from benchmarks.raw_pixels import score_pixels
from benchmarks.transfer import chosen_classes
from mixer_dist.config import KnnConfig, LinearConfig
from mixer_dist.errors import ConfigError, MissingError
from tests.tiny import tiny_config


@pytest.fixture
def images(tmp_path: Path) -> Path:
    for path in (
        "train/a/2.jpg",
        "train/a/1.jpg",
        "train/b/3.jpg",
        "train/c/4.jpg",
        "test/a/5.jpg",
        "test/b/6.jpg",
        "test/c/7.jpg",
    ):
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).touch()
    return tmp_path


def test_the_last_two_classes_are_held_out_unless_others_are_named(images):
    assert chosen_classes(images, None) == ["b", "c"]
    assert chosen_classes(images, ["a"]) == ["a"]
    with pytest.raises(ConfigError, match="--held-out d: expected some of a, b, c"):
        chosen_classes(images, ["d"])


def test_what_is_wrong_with_a_folder_is_said(images):
    with pytest.raises(MissingError, match=r"nowhere/train holds no class folders"):
        chosen_classes(images / "nowhere", None)
    (images / "test" / "d").mkdir()
    with pytest.raises(ConfigError, match=r"each class in train and in test, not so d"):
        chosen_classes(images, None)


def test_a_list_has_the_first_images_of_each_class(images, tmp_path):
    path = write_list(tmp_path / "lists" / "few.csv", images / "train", ["a", "b"], per_class=1)
    rows = list(csv.reader(path.open()))
    assert rows == [
        ["path", "label"],
        [str(images / "train/a/1.jpg"), "a"],
        [str(images / "train/b/3.jpg"), "b"],
    ]


def test_raw_pixels_of_digits_are_as_good_as_they_are_known_to_be(digits, tmp_path):
    config = tiny_config("single", run_dir=str(tmp_path / "run"))
    both = {split: str(digits / split / "manifest.json") for split in ("train", "test")}
    tasks = [
        KnnConfig(name="knn", kind="knn", k=3, resize=16, **both),
        LinearConfig(name="linear", kind="linear", resize=16, **both),
    ]
    found = score_pixels(config, tasks)
    assert found["knn"].accuracy > 0.96
    assert 0.90 < found["linear"].accuracy < found["knn"].accuracy
    assert 0 < found["knn"].standard_error < 0.02
    assert not list((tmp_path / "run").glob("evals/*/step-*.json"))  # no result of a checkpoint
