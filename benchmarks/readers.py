"""Ways to read photos into uint8 batches (64, 3, 224, 224), each as its users would.

`python benchmarks/readers.py KIND PLACE` answers every line N on stdin with the number of images
read, N or a few more, and the seconds of CPU that this process spent on them.
"""

import importlib
import io
import os
import random
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch

Batches = Iterator[torch.Tensor]

BATCH = 64
SIZE_PX = 224
MIN_AREA = 0.05
SHARD_BYTES = 32 * 10**6
REST_S = 0.02  # of CPU in half a second


def bare(place: str) -> Batches:
    """Nothing but decoding, cropping and resizing files in memory, in the usual way."""
    import simplejpeg

    from mixer_dist.data.augment import training_crop
    from mixer_dist.data.decode import decode_image

    def crop(data: bytes, draws: Any) -> np.ndarray:
        try:
            pixels = simplejpeg.decode_jpeg(data, "RGB")
        except ValueError:  # CMYK
            pixels = decode_image(data)
        height, width, _ = pixels.shape
        top, left, tall, wide = training_crop(height, width, draws, MIN_AREA)
        return pixels[top : top + tall, left : left + wide]

    yield from _in_memory(place, crop)


def bare_crops(place: str) -> Batches:
    """The same with no more decoded than the crop: what our own path cannot beat."""
    from mixer_dist.data.augment import training_crop
    from mixer_dist.data.decode import EncodedImage

    def crop(data: bytes, draws: Any) -> np.ndarray:
        image = EncodedImage(data)
        return image.decode_crop(training_crop(*image.size, draws, MIN_AREA))

    yield from _in_memory(place, crop)


def _in_memory(place: str, crop: Callable[[bytes, Any], np.ndarray]) -> Batches:
    from mixer_dist.data.augment import draw, training_image

    files = [path.read_bytes() for path in sorted(Path(place).rglob("*.JPEG"))]
    draws = draw(0, np.arange(len(files)))

    def image(number: int) -> torch.Tensor:
        pixels = crop(files[number], draws[number])
        return training_image(pixels, SIZE_PX, flip=draws[number].is_flipped)

    while True:
        order = random.sample(range(len(files)), len(files))
        for first in range(0, len(order) - BATCH, BATCH):
            yield [image(number) for number in order[first : first + BATCH]]  # type: ignore[misc]


def mixer_dist(place: str) -> Batches:
    """Our own path, with one thread that decodes."""
    from mixer_dist.config import RunConfig
    from mixer_dist.data.run_data import training_data
    from mixer_dist.data.stream import Cursor, Share, TrainStream
    from mixer_dist.sections import parse
    from mixer_dist.storage import Storage

    endpoint = os.environ.get("READERS_ENDPOINT_URL")
    tree: dict[str, Any] = {
        "run_dir": "unused", "total_steps": 10**6, "global_batch_size": BATCH,
        "micro_batch_size": BATCH, "model": {"variant": "B/16", "num_classes": 1000},
        "data": {"train": [{"manifest": place}], "num_threads": 1, "order": {"lanes": 8}},
        "augment": {"min_crop_area": MIN_AREA}, "optimizer": {"learning_rate": 1e-3},
        "storage": {"s3://": {"endpoint_url": endpoint, "checksum": "when_required"}},
    }  # fmt: skip
    config = parse(RunConfig, tree, "the benchmark")
    storage = Storage(config.storage)
    share = Share(rank=0, world_size=1, num_rows=BATCH)
    data = training_data(config, storage)
    with TrainStream(config, data, storage, Cursor(), share, depth_rates=[0.0]) as stream:
        for batch in stream:
            yield batch.images


def pillow_crop(image: Any) -> np.ndarray:
    """With Pillow: a random crop resized, a flip; torchvision's recipe without its tensors."""
    from PIL import Image

    image = image.convert("RGB")
    wide, tall = image.size
    for _ in range(10):
        area = random.uniform(MIN_AREA, 1) * wide * tall
        ratio = np.exp(random.uniform(np.log(3 / 4), np.log(4 / 3)))
        width, height = round((area * ratio) ** 0.5), round((area / ratio) ** 0.5)
        if 0 < width <= wide and 0 < height <= tall:
            break
    else:
        width, height = wide, tall
    left, top = random.randint(0, wide - width), random.randint(0, tall - height)
    box = (left, top, left + width, top + height)
    image = image.resize((SIZE_PX, SIZE_PX), Image.Resampling.BILINEAR, box=box)
    if random.random() < 0.5:
        image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    return np.asarray(image)


def stacked(pixels: list[np.ndarray]) -> torch.Tensor:
    """Pillow's arrays (H, W, 3) as one batch."""
    return torch.from_numpy(np.stack(pixels)).permute(0, 3, 1, 2).contiguous()


