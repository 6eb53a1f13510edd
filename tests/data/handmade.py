"""Small datasets made by hand, for what no tool would write, and a run that reads them."""

import io
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from mixer_dist.config import RunConfig, parse
from mixer_dist.data.manifest import DatasetManifest
from mixer_dist.data.shards import ShardBuilder
from mixer_dist.storage import Storage

Sample = tuple[str, Mapping[str, bytes]]


def png(shade: int, size_px: int = 8) -> bytes:
    """A grey image."""
    buffer = io.BytesIO()
    Image.fromarray(np.full((size_px, size_px, 3), shade, np.uint8)).save(buffer, "PNG")
    return buffer.getvalue()


def good_sample(number: int, label: int = 0) -> Sample:
    """A sample whose shade is its number."""
    return f"s{number:03d}", {"png": png(number), "cls": b"%d" % label}


def write_dataset(
    folder: Path, shards: Sequence[Sequence[Sample]], classes: Sequence[str] | None = None
) -> str:
    """Write each list of samples as a shard; the manifest's path."""
    written = []
    for number, samples in enumerate(shards):
        builder = ShardBuilder()
        for key, members in samples:
            builder.add(key, members)
        written.append(builder.save(Storage(), str(folder), f"shard-{number:06d}"))
    manifest = DatasetManifest(
        num_samples=sum(shard.num_samples for shard in written),
        num_bytes=sum(shard.num_bytes for shard in written),
        classes=None if classes is None else tuple(classes),
        shards=tuple(written),
    )
    (folder / "manifest.json").write_bytes(manifest.to_json())
    return str(folder / "manifest.json")


def flip_byte(path: Path, offset: int) -> None:
    """Damage one byte of a file."""
    data = bytearray(path.read_bytes())
    data[offset] ^= 0xFF
    path.write_bytes(data)


class CountingStorage(Storage):
    """A storage that tells what was asked of it, and may damage its first answers."""

    def __init__(self, num_damaged: int = 0) -> None:
        super().__init__()
        self.ranges: list[tuple[str, int, int]] = []
        self.reads: list[str] = []
        self._num_damaged = num_damaged
        self._counting = threading.Lock()

    def read_range(self, url: str, start: int, stop: int) -> bytes:
        data = super().read_range(url, start, stop)
        with self._counting:
            self.ranges.append((Path(url).name, start, stop))
            if self._num_damaged:
                self._num_damaged -= 1
                return data[:-1] + bytes([data[-1] ^ 1])
        return data

    def read(self, url: str) -> bytes:
        self.reads.append(Path(url).name)
        return super().read(url)


def stream_config(*manifests: str, **changes: Any) -> RunConfig:
    """A run of 6 images a step on 8 px, in chunks of 4; changes as section__key=value."""
    tree: dict[str, Any] = {
        "run_dir": "unused",
        "seed": 5,
        "total_steps": 1000,
        "global_batch_size": 6,
        "micro_batch_size": 2,
        "model": {
            "patch_size": 4, "hidden_dim": 8, "num_blocks": 2, "tokens_mlp_dim": 4,
            "channels_mlp_dim": 8, "image_size": 8, "num_classes": 10,
        },
        "data": {
            "train": [{"manifest": manifest} for manifest in manifests],
            "order": {"lanes": 2, "chunk_samples": 4, "window": 4},
            "num_threads": 2,
        },
        "optimizer": {"learning_rate": 1e-3},
    }  # fmt: skip
    for path, value in changes.items():
        *parents, leaf = path.split("__")
        node = tree
        for name in parents:
            node = node.setdefault(name, {})
        node[leaf] = value
    return parse(RunConfig, tree, "a test")
