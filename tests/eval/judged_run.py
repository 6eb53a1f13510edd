"""A run with one checkpoint and small drawn datasets, for tasks to judge."""

import io
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from mixer_dist.checkpoint.convert import import_weights
from mixer_dist.config import RunConfig
from mixer_dist.models.npz import save_npz
from mixer_dist.run_dir import RunDir
from mixer_dist.storage import Storage
from mixer_dist.train.build import build_model
from tests.data.handmade import Sample, stream_config, write_dataset

CLASSES = ("ant", "bee", "cat")
NUM_TRAIN, NUM_TEST = 60, 47  # a prime, which no number of ranks divides


def image(label: int, rng: np.random.Generator) -> bytes:
    """Noise around the shade of a class."""
    pixels = np.clip(rng.normal(60 + 50 * label, 45, (8, 8, 3)), 0, 255).astype(np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


def samples(labels: list[int], seed: int = 0) -> list[Sample]:
    """An image of each label."""
    rng = np.random.default_rng(seed)
    drawn = [(label, image(label, rng)) for label in labels]
    return [(f"{n:04d}", {"png": png, "cls": b"%d" % c}) for n, (c, png) in enumerate(drawn)]


def split(folder: Path, labels: list[int], seed: int, classes: tuple[str, ...] = CLASSES) -> str:
    """A dataset in two shards; its manifest."""
    drawn = samples(labels, seed)
    return write_dataset(folder, [drawn[: len(drawn) // 2], drawn[len(drawn) // 2 :]], classes)


def datasets(folder: Path) -> dict[str, str]:
    """Manifests of both splits."""
    return {
        "train": split(folder / "train", [n % 3 for n in range(NUM_TRAIN)], 1),
        "test": split(folder / "test", [n % 3 for n in range(NUM_TEST)], 2),
    }


def run_of(folder: Path, *tasks: dict[str, Any], **changes: Any) -> RunConfig:
    """A run of a tiny model, its tasks given without what all have in common."""
    splits = datasets(folder / "data")
    evals = [{"name": task["kind"], "resize": 8} | splits | task for task in tasks]
    for task in evals:
        if task["kind"] == "upstream":
            del task["train"]
    given = {"run_dir": str(folder / "run"), "model__num_classes": 3, "evals": evals}
    return stream_config(splits["train"], **(given | changes))


def write_checkpoint(config: RunConfig, scale: float = 1.0) -> str:
    """A checkpoint at step 0 with drawn weights; its URL."""
    model, generator = build_model(config), torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.2 * torch.randn(parameter.shape, generator=generator)).mul_(scale)
    file = Path(config.run_dir).with_name("weights.npz")
    save_npz(model, str(file))
    url = RunDir(config.run_dir).checkpoint(0)
    import_weights(Storage(), str(file), url)
    return url
