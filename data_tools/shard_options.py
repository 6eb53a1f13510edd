"""The command line of shard.py."""

import argparse
import math
import os
from collections.abc import Sequence
from pathlib import Path

from mixer_dist.cli.storage_options import add_storage_options
from mixer_dist.data.image_list import is_list
from mixer_dist.data.manifest import MANIFEST_NAME
from mixer_dist.errors import ConfigError


def parse(description: str | None, argv: Sequence[str] | None) -> argparse.Namespace:
    """The arguments; ends the program for --help and for unknown options."""
    parser = argparse.ArgumentParser(
        description=description,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="example: python data_tools/sample_data.py datasets/digits && "
        "python data_tools/shard.py datasets/digits/train datasets/digits-train",
    )
    parser.add_argument("source", metavar="SOURCE", help="folder of class folders, .csv or .jsonl")
    parser.add_argument("destination", metavar="DESTINATION", help="folder or s3://bucket/prefix")
    _add_shape_options(parser)
    _add_image_options(parser)
    add_storage_options(parser)
    return parser.parse_args(argv)


def _add_shape_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--shard-mb", type=float, default=256, help="target size (default: 256)")
    parser.add_argument(
        "--workers",
        type=int,
        default=len(os.sched_getaffinity(0)),
        help="processes, each holding one shard in memory (default: one a core)",
    )
    parser.add_argument("--seed", type=int, default=0, help="of the shuffle (default: 0)")
    parser.add_argument(
        "--classes",
        metavar="FILE",
        help="class names, one a line in the order of their numbers (default: sorted by name)",
    )
    parser.add_argument(
        "--val-fraction",
        type=float,
        metavar="F",
        help="write DESTINATION/train and DESTINATION/val, split by a hash of each image's path",
    )
    parser.add_argument(
        "--dry-run", action="store_true", help="do all of it, but write nothing; say what it gives"
    )


def _add_image_options(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("images")
    group.add_argument(
        "--resize-short-side", type=int, metavar="PX", help="make larger images as small as this"
    )
    group.add_argument(
        "--quality", type=int, default=90, help="of the JPEGs that this gives (default: 90)"
    )
    group.add_argument(
        "--deduplicate", action="store_true", help="of files with the same bytes keep the first"
    )
    group.add_argument(
        "--exclude",
        metavar="MANIFEST",
        nargs="+",
        action="extend",
        default=[],
        help="leave out copies of the images in these datasets, also resized or re-encoded ones",
    )
    group.add_argument(
        "--exclude-distance",
        type=int,
        default=4,
        metavar="BITS",
        help="of 64 in a perceptual hash, by which a copy may differ (default: 4)",
    )
    group.add_argument(
        "--no-decode-check",
        action="store_false",
        dest="decode_check",
        help="trust that every image can be decoded",
    )


def check(arguments: argparse.Namespace) -> None:
    """Refuse what cannot work; ConfigError."""
    _check_places(arguments)
    if not math.isfinite(arguments.shard_mb) or arguments.shard_mb <= 0:
        raise ConfigError(f"--shard-mb must be above 0, got {arguments.shard_mb}")
    if arguments.workers < 1:
        raise ConfigError(f"--workers must be at least 1, got {arguments.workers}")
    if arguments.val_fraction is not None and not 0 < arguments.val_fraction < 1:
        raise ConfigError(f"--val-fraction must lie between 0 and 1, got {arguments.val_fraction}")
    if arguments.resize_short_side is not None and arguments.resize_short_side < 1:
        raise ConfigError(
            f"--resize-short-side must be at least 1, got {arguments.resize_short_side}"
        )
    if not 1 <= arguments.quality <= 100:
        raise ConfigError(f"--quality must be 1 to 100, got {arguments.quality}")
    if not 0 <= arguments.exclude_distance <= 64:
        raise ConfigError(f"--exclude-distance must be 0 to 64, got {arguments.exclude_distance}")
    if not arguments.decode_check and (arguments.exclude or arguments.resize_short_side):
        raise ConfigError(
            "--exclude and --resize-short-side decode every image: leave --no-decode-check out"
        )


def _check_places(arguments: argparse.Namespace) -> None:
    source, destination = arguments.source, arguments.destination
    if is_list(source):
        return
    if "://" in source:
        raise ConfigError(
            f"SOURCE must be a local folder, or a list that ends in .csv or .jsonl, got {source}"
        )
    if (Path(source) / MANIFEST_NAME).exists():
        raise ConfigError(f"{source} holds a {MANIFEST_NAME}: it is a dataset already, not images")
    if "://" not in destination and Path(destination).resolve().is_relative_to(
        Path(source).resolve()
    ):
        raise ConfigError(f"DESTINATION {destination} lies in SOURCE: choose a place outside of it")
