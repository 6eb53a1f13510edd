"""python benchmarks/mutations.py: 10,000 kinds of damage to a dataset's files, each one read.

A seed decides which file is damaged and how: bits flipped, the end cut off, blocks doubled, removed
or swapped, a JSON value changed. The dataset is then read as training reads it, its tars are walked
as data_tools/index.py walks them, their spans and images are read without a CRC. Each of that must
give what was written or one of the package's own errors, within 10 seconds; wherever CRCs are on,
pixels and labels must be those that were written. Prints a Markdown table; ends with 1 otherwise.
"""

import argparse
import hashlib
import io
import logging
import random
import signal
import sys
import tempfile
import traceback
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from tqdm import tqdm

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # works from a bare checkout

from benchmarks.damage import changed_json, damaged
from mixer_dist.data.decode import decode_image
from mixer_dist.data.labels import load_shard_labels, shard_labels, write_labels
from mixer_dist.data.loader import Loader
from mixer_dist.data.manifest import INDEX_ROW, DatasetManifest, load_dataset
from mixer_dist.data.members import image_of, labels_of, read_members
from mixer_dist.data.shards import ShardBuilder
from mixer_dist.data.tar_headers import TarError
from mixer_dist.data.tar_index import IndexOptions, index_tar
from mixer_dist.data.tar_spans import WholeTar
from mixer_dist.errors import MixerError
from mixer_dist.storage import Storage

NUM_MUTATIONS = 10_000
DEADLINE_S = 10.0
KINDS = ("jpg", "png", "webp")
SHARD_SIZES = (5, 4, 3)
NUM_CLASSES = 10
IMAGE = "image"  # damaged by itself, where no CRC guards it
OUTCOMES = ("read right", "refused", "other")

Place = tuple[int, int]
"""(shard, index in shard)."""


class HangError(Exception):
    """Reading took longer than the deadline."""


class WrongError(Exception):
    """Something was read that nobody wrote."""


@dataclass(frozen=True)
class Written:
    """The dataset before any damage."""

    files: dict[str, bytes]
    images: dict[Place, bytes]
    labels: dict[Place, list[int]]
    pixels: dict[Place, Any]


