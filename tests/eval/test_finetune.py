"""Fine-tuning as an evaluation task: it chooses a learning rate, resumes, and leaves no weights."""

import json
import signal
from pathlib import Path

import pytest
import torch

from mixer_dist.config import FinetuneConfig, load_config
from mixer_dist.errors import ConfigError
from mixer_dist.eval.finetune_config import finetune_config
from mixer_dist.metrics import read_metrics
from mixer_dist.models.mixer import MlpMixer
from mixer_dist.models.transfer import transfer
from mixer_dist.run_dir import RunDir
from mixer_dist.storage import Storage
from mixer_dist.train.build import empty_model
from tests.eval import finetune_cases
from tests.ranks import receive

STEPS = 60
RATES = [0.01, 0.3]
SIZES = {
    "image_size": 16, "patch_size": 4, "hidden_dim": 32, "num_blocks": 2, "tokens_mlp_dim": 12,
    "channels_mlp_dim": 40, "num_classes": 7, "head_bias": -2.0,
}  # fmt: skip


def arguments(digits: Path, run_dir: Path, **changes: object) -> list[str]:
    """A model of 16 px images of 7 classes, tuned on 32 px images of 10."""
    task = {
        "name": "tuned", "kind": "finetune", "train": f"{digits}/train/manifest.json",
        "dev": f"{digits}/test/manifest.json", "test": f"{digits}/test/manifest.json",
        "learning_rates": RATES, "seeds": [3], "total_steps": STEPS, "warmup_steps": 2,
        "global_batch_size": 16, "image_size": 32, "checkpoint_steps": 10,
    } | changes  # fmt: skip
    return [
        "configs/quickstart.yaml", f"run_dir={run_dir}", "engine.name=zero2",
        f"evals=[{json.dumps(task)}]",
        *[f"model.{name}={size}" for name, size in SIZES.items()],
    ]  # fmt: skip


def result(run_dir: Path) -> dict:
    found = json.loads((run_dir / "evals/tuned/step-00000000.json").read_text())
    return {key: found[key] for key in ("accuracy", "per_seed", "learning_rate", "dev_accuracies")}


def losses(run_dir: Path) -> dict[str, list[float]]:
    """Of each of the task's runs."""
    return {
        found.name: [line["loss"] for line in read_metrics(Storage(), RunDir(str(found)))]
        for found in run_dir.glob("evals/tuned/runs/*/*")
    }


@pytest.fixture(scope="module")
def alone(ranks, digits, tmp_path_factory) -> Path:
    """The run directory after the task was done by one rank without interruption."""
    run_dir = tmp_path_factory.mktemp("alone")
    assert ranks.run(1, finetune_cases.evaluate, arguments(digits, run_dir)) == [0]
    return run_dir


def test_the_rate_that_is_best_on_dev_trains_the_run_that_counts(alone):
    found = result(alone)
    best = max(RATES, key=lambda rate: found["dev_accuracies"][f"{rate:g}"])
    assert found["learning_rate"] == best
    assert found["accuracy"] == found["per_seed"][0] > 0.15
    assert sorted(losses(alone)) == ["dev-0.01", "dev-0.3", "test-seed-3"]
    [outcome] = alone.glob("evals/tuned/runs/*/test-seed-3/outcome.json")
    assert json.loads(outcome.read_text())["accuracy"] == found["accuracy"]
    assert not list(alone.glob("evals/**/*.safetensors"))


def test_two_ranks_give_the_same_curves(ranks, digits, tmp_path, alone):
    assert ranks.run(2, finetune_cases.evaluate, arguments(digits, tmp_path)) == [0, 0]
    expected = losses(alone)
    for name, found in losses(tmp_path).items():
        assert found == pytest.approx(expected[name], rel=1e-5), name


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_a_task_that_was_stopped_ends_as_if_it_had_not_been(ranks, digits, tmp_path, alone, number):
    given = arguments(digits, tmp_path)
    process, pipe = ranks.start(1, 0, 1, finetune_cases.signalled_after, given, 25, int(number))
    if number == signal.SIGTERM:
        assert receive(process, pipe) == ("value", 75)
    process.join(120)
    assert not (tmp_path / "evals/tuned/step-00000000.json").exists()
    assert ranks.run(1, finetune_cases.evaluate, given) == [0]
    assert losses(tmp_path) == losses(alone)
    assert result(tmp_path) == result(alone)


def tuned_config(tmp_path: Path, digits: Path, **changes: object):
    """The configuration of the run that counts."""
    given = arguments(digits, tmp_path, **changes)
    config = load_config(given[0], given[1:])
    task = config.evals[0]
    assert isinstance(task, FinetuneConfig)
    return finetune_config(config, task, str(tmp_path), None, [task.train], 10, 0.03, seed=0)


def test_an_enlarged_model_begins_as_the_mean_of_its_quadrants(digits, tmp_path):
    """PAPER: appendix C; the head is kept here, since a new one gives zeros."""
    config = tuned_config(tmp_path, digits)
    assert (config.model.image_size, config.model.tokens_mlp_dim) == (32, 4 * 12)
    model = empty_model(config.model.model_copy(update={"num_classes": 7}))
    small = MlpMixer(**SIZES).double()
    with torch.no_grad():
        for parameter in small.parameters():
            parameter.normal_(std=0.2)
    model.load_state_dict(transfer(small.state_dict(), model).tensors, assign=True)
    images = torch.randn(2, 3, 32, 32, dtype=torch.float64)
    quadrants = [images[..., i : i + 16, j : j + 16] for i in (0, 16) for j in (0, 16)]
    with torch.no_grad():
        expected = torch.stack([small(each) for each in quadrants]).mean(0)
        assert (model.double()(images) - expected).abs().max() < 1e-6  # transferred in fp32


def test_fine_tuning_is_the_papers(digits, tmp_path):
    config = tuned_config(tmp_path, digits, decay="staircase")
    assert config.optimizer.name == "sgd" and config.optimizer.momentum == 0.9
    assert (config.optimizer.weight_decay, config.optimizer.max_grad_norm) == (0, 1)
    assert (config.loss, config.init_head, config.model.head_bias) == ("softmax", "new", 0)
    assert config.augment.resize == 37 and config.augment.mixup == 0
    assert config.engine.name == "fsdp"  # ZeRO has no SGD


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"image_size": 24}, "must be a multiple of the pretrained model's"),
        ({"dev": None}, "2 learning_rates need `dev`"),
        ({"train_resize": 31}, "must be at least model.image_size"),
    ],
)
def test_what_cannot_be_trained_is_refused(digits, tmp_path, changes, message):
    with pytest.raises((ConfigError, ValueError), match=message):
        tuned_config(tmp_path, digits, **changes)
