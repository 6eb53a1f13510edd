"""python benchmarks/data_rates.py IMAGES: images per CPU-second, from shards to uint8 batches.

IMAGES is a folder of JPEG photos with a sub-folder a class. They are sharded as they are and at
short side 256, put on a loopback S3 server, and read by every reader of benchmarks/readers.py in
turn, each in a process of its own with one core's worth of threads; medians of several rounds.
mosaic's and litdata's packages come from an environment of their own:

    python -m venv build/peers
    build/peers/bin/pip install torch==2.13.0 mosaicml-streaming litdata simplejpeg webdataset
"""

import argparse
import os
import secrets
import statistics
import subprocess
import sys
import tempfile
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # works from a bare checkout

from data_tools import shard
from launchers.local_s3 import serve

ROOT = Path(__file__).resolve().parents[1]
READERS = ROOT / "benchmarks/readers.py"
PEERS_PYTHON = ROOT / "build/peers/bin/python"


@dataclass
class Reader:
    """A process that reads on demand."""

    name: str
    kind: str
    place: str
    python: str = sys.executable
    rates: list[float] = field(default_factory=list)
    """Images a CPU-second, a round each."""

    def start(self, stack: ExitStack) -> None:
        """Start it and have it read once, so that no start-up is measured."""
        command = [self.python, str(READERS), self.kind, self.place]
        pipe = subprocess.PIPE
        self._process = stack.enter_context(
            subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True)
        )
        self.read(512)

    def read(self, num_images: int) -> float:
        """Images per CPU-second over so many images."""
        assert self._process.stdin and self._process.stdout
        self._process.stdin.write(f"{num_images}\n")
        self._process.stdin.flush()
        count, cpu_s = map(float, self._process.stdout.readline().split())
        return count / cpu_s

    def stop(self) -> None:
        """End it."""
        assert self._process.stdin
        self._process.stdin.close()


def main() -> int:
    """Measure and print the table; 1 where a bar is missed."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("images", metavar="IMAGES", type=Path)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--round-images", type=int, default=1024)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        readers = _readers(arguments.images.resolve(), Path(folder), stack)
        for reader in readers:
            reader.start(stack)
        for _ in range(arguments.rounds):
            for reader in readers:
                reader.rates.append(reader.read(arguments.round_images))
        for reader in readers:
            reader.stop()
    return _print_table(readers)


def _readers(images: Path, folder: Path, stack: ExitStack) -> list[Reader]:
    """Everything that is compared, with its data made."""
    (folder / "photos").symlink_to(images)
    (folder / "bucket").mkdir()
    options = ["--shard-mb", "32"]
    shard.main([str(images), str(folder / "bucket/whole"), *options])
    shard.main([str(images), str(folder / "small"), *options, "--resize-short-side", "256"])
    key, secret = "benchmark", secrets.token_hex(16)
    os.environ |= {"AWS_ACCESS_KEY_ID": key, "AWS_SECRET_ACCESS_KEY": secret}
    url = stack.enter_context(serve(folder, key=key, secret=secret))
    os.environ["READERS_ENDPOINT_URL"] = url
    whole, photos = str(folder / "bucket/whole"), str(folder / "photos") + "/"
    readers = [
        Reader("bare decode + crop + resize", "bare", photos),
        Reader("bare, of the crop only", "bare_crops", photos),
        Reader("mixer_dist, disk", "mixer_dist", f"{whole}/manifest.json"),
        Reader("mixer_dist, S3", "mixer_dist", "s3://bucket/whole/manifest.json"),
        Reader("mixer_dist, shards at 256 px", "mixer_dist", f"{folder}/small/manifest.json"),
        Reader("webdataset with Pillow", "webdataset_pillow", whole),
        Reader("torch DataLoader, folder", "torch_folder", photos),
    ]
    if PEERS_PYTHON.exists():
        peer = str(PEERS_PYTHON)
        readers.append(Reader("mosaic streaming", "mosaic", photos, peer))
        readers.append(Reader("litdata", "litdata", photos, peer))
    return readers


BARS = (
    ("mixer_dist, disk", "bare decode + crop + resize", 0.90),
    ("mixer_dist, S3", "bare decode + crop + resize", 0.78),
    ("mixer_dist, disk", "webdataset with Pillow", 1.6),
    ("mixer_dist, shards at 256 px", "webdataset with Pillow", 3.5),
)


def _print_table(readers: list[Reader]) -> int:
    """Medians, and medians of the ratios within a round."""
    by_name = {reader.name: reader for reader in readers}
    print("\n| reader | images per CPU-second | of the bare function | of webdataset |")
    print("|---|---|---|---|")
    for reader in readers:
        ratios = [_ratio(reader, by_name[BARS[n][1]]) for n in (0, 2)]
        median = statistics.median(reader.rates)
        print(f"| {reader.name} | {median:.0f} | {ratios[0]:.2f} | {ratios[1]:.2f} |")
    missed = [
        f"{name}: {_ratio(by_name[name], by_name[other]):.2f} of {other}, bar {bar}"
        for name, other, bar in BARS
        if _ratio(by_name[name], by_name[other]) < bar
    ]
    print("\nBars missed: " + ("; ".join(missed) or "none") + ".")
    return int(bool(missed))


def _ratio(one: Reader, other: Reader) -> float:
    return statistics.median(a / b for a, b in zip(one.rates, other.rates, strict=True))


if __name__ == "__main__":
    sys.exit(main())