def webdataset_pillow(place: str) -> Batches:
    """webdataset's own pipeline with its Pillow decoder."""
    import webdataset

    shards = [str(path) for path in sorted(Path(place).glob("*.tar"))]
    dataset = (
        webdataset.WebDataset(shards, shardshuffle=100)
        .shuffle(500)
        .decode("pil")
        .to_tuple("jpg", "cls")
        .map_tuple(pillow_crop, int)
        .batched(BATCH, collation_fn=lambda rows: stacked([pixels for pixels, _ in rows]))
    )
    while True:
        yield from (batch for batch in dataset if len(batch) == BATCH)


class _Folder(torch.utils.data.Dataset[np.ndarray]):
    def __init__(self, place: str) -> None:
        self.paths = sorted(Path(place).rglob("*.JPEG"))

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, number: int) -> np.ndarray:
        from PIL import Image

        with Image.open(self.paths[number]) as image:
            return pillow_crop(image)


def torch_folder(place: str) -> Batches:
    """torch's DataLoader over a folder of files, in its own process."""
    yield from _loaded(_Folder(place), shuffle=True)


def _loaded(dataset: Any, **options: Any) -> Batches:
    loader = torch.utils.data.DataLoader(
        dataset, BATCH, collate_fn=stacked, drop_last=True, **options
    )
    while True:
        yield from loader


def mosaic(place: str) -> Batches:
    """mosaic's streaming, from shards in its own format that are written here first."""
    _define_torchvision_operators()
    from PIL import Image
    from streaming import MDSWriter, StreamingDataset

    out = Path(place).parent / "mosaic"
    if not (out / "index.json").exists():
        columns = {"image": "bytes", "label": "int"}
        with MDSWriter(out=str(out), columns=columns, size_limit=SHARD_BYTES) as writer:
            for path in sorted(Path(place).rglob("*.JPEG")):
                writer.write({"image": path.read_bytes(), "label": 0})

    class Photos(StreamingDataset):
        def __getitem__(self, number: int) -> np.ndarray:
            sample = super().__getitem__(number)
            return pillow_crop(Image.open(io.BytesIO(sample["image"])))

    yield from _loaded(Photos(local=str(out), shuffle=True, batch_size=BATCH))


def litdata(place: str) -> Batches:
    """litdata's streaming, from chunks in its own format that are written here first."""
    _define_torchvision_operators()
    from litdata import StreamingDataLoader, StreamingDataset
    from litdata.streaming.writer import BinaryWriter
    from PIL import Image

    out = Path(place).parent / "litdata"
    if not (out / "index.json").exists():
        out.mkdir(exist_ok=True)
        writer = BinaryWriter(str(out), chunk_bytes=SHARD_BYTES)
        for number, path in enumerate(sorted(Path(place).rglob("*.JPEG"))):
            writer[number] = path.read_bytes()
        writer.done()
        writer.merge(1)

    class Photos(StreamingDataset):
        def __getitem__(self, index: Any) -> np.ndarray:
            return pillow_crop(Image.open(io.BytesIO(super().__getitem__(index))))

    while True:
        dataset = Photos(str(out), shuffle=True)
        yield from StreamingDataLoader(
            dataset, batch_size=BATCH, collate_fn=stacked, drop_last=True, num_workers=0
        )


def _define_torchvision_operators() -> None:
    """What torchvision's wheel needs to be imported beside a CPU build of torch."""
    library = torch.library.Library("torchvision", "DEF")
    library.define("nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    library.define("qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    globals()["_kept"] = library


KINDS = {
    reader.__name__: reader
    for reader in (bare, bare_crops, mixer_dist, webdataset_pillow, torch_folder, mosaic, litdata)
}


def main() -> None:
    """Answer each number on stdin."""
    kind, place = sys.argv[1:]
    torch.set_num_threads(1)
    importlib.import_module("PIL.Image")
    batches = KINDS[kind](place)
    for line in sys.stdin:
        num_batches = -(-int(line) // BATCH)
        spent_s = cpu_seconds_at_rest()
        for _ in range(num_batches):
            next(batches)
        spent_s = cpu_seconds_at_rest() - spent_s
        print(num_batches * BATCH, spent_s, flush=True)
    os._exit(0)  # some readers leave threads behind that would be waited for


def cpu_seconds_at_rest() -> float:
    """Of this process, once it has read ahead as far as it goes: at both ends of a measurement."""
    spent_s = time.process_time()
    while True:
        time.sleep(0.5)
        before_s, spent_s = spent_s, time.process_time()
        if spent_s - before_s < REST_S:
            return spent_s


if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).resolve().parents[1])  # works from a bare checkout
    main()
