"""An evaluation gives the same result on any number of ranks."""

import json
from pathlib import Path

import numpy as np
import pytest

from mixer_dist import cli, distributed
from mixer_dist.config import load_config
from mixer_dist.data.manifest import load_dataset
from mixer_dist.eval.features import dataset_features
from mixer_dist.eval.subject import judged
from mixer_dist.run_dir import RunDir
from mixer_dist.storage import Storage


def arguments(digits: Path, run_dir: Path) -> list[str]:
    """The quickstart's task on a small model; its training images are those of the test split."""
    return [
        "configs/quickstart.yaml", f"run_dir={run_dir}", "model.hidden_dim=32",
        f"evals.0.train={digits}/train/manifest.json", f"evals.0.test={digits}/test/manifest.json",
    ]  # fmt: skip


def evaluate(arguments: list[str]) -> int:
    """The verb, on one rank."""
    return cli.main(["evaluate", *arguments, "--task", "digits", "--checkpoint", "untrained"])


def features(arguments: list[str]) -> tuple[bytes, list[int]]:
    """What a rank gets of the test split: features as bytes, and labels."""
    config = load_config(arguments[0], arguments[1:])
    task, storage = config.evals[0], Storage()
    with (
        distributed.connected(timeout_s=60),
        judged(config, storage, RunDir(config.run_dir), "untrained") as subject,
    ):
        dataset = load_dataset(storage, [(task.test, 1)])
        found = dataset_features(subject, config, task, dataset, storage)
    rows = np.concatenate([features for _, features in found.blocks()])
    return rows.tobytes(), found.labels.single().tolist()


@pytest.fixture(scope="module")
def alone(ranks, digits, tmp_path_factory) -> dict:
    """The result on one rank."""
    run_dir = tmp_path_factory.mktemp("alone")
    assert ranks.run(1, evaluate, arguments(digits, run_dir)) == [0]
    return result(run_dir)


def result(run_dir: Path) -> dict:
    found = json.loads((run_dir / "evals/digits/step-00000000.json").read_text())
    return {key: value for key, value in found.items() if key not in ("time", "duration_s")}


@pytest.mark.parametrize("world_size", [2, 3])
def test_the_accuracy_does_not_depend_on_the_ranks(ranks, digits, tmp_path, alone, world_size):
    assert ranks.run(world_size, evaluate, arguments(digits, tmp_path)) == [0] * world_size
    assert result(tmp_path) == alone
    assert 0.1 < alone["accuracy"] < 1


def test_features_are_bitwise_the_same_on_every_rank(ranks, digits, tmp_path):
    """296 images in batches of 128: the fourth rank has none."""
    [expected] = ranks.run(1, features, arguments(digits, tmp_path / "1"))
    assert ranks.run(4, features, arguments(digits, tmp_path / "4")) == [expected] * 4
