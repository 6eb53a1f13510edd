"""Parts of an image folder train/CLASS/*, test/CLASS/*, as lists for shard.py."""

import csv
from collections.abc import Iterable
from pathlib import Path

from mixer_dist.errors import ConfigError, MissingError


def class_names(images: Path) -> list[str]:
    """Those of both splits; MissingError, ConfigError."""
    found = [_sub_folders(images / split) for split in ("train", "test")]
    if odd := set(found[0]) ^ set(found[1]):
        raise ConfigError(f"{images}: expected each class in train and in test, not so {min(odd)}")
    return found[0]


def write_list(
    path: Path, folder: Path, classes: Iterable[str], per_class: int | None = None
) -> Path:
    """List so many images of each class, the first by name, or all; where the list is."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(("path", "label"))
        for name in classes:
            for image in sorted((folder / name).iterdir())[:per_class]:
                writer.writerow((image.resolve(), name))
    return path


def _sub_folders(folder: Path) -> list[str]:
    names = [path.name for path in folder.glob("*") if path.is_dir()]
    if not names:
        raise MissingError(f"{folder} holds no class folders; expected such as {folder}/cat/1.jpg")
    return sorted(names)
