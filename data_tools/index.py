"""python data_tools/index.py TARS DESTINATION: tars that others wrote become a dataset, in place.

TARS are files or URLs such as 'https://host/train-{0000..1023}.tar', 's3://bucket/train-*.tar' or
'hf://datasets/timm/imagenet-1k-wds/imagenet1k-train-{0000..1023}.tar'; they stay where and as they
are. DESTINATION receives an index for each, and manifest.json, whose appearance says that all is
there. Whatever the number of workers, the result is the same; a stopped run is gone on with.
"""

import argparse
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # works from a bare checkout

from data_tools.command import exit_code_of
from data_tools.destination import check_destination, check_reachable
from data_tools.label_range import LabelRange, add_class_arguments, class_names
from data_tools.tar_pool import add_workers_argument, each_tar
from data_tools.tar_records import TarRecord, TarRecords
from data_tools.tar_urls import expand_tars, whole_path
from mixer_dist.cli.storage_options import add_storage_options, open_storage
from mixer_dist.data.labels import ShardLabels, shard_labels, write_labels
from mixer_dist.data.manifest import MANIFEST_NAME, DatasetManifest, Shard
from mixer_dist.data.tar_index import IndexOptions
from mixer_dist.errors import ConfigError, DataError
from mixer_dist.storage import join


def main(argv: Sequence[str] | None = None) -> int:
    """Index as the arguments say; the exit code."""
    arguments = _parser().parse_args(argv)
    return exit_code_of(
        "index.py", lambda: _index(arguments), if_interrupted="the same command goes on from here"
    )


def _index(arguments: argparse.Namespace) -> int:
    _check(arguments)
    storage, destination = open_storage(arguments), whole_path(arguments.destination)
    classes = class_names(arguments.classes)
    check_destination(storage, destination)
    urls = expand_tars(storage, arguments.tars)
    check_reachable(urls, destination)

    records = TarRecords(storage, destination, urls, _options(arguments))
    num_classes = len(classes) if classes else arguments.num_classes
    label_range = LabelRange(num_classes, arguments.first_class)
    done = _index_all(records, label_range, len(urls), arguments.workers)
    labels = None
    if arguments.first_class:
        label_range.check_complete()
        shifted = _shifted(records, len(urls), arguments.first_class)
        labels = write_labels(storage, destination, shifted)

    manifest = _manifest([record.shard for record in done], classes, labels)
    storage.write(join(destination, MANIFEST_NAME), manifest.to_json())
    records.remove()
    print(_summary(manifest, sum(record.num_without_image for record in done)))
    print(f"{label_range}\nmanifest: {join(destination, MANIFEST_NAME)}")
    return 0


def _index_all(
    records: TarRecords, label_range: LabelRange, num_tars: int, num_workers: int
) -> list[TarRecord]:
    """The records in the order of the tars, without the labels, of which there may be many."""
    done: dict[int, TarRecord] = {}
    for number, record in each_tar(records.index, num_tars, num_workers):
        label_range.add(record.state.url, record.labels)
        done[number] = record.model_copy(update={"labels": ()})
    return [done[number] for number in range(num_tars)]


def _shifted(records: TarRecords, num_tars: int, first_class: int) -> Iterator[ShardLabels]:
    """Every tar's labels, counted from 0."""
    for number in range(num_tars):
        labels = records.load(number).labels
        yield shard_labels([label - first_class for label in each or ()] for each in labels)


def _manifest(
    shards: Sequence[Shard], classes: tuple[str, ...] | None, labels: str | None
) -> DatasetManifest:
    num_samples = sum(shard.num_samples for shard in shards)
    if not num_samples:
        raise DataError("no sample is left: --fraction is too small for this many")
    return DatasetManifest(
        num_samples=num_samples,
        num_bytes=sum(shard.num_bytes for shard in shards),
        classes=classes,
        labels=labels,
        shards=tuple(shards),
    )


def _summary(manifest: DatasetManifest, num_without_image: int) -> str:
    num_tars = "1 tar" if len(manifest.shards) == 1 else f"{len(manifest.shards):,} tars"
    summary = (
        f"{manifest.num_samples:,} samples in {num_tars}, {manifest.num_bytes / 1e6:,.1f} MB; "
        f"left out: {num_without_image:,} without an image"
    )
    if any(shard.sha256 is None for shard in manifest.shards):
        summary += "\n--headers-only: no image was read, and no CRC will be checked in training"
    return summary


def _check(arguments: argparse.Namespace) -> None:
    if not 0 < arguments.fraction <= 1:
        raise ConfigError(f"--fraction must be above 0 and at most 1, got {arguments.fraction}")
    if arguments.num_classes is not None and arguments.num_classes < 1:
        raise ConfigError(f"--num-classes must be at least 1, got {arguments.num_classes}")


def _options(arguments: argparse.Namespace) -> IndexOptions:
    return IndexOptions(
        headers_only=arguments.headers_only,
        fraction=arguments.fraction,
        skip_without_image=arguments.skip_without_image,
    )


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description="Make a dataset of webdataset tars that others wrote, in place.",
        epilog="example: python data_tools/index.py 'tars/train-{0000..0063}.tar' datasets/train",
    )
    parser.add_argument("tars", metavar="TARS", nargs="+", help="files or URLs, with {0..9} or *")
    parser.add_argument("destination", metavar="DESTINATION", help="folder or s3://bucket/prefix")
    parser.add_argument(
        "--headers-only",
        action="store_true",
        help="jump over the images: quick, but training then checks no CRC",
    )
    parser.add_argument(
        "--fraction",
        type=float,
        default=1.0,
        help="of the samples, chosen by their keys; 0.01 lies within 0.1 (default: 1)",
    )
    parser.add_argument(
        "--skip-without-image", action="store_true", help="leave such samples out, else an error"
    )
    parser.add_argument(
        "--first-class", type=int, default=0, help="1 where labels count from 1 (default: 0)"
    )
    add_workers_argument(parser)
    add_class_arguments(parser)
    add_storage_options(parser)
    return parser


if __name__ == "__main__":
    sys.exit(main())
