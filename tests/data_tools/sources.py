"""Small image folders, and what data_tools/shard.py makes of them."""

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import webdataset
from PIL import Image

from data_tools import shard
from mixer_dist.data.manifest import DatasetManifest, load_manifest
from mixer_dist.storage import Storage

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = ROOT / "data_tools" / "shard.py"


def image_bytes(kind: str = "JPEG", shade: int = 100) -> bytes:
    """A small image of one shade."""
    return encode(np.full((6, 8, 3), shade, np.uint8), kind)


def scene_pixels(seed: int, height: int = 120, width: int = 160) -> np.ndarray:
    """Smooth random colours, which differ from those of any other seed as photographs do."""
    coarse = np.random.default_rng(seed).integers(0, 256, (8, 8, 3), np.uint8)
    return np.array(Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC))


def photo_pixels(seed: int, height: int = 240, width: int = 320) -> np.ndarray:
    """A scene with fine detail, which a resize must average and not pick from."""
    scene = scene_pixels(seed, height, width).astype(int)
    detail = np.random.default_rng(seed).integers(-60, 60, scene.shape)
    return (scene + detail).clip(0, 255).astype(np.uint8)


def encode(pixels: np.ndarray, kind: str = "JPEG", **options: Any) -> bytes:
    """An image file's bytes."""
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, kind, **options)
    return buffer.getvalue()


def write_files(folder: Path, files: dict[str, bytes]) -> Path:
    """Files below a folder, by their paths."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, data in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)
    return folder


def small_source(folder: Path) -> Path:
    """Six images of two classes."""
    return write_files(
        folder, {f"{name}/{i}.jpg": image_bytes(shade=i) for name in ("b", "a") for i in range(3)}
    )


def run(source: object, destination: object, *options: str) -> int:
    """The tool's exit code."""
    return shard.main([str(source), str(destination), "--workers", "1", *options])


def contents(folder: Path) -> dict[str, bytes]:
    """All files below a folder by their paths."""
    files = (path for path in sorted(folder.rglob("*")) if path.is_file())
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}


def samples(folder: Path) -> list[dict]:
    """What plain webdataset reads, in the order of the manifest."""
    urls = [str(folder / each.name) for each in manifest_of(folder).shards]
    return list(webdataset.WebDataset(urls, shardshuffle=False, empty_check=False))


def labels(folder: Path) -> dict[str, list[int]]:
    """The classes of each sample by its key."""
    return {
        each["__key__"]: [int(each["cls"])] if "cls" in each else json.loads(each["json"])["labels"]
        for each in samples(folder)
    }


def manifest_of(folder: Path) -> DatasetManifest:
    """What manifest.json says."""
    return load_manifest(Storage(), str(folder / "manifest.json"))


def quarantine(folder: Path) -> list[tuple[str, str, str]]:
    """Path, reason and detail of each image left out."""
    lines = (folder / "quarantine.jsonl").read_text().splitlines()
    return [(each["path"], each["reason"], each["detail"]) for each in map(json.loads, lines)]


def refusal(capfd: pytest.CaptureFixture[str]) -> str:
    """The one line on stderr; nothing on stdout."""
    printed = capfd.readouterr()
    assert printed.out == "" and printed.err.count("\n") == 1, printed
    return printed.err
