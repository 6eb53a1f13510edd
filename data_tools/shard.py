"""python data_tools/shard.py SOURCE DESTINATION: an image folder becomes shards for training.

SOURCE holds a folder for each class. DESTINATION is a folder or s3://bucket/prefix; it receives
tars that any webdataset reader takes, an index for each, and manifest.json, whose appearance says
that all is there. The same images give the same bytes, whatever the number of workers.
"""

import argparse
import math
import multiprocessing
import os
import re
import signal
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import closing, contextmanager
from pathlib import Path

from tqdm import tqdm

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # works from a bare checkout

from mixer_dist.config import StorageConfig
from mixer_dist.data.image_folder import (
    ImageFile,
    ImageFolder,
    cut,
    printable,
    scan_images,
    shuffle,
)
from mixer_dist.data.manifest import MANIFEST_NAME, DatasetManifest
from mixer_dist.data.shards import WrittenShard, write_image_shard
from mixer_dist.errors import ConfigError, DataError, MixerError, RefusedError, StorageError
from mixer_dist.storage import Storage, join

INCOMPLETE_NAME = "INCOMPLETE"
REPORT_S = 30.0
INTERRUPTED = 130

# Also under the temporary name that a killed run leaves on a disk.
_SHARD_FILE = re.compile(r"shard-\d{6,}\.(tar|idx)|\.shard-\d{6,}\.(tar|idx)\.[\d-]+\.tmp")