def main() -> int:
    """Damage and read; the exit code."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--number", type=int, default=NUM_MUTATIONS, help="of kinds of damage")
    parser.add_argument("--first", type=int, default=0, metavar="SEED", help="(default: 0)")
    arguments = parser.parse_args()
    logging.disable()  # of each damaged sample
    seeds = tqdm(range(arguments.first, arguments.first + arguments.number), mininterval=1)
    with tempfile.TemporaryDirectory() as folder:
        counts = damage_and_read(Path(folder), seeds)
    print(table(counts))
    return int(any(outcome == "other" for _, outcome in counts))


def damage_and_read(folder: Path, seeds: Iterable[int]) -> Counter[tuple[str, str]]:
    """How often each (kind of damaged file, outcome) came up; details of "other" go to stderr."""
    written = write_dataset(folder)
    counts: Counter[tuple[str, str]] = Counter()
    for seed in seeds:
        rng = random.Random(seed)
        name = rng.choice([IMAGE, *written.files])
        outcome, problem = outcome_of(folder, written, name, rng)
        if outcome == "other":
            print(f"seed {seed}, {name}: {problem}", file=sys.stderr)
        counts[Path(name).suffix.removeprefix(".") or name, outcome] += 1
    return counts


def write_dataset(folder: Path) -> Written:
    """Three shards with an image of each kind, their indexes, a labels file and a manifest."""
    images = {
        (shard, index): encoded(10 * shard + index, KINDS[index % 3])
        for shard, size in enumerate(SHARD_SIZES)
        for index in range(size)
    }
    labels = {place: [number % NUM_CLASSES] for number, place in enumerate(images)}
    written = []
    for shard, size in enumerate(SHARD_SIZES):
        builder = ShardBuilder()
        for index in range(size):
            kind, label = KINDS[index % 3], labels[shard, index][0]
            key = f"{'folder/' * 20 * (index == 1)}{shard}-{index}"  # one with a PAX header
            builder.add(key, {"cls": b"%d" % label, kind: images[shard, index]})
        written.append(builder.save(Storage(), str(folder), f"shard-{shard:06d}"))
    lists = [[labels[s, i] for i in range(size)] for s, size in enumerate(SHARD_SIZES)]
    manifest = DatasetManifest(
        num_samples=len(images),
        num_bytes=sum(shard.num_bytes for shard in written),
        classes=tuple("abcdefghij"),
        labels=write_labels(Storage(), str(folder), map(shard_labels, lists)),
        shards=tuple(written),
    )
    (folder / "manifest.json").write_bytes(manifest.to_json())
    files = {path.name: path.read_bytes() for path in sorted(folder.iterdir())}
    pixels = {place: decode_image(image) for place, image in images.items()}
    return Written(files, images, labels, pixels)


def encoded(seed: int, kind: str) -> bytes:
    """A coarse random image."""
    coarse = np.random.default_rng(seed).integers(0, 256, (4, 5, 3), np.uint8)
    buffer = io.BytesIO()
    image = Image.fromarray(coarse).resize((25, 20))
    image.save(buffer, {"jpg": "JPEG"}.get(kind, kind))
    return buffer.getvalue()


def outcome_of(folder: Path, written: Written, name: str, rng: random.Random) -> tuple[str, str]:
    """(outcome, problem) of damage to one file, which is mended again."""
    try:
        with deadline():
            if name == IMAGE:
                decode_image(damaged(rng.choice(list(written.images.values())), rng))
                return "read right", ""
            change = changed_json if name.endswith(".json") and rng.random() < 0.7 else damaged
            (folder / name).write_bytes(change(written.files[name], rng))
            readers = (read_as_trained, read_as_indexed, read_unchecked)
            refusals = [is_refused(reader, folder, written) for reader in readers]
            return "refused" if any(refusals) else "read right", ""
    except Exception as error:  # noqa: BLE001, what is not expected is what is counted
        if name == IMAGE and type(error) is ValueError:
            return "refused", str(error)
        return "other", "".join(traceback.format_exception(error, limit=-4))
    finally:
        if name != IMAGE:
            (folder / name).write_bytes(written.files[name])


def is_refused(reader: Callable[[Path, Written], bool], folder: Path, written: Written) -> bool:
    """Whether a reader refused the dataset or one of its samples."""
    try:
        return reader(folder, written)
    except (MixerError, TarError):
        return True


def read_as_trained(folder: Path, written: Written) -> bool:
    """Every sample through the loader, with CRCs; whether some were replaced."""
    dataset = load_dataset(Storage(), [(str(folder / "manifest.json"), 1)])
    numbers = {
        hashlib.sha256(written.files[f"shard-{shard:06d}.idx"]).hexdigest(): shard
        for shard in range(len(SHARD_SIZES))
    }
    shards = [numbers.get(part.shard.index_sha256, part.number) for part in dataset.parts]
    num_replaced = 0
    loader = Loader(
        Storage(),
        dataset,
        chunk_samples=4,
        capacity_bytes=2**20,
        num_classes=NUM_CLASSES,
        decode=lambda sample: sample | {"image": decode_image(sample["data"])},
    )
    with closing(loader):
        for number in range(dataset.num_samples):
            sample = loader.load_or_replace({"position": number, "sample": number})
            place = shards[sample["shard"]], sample["index"]
            num_replaced += sample["bad_sample"] is not None
            if not np.array_equal(sample["image"], written.pixels[place]):
                raise WrongError(f"pixels of {place}")
            if sample["labels"] != written.labels[place]:
                raise WrongError(f"label of {place}: {sample['labels']}")
    for shard, part in zip(shards, dataset.parts, strict=True):
        labels = load_shard_labels(Storage(), part)
        for index in range(part.shard.num_samples if labels else 0):
            if labels and labels.of(index) != written.labels[shard, index]:
                raise WrongError(f"labels file for {shard, index}: {labels.of(index)}")
    return num_replaced > 0


def read_as_indexed(folder: Path, written: Written) -> bool:
    """Every tar as one that somebody else wrote."""
    for path in folder.glob("*.tar"):
        tar = WholeTar(Storage(), str(path), path.stat().st_size, lambda num_bytes: None)
        index_tar(tar, IndexOptions())
        tar.sha256()
    return False


def read_unchecked(folder: Path, written: Written) -> bool:
    """Every span as after --headers-only, so that nothing but the bytes themselves tells damage."""
    is_bad = False
    for path in folder.glob("*.tar"):
        data = path.read_bytes()
        for row in np.frombuffer(written.files[path.with_suffix(".idx").name], INDEX_ROW):
            begin, num_bytes = int(row["offset"]), int(row["num_bytes"])
            try:
                members = read_members(data[begin : begin + num_bytes])
                labels_of(members)
                image = image_of(members)
            except MixerError:
                is_bad = True
                continue
            is_bad |= not is_decodable(image)
    return is_bad


def is_decodable(image: bytes) -> bool:
    """Whether an image can be decoded, to whatever pixels."""
    try:
        decode_image(image)
    except ValueError:
        return False
    return True


@contextmanager
def deadline() -> Iterator[None]:
    """HangError where the context takes too long."""

    def end(*_: object) -> None:
        raise HangError(f"longer than {DEADLINE_S:.0f} s")

    before = signal.signal(signal.SIGALRM, end)
    signal.setitimer(signal.ITIMER_REAL, DEADLINE_S)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def table(counts: Counter[tuple[str, str]]) -> str:
    """Markdown: a row for each kind of file."""
    lines = [f"| damaged | {' | '.join(OUTCOMES)} |", "|---|---|---|---|"]
    for kind in sorted({kind for kind, _ in counts}):
        row = " | ".join(f"{counts[kind, outcome]:,}" for outcome in OUTCOMES)
        lines.append(f"| {kind} | {row} |")
    totals = (sum(n for (_, found), n in counts.items() if found == each) for each in OUTCOMES)
    return "\n".join([*lines, f"| all | {' | '.join(f'{total:,}' for total in totals)} |"])


if __name__ == "__main__":
    sys.exit(main())
