"""The datasets of a transfer: pretrained on, transferred to; and the tasks there."""

import csv
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from data_tools import sample_data, shard
from mixer_dist.errors import MissingError, MixerError

SIZE_PX = 32
TARGETS = {"others": "the held-out classes", "digits": "handwritten digits"}
NUM_TARGET_IMAGES = 1000  # of the held-out classes, as in VTAB-1k
DEV_FRACTION = 0.2
FEWSHOT_SEEDS = 10
FINETUNE_STEPS, FINETUNE_BATCH = 50, 64
LEARNING_RATES = (0.01, 0.03)


def class_names(images: Path) -> list[str]:
    """Those of an image folder that holds train and test; MissingError."""
    if missing := [split for split in ("train", "test") if not (images / split).is_dir()]:
        raise MissingError(f"no folder {images / missing[0]}: --images holds train and test")
    return sorted(path.name for path in (images / "train").iterdir() if path.is_dir())


def write_list(path: Path, folder: Path, classes: Iterable[str], per_class: int | None) -> Path:
    """A list for shard.py: of each class the first images by name, or all; the list."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(("path", "label"))
        for name in classes:
            for image in sorted((folder / name).iterdir())[:per_class]:
                writer.writerow((image.resolve(), name))
    return path


def make_shards(images: Path, held_out: list[str], folder: Path) -> None:
    """Every dataset below folder/shards, unless an earlier call has made them; MixerError."""
    lists, shards, digits = folder / "lists", folder / "shards", folder / "digits"
    kept = [name for name in class_names(images) if name not in held_out]
    per_class = NUM_TARGET_IMAGES // len(held_out)
    if not digits.exists():
        sample_data.write_digits(digits, SIZE_PX)
    train = write_list(lists / "train.csv", images / "train", held_out, per_class)
    test = write_list(lists / "test.csv", images / "test", held_out, None)
    upstream = write_list(lists / "pretrain.csv", images / "train", kept, None)
    _shard(upstream, shards / "pretrain")
    for name, sources in {"others": (train, test),
                          "digits": (digits / "train", digits / "test")}.items():  # fmt: skip
        _shard(sources[0], shards / name / "train")
        _shard(sources[0], shards / name / "chosen", f"--val-fraction={DEV_FRACTION}")
        _shard(sources[1], shards / name / "test")


def _shard(source: Path, destination: Path, *options: str) -> None:
    if any(destination.glob("**/manifest.json")):
        return
    if code := shard.main([str(source), str(destination), "--shard-mb=8", *options]):
        raise MixerError(f"data_tools/shard.py ended with {code} for {destination}")


def tasks_on(name: str) -> list[dict[str, Any]]:
    """What is asked of features on one target, as a suite holds it."""
    root = f"{{datasets}}/{name}"
    both = {
        "train": f"{root}/train/manifest.json", "test": f"{root}/test/manifest.json",
        "resize": SIZE_PX,
    }  # fmt: skip
    finetuned = {
        "train": f"{root}/chosen/train/manifest.json", "dev": f"{root}/chosen/val/manifest.json",
        "learning_rates": list(LEARNING_RATES), "total_steps": FINETUNE_STEPS, "warmup_steps": 10,
        "global_batch_size": FINETUNE_BATCH, "flip": name != "digits",
    }  # fmt: skip
    return [
        {**both, "name": f"{name}-fewshot", "kind": "fewshot", "shots": 5,
         "seeds": list(range(FEWSHOT_SEEDS))},
        {**both, "name": f"{name}-knn", "kind": "knn"},
        {**both, "name": f"{name}-linear", "kind": "linear"},
        {**both, **finetuned, "name": f"{name}-finetune", "kind": "finetune"},
    ]  # fmt: skip