def main(argv: Sequence[str] | None = None) -> int:
    """Shard as the arguments say; the exit code."""
    arguments = _parser().parse_args(argv)
    try:
        _check(arguments)
        return _shard(arguments)
    except MixerError as error:
        print(f"shard.py: {error}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        print("shard.py: interrupted; the same command starts over", file=sys.stderr)
        return INTERRUPTED


def _shard(arguments: argparse.Namespace) -> int:
    source, destination = Path(arguments.source), arguments.destination
    storage = Storage({destination: _storage_config(arguments)})
    is_resumed = _check_destination(storage, destination)
    folder = scan_images(source)
    runs = cut(shuffle(folder.images, arguments.seed), arguments.shard_mb * 1e6)
    storage.write(join(destination, INCOMPLETE_NAME), b"data_tools/shard.py is not done here\n")

    began = time.monotonic()
    written = _write_shards(storage, source, destination, runs, arguments.workers)
    manifest = _manifest(folder, written)
    if is_resumed:
        _remove_leftovers(storage, destination, manifest)
    storage.write(join(destination, MANIFEST_NAME), manifest.to_json())
    storage.delete(join(destination, INCOMPLETE_NAME))
    print(_summary(folder, manifest, time.monotonic() - began))
    print(f"manifest: {join(destination, MANIFEST_NAME)}")
    return 0


def _check(arguments: argparse.Namespace) -> None:
    if "://" in arguments.source:
        raise ConfigError(f"SOURCE must be a local folder, got {arguments.source}")
    if arguments.destination.endswith("://"):
        raise ConfigError(f"DESTINATION must name a bucket, got {arguments.destination}")
    if not math.isfinite(arguments.shard_mb) or arguments.shard_mb <= 0:
        raise ConfigError(f"--shard-mb must be above 0, got {arguments.shard_mb}")
    if arguments.workers < 1:
        raise ConfigError(f"--workers must be at least 1, got {arguments.workers}")


def _storage_config(arguments: argparse.Namespace) -> StorageConfig:
    return StorageConfig(
        endpoint_url=arguments.endpoint_url,
        region=arguments.region,
        profile=arguments.profile,
        addressing_style=arguments.addressing_style,
        checksum=arguments.checksum,
    )


def _check_destination(storage: Storage, destination: str) -> bool:
    """Whether a stopped run left its shards there; any other shards are never touched."""
    for place in (Path(destination), *Path(destination).parents):
        if place.is_file():
            raise RefusedError(f"{place} is a file; expected a folder or s3://bucket/prefix")
    names = storage.names(destination)
    if MANIFEST_NAME in names:
        raise RefusedError(
            f"{destination} already holds a dataset ({MANIFEST_NAME}): "
            "choose another destination or remove that one first"
        )
    shards = [name for name in names if _SHARD_FILE.fullmatch(name)]
    if shards and INCOMPLETE_NAME not in names:
        raise RefusedError(
            f"{destination} holds {shards[0]}, which this tool did not leave there: "
            "choose another destination"
        )
    return INCOMPLETE_NAME in names


def _write_shards(
    storage: Storage, source: Path, destination: str, runs: list[list[ImageFile]], num_workers: int
) -> list[WrittenShard]:
    """All shards, each by one worker; unreadable images are named as they turn up."""
    written: dict[int, WrittenShard] = {}
    with (
        closing(Progress(sum(map(len, runs)))) as progress,
        _workers(min(num_workers, len(runs))) as pool,
    ):
        places = {
            pool.submit(
                write_image_shard, storage, source, destination, f"shard-{place:06d}", run
            ): place
            for place, run in enumerate(runs)
        }
        for future in _as_done(set(places), progress):
            written[places[future]] = future.result()
            progress.add(future.result())
    return [written[place] for place in range(len(runs))]


def _as_done(
    pending: set[Future[WrittenShard]], progress: "Progress"
) -> Iterator[Future[WrittenShard]]:
    while pending:
        done, pending = wait(pending, progress.until_line_s(), FIRST_COMPLETED)
        yield from done
        progress.show_line()


@contextmanager
def _workers(num_workers: int) -> Iterator[ProcessPoolExecutor]:
    """Worker processes that end when this one does, however it ends."""
    context = multiprocessing.get_context("forkserver")  # a plain fork would break s3fs
    context.set_forkserver_preload(["mixer_dist.data.shards", "webdataset"])
    others = set(multiprocessing.active_children())
    environment = dict(os.environ)  # the fork server may have started before it was changed
    pool = ProcessPoolExecutor(num_workers, context, _follow_parent, (environment,))
    try:
        yield pool
        pool.shutdown()
    except BaseException as error:
        pool.shutdown(wait=False, cancel_futures=True)
        for worker in set(multiprocessing.active_children()) - others:
            worker.terminate()
        if isinstance(error, BrokenProcessPool):
            raise StorageError(
                "a worker was killed, perhaps for its memory: give fewer --workers or less "
                "--shard-mb, and run again"
            ) from error
        raise


def _follow_parent(environment: dict[str, str]) -> None:
    """Workers leave Ctrl-C to the parent, and do not go on writing when it was killed."""
    os.environ.clear()
    os.environ.update(environment)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = multiprocessing.parent_process()
    assert parent is not None

    def watch() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


class Progress:
    """A bar on a terminal, elsewhere a line now and then."""

    def __init__(self, num_images: int) -> None:
        self._bar = tqdm(total=num_images, unit=" images", disable=not sys.stderr.isatty())
        self._num_images = num_images
        self._done = 0
        self._began = self._last_line = time.monotonic()

    def add(self, written: WrittenShard) -> None:
        """Count a finished shard and name what it left out."""
        for path, reason in written.unreadable:
            tqdm.write(f"unreadable: {printable(path)}: {reason}", file=sys.stderr)
        num_images = written.shard.num_samples + len(written.unreadable)
        self._done += num_images
        self._bar.update(num_images)

    def until_line_s(self) -> float:
        """Seconds until a line is due."""
        return max(0.0, self._last_line + REPORT_S - time.monotonic())

    def show_line(self) -> None:
        """Print the state, when that is due and nobody sees the bar."""
        if self.until_line_s() > 0:
            return
        self._last_line = time.monotonic()
        if self._bar.disable:
            rate = self._done / (self._last_line - self._began)
            line = f"{self._done:,} of {self._num_images:,} images, {rate:,.0f} images/s"
            print(line, file=sys.stderr, flush=True)

    def close(self) -> None:
        """Leave the terminal to others."""
        self._bar.close()


def _manifest(folder: ImageFolder, written: Sequence[WrittenShard]) -> DatasetManifest:
    shards = tuple(each.shard for each in written)
    num_samples = sum(shard.num_samples for shard in shards)
    if not num_samples:
        raise DataError(f"none of {len(folder.images):,} images can be read; no manifest written")
    return DatasetManifest(
        num_samples=num_samples,
        num_bytes=sum(shard.num_bytes for shard in shards),
        classes=folder.classes,
        shards=shards,
    )


def _remove_leftovers(storage: Storage, destination: str, manifest: DatasetManifest) -> None:
    """Shards of a stopped run with other settings, which a glob would take for ours."""
    ours = {name for shard in manifest.shards for name in (shard.name, shard.index)}
    for name in storage.names(destination):
        if _SHARD_FILE.fullmatch(name) and name not in ours:
            storage.delete(join(destination, name))


def _summary(folder: ImageFolder, manifest: DatasetManifest, seconds: float) -> str:
    num_left_out = len(folder.images) - manifest.num_samples
    shards = "1 shard" if len(manifest.shards) == 1 else f"{len(manifest.shards):,} shards"
    return (
        f"{manifest.num_samples:,} images of {len(folder.classes):,} classes in {shards}, "
        f"{manifest.num_bytes / 1e6:,.1f} MB, {len(folder.images) / seconds:,.0f} images/s\n"
        f"left out: {num_left_out:,} unreadable images; "
        f"ignored: {folder.num_ignored:,} files that are hidden or no images by name"
    )


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description="Turn an image folder into data shards, their indexes and a manifest.",
        epilog="example: python data_tools/sample_data.py datasets/digits && "
        "python data_tools/shard.py datasets/digits/train datasets/digits-train",
    )
    parser.add_argument("source", metavar="SOURCE", help="folder with a sub-folder for each class")
    parser.add_argument("destination", metavar="DESTINATION", help="folder or s3://bucket/prefix")
    parser.add_argument("--shard-mb", type=float, default=256, help="target size (default: 256)")
    parser.add_argument(
        "--workers",
        type=int,
        default=len(os.sched_getaffinity(0)),
        help="processes, each holding one shard in memory (default: one a core)",
    )
    parser.add_argument("--seed", type=int, default=0, help="of the shuffle (default: 0)")
    _add_storage_options(parser.add_argument_group("S3", "credentials come from the AWS chain"))
    return parser


def _add_storage_options(group: argparse._ArgumentGroup) -> None:
    group.add_argument("--endpoint-url", metavar="URL", help="of a store other than AWS")
    group.add_argument("--profile", help="in ~/.aws/config")
    group.add_argument("--region")
    group.add_argument("--addressing-style", choices=("auto", "path", "virtual"))
    group.add_argument(
        "--checksum",
        choices=("when_supported", "when_required"),
        help="when_required suits older stores",
    )


if __name__ == "__main__":
    sys.exit(main())
