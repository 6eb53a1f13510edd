"""Small datasets made by hand, for what no tool would write, and runs that read them."""

import io
import itertools
import json
import tarfile
import threading
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from mixer_dist.config import RunConfig
from mixer_dist.data.augment import draw, training_crop, training_image
from mixer_dist.data.batch import Batch
from mixer_dist.data.manifest import Dataset, DatasetManifest, load_dataset
from mixer_dist.data.shards import ShardBuilder
from mixer_dist.data.stream import Cursor, Share, TrainStream, micro_batch_shape
from mixer_dist.sections import parse
from mixer_dist.storage import Storage, Version

DEPTH_RATES = [0.0, 0.3, 0.6]

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
    folder: Path, shards: Iterable[Iterable[Sample]], classes: Sequence[str] | None = None
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
        self.num_damaged = num_damaged
        self._counting = threading.Lock()

    def read_versioned(self, url: str, start: int, stop: int) -> tuple[bytes, Version]:
        data, version = super().read_versioned(url, start, stop)
        with self._counting:
            self.ranges.append((Path(url).name, start, stop))
            if self.num_damaged:
                self.num_damaged -= 1
                return data[:-1] + bytes([data[-1] ^ 1]), version
        return data, version

    def twin(self) -> "CountingStorage":
        return self  # so that its counts are seen

    def read(self, url: str, num_bytes: int | None = None) -> bytes:
        self.reads.append(Path(url).name)
        return super().read(url, num_bytes)


def augmented(
    image: np.ndarray, size_px: int, seed: int, position: int, min_area: float, flip: bool
) -> torch.Tensor:
    """What training makes of a whole image at a position."""
    [draws] = draw(seed, np.array([position]))
    height, width, _ = image.shape
    top, left, tall, wide = training_crop(height, width, draws, min_area)
    crop = image[top : top + tall, left : left + wide]
    return training_image(crop, size_px, flip=flip and draws.is_flipped)


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


def files_of(folder: Path) -> list[dict[str, bytes]]:
    """Every sample's members in storage order, as Python's tarfile reads them."""
    samples: list[dict[str, bytes]] = []
    names = [
        shard["name"] for shard in json.loads((folder / "manifest.json").read_text())["shards"]
    ]
    for name in names:
        with tarfile.open(folder / name) as tar:
            for key, members in itertools.groupby(tar, lambda m: m.name.rpartition(".")[0]):
                content = {m.name.rpartition(".")[2]: tar.extractfile(m).read() for m in members}
                samples.append({"__key__": key, **content})
    return samples


def dataset_of(config: RunConfig) -> Dataset:
    """What a run trains on."""
    return load_dataset(Storage(), [(e.manifest, e.repeats) for e in config.data.train])


def open_stream(
    config: RunConfig,
    cursor: Cursor | None = None,
    *,
    rank: int = 0,
    world_size: int = 1,
    storage: Storage | None = None,
) -> TrainStream:
    """One rank's stream, its thread already at work."""
    size, accumulation = micro_batch_shape(config, world_size)
    share = Share(rank, world_size, size * accumulation)
    place = storage or Storage(), cursor or Cursor(), share
    return TrainStream(config, dataset_of(config), *place, DEPTH_RATES)


def batches_of(config: RunConfig, num_batches: int, *args: Any, **kwargs: Any) -> list[Batch]:
    """The first batches of a stream, which is then closed."""
    with open_stream(config, *args, **kwargs) as stream:
        return list(itertools.islice(stream, num_batches))


# (shard, index) of the samples that `twelve` writes.
PLACES = [(0, i) for i in range(5)] + [(1, i) for i in range(3)] + [(2, i) for i in range(4)]


def twelve(folder: Path, damaged: dict[int, dict[str, bytes]]) -> str:
    """Twelve samples in shards of 5, 3 and 4, some of them with other members; the manifest."""
    samples = [(f"s{n:03}", damaged.get(n, good_sample(n)[1])) for n in range(12)]
    return write_dataset(folder, [samples[:5], samples[5:8], samples[8:]])
