"""The datasets of a transfer: pretrained on, transferred to; and the tasks there."""

import json
from pathlib import Path
from typing import Any

from benchmarks.image_lists import class_names, write_list
from data_tools import sample_data, shard
from mixer_dist.errors import MixerError, RefusedError

SIZE_PX = 32
TARGETS = {"others": "the held-out classes", "digits": "handwritten digits"}
NUM_TARGET_IMAGES = 1000  # of the held-out classes, as in VTAB-1k
DEV_FRACTION = 0.2
FEWSHOT_SEEDS = 10
FINETUNE_STEPS, FINETUNE_BATCH = 40, 64
LEARNING_RATES = (0.01, 0.03)


def make_shards(images: Path, held_out: list[str], folder: Path) -> None:
    """Every dataset below folder/shards, unless an earlier call has made them; MixerError."""
    lists, shards, digits = folder / "lists", folder / "shards", folder / "digits"
    _check_same(shards / "others" / "train", held_out)
    kept = [name for name in class_names(images) if name not in held_out]
    _shard(write_list(lists / "kept.csv", images / "train", kept), shards / "pretrain")
    num_images = NUM_TARGET_IMAGES // len(held_out)
    train = write_list(lists / "train.csv", images / "train", held_out, num_images)
    test = write_list(lists / "test.csv", images / "test", held_out)
    _shard_target(train, test, shards / "others")
    if not digits.exists():
        sample_data.write_digits(digits, SIZE_PX)
    _shard_target(digits / "train", digits / "test", shards / "digits")


def _check_same(dataset: Path, held_out: list[str]) -> None:
    """RefusedError where an earlier call has held out others."""
    manifest = dataset / "manifest.json"
    if manifest.exists() and (there := json.loads(manifest.read_text())["classes"]) != held_out:
        raise RefusedError(
            f"{dataset} holds {', '.join(there)}, not {', '.join(held_out)}: "
            "choose another --folder"
        )


def _shard_target(train: Path, test: Path, folder: Path) -> None:
    """The images to learn from as a whole, and cut in two to choose a learning rate by."""
    _shard(train, folder / "train")
    _shard(train, folder / "chosen", f"--val-fraction={DEV_FRACTION}")
    _shard(test, folder / "test")


def _shard(source: Path, destination: Path, *options: str) -> None:
    if any(destination.glob("**/manifest.json")):
        return
    if code := shard.main([str(source), str(destination), "--shard-mb=8", *options]):
        raise MixerError(f"data_tools/shard.py ended with {code} for {destination}")


def tasks_on(name: str) -> list[dict[str, Any]]:
    """What is asked of features on one target, as a suite holds it."""
    root = f"{{datasets}}/{name}"
    whole = {
        "train": f"{root}/train/manifest.json", "test": f"{root}/test/manifest.json",
        "resize": SIZE_PX,
    }  # fmt: skip
    finetuned = {
        "train": f"{root}/chosen/train/manifest.json", "dev": f"{root}/chosen/val/manifest.json",
        "learning_rates": list(LEARNING_RATES), "total_steps": FINETUNE_STEPS, "warmup_steps": 10,
        "global_batch_size": FINETUNE_BATCH, "flip": name != "digits",
    }  # fmt: skip
    return [
        {**whole, "name": f"{name}-fewshot", "kind": "fewshot", "shots": 5,
         "seeds": list(range(FEWSHOT_SEEDS))},
        {**whole, "name": f"{name}-knn", "kind": "knn"},
        {**whole, "name": f"{name}-linear", "kind": "linear"},
        {**whole, **finetuned, "name": f"{name}-finetune", "kind": "finetune"},
    ]  # fmt: skip
