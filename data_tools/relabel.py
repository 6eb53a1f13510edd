"""python data_tools/relabel.py MANIFEST LABELS --output FOLDER: other labels, the same tars.

LABELS is a .csv with the columns key and label (or labels, separated by spaces), or a .jsonl of
{"key": …, "label": …} (or "labels": […]). FOLDER receives a labels file and a manifest.json that
names the old one's tars and indexes where they are; nothing that is there is changed.
"""

import argparse
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # works from a bare checkout

from data_tools.command import exit_code_of
from data_tools.destination import check_destination, check_reachable
from data_tools.label_list import read_label_list
from data_tools.label_range import LabelRange, add_class_arguments, class_names
from data_tools.tar_pool import Advance, add_workers_argument, each_tar
from data_tools.tar_urls import whole_path
from mixer_dist.cli.storage_options import add_storage_options, open_storage
from mixer_dist.data.image_files import printable
from mixer_dist.data.labels import ShardLabels, load_shard_labels, shard_labels, write_labels
from mixer_dist.data.manifest import (
    MANIFEST_NAME,
    DatasetManifest,
    Part,
    load_dataset,
    load_index,
    load_manifest,
    name_in,
)
from mixer_dist.data.tar_headers import TarError
from mixer_dist.data.tar_index import Labels, own_labels
from mixer_dist.data.tar_spans import TarHeaders, read_key, sample_at
from mixer_dist.errors import DataError
from mixer_dist.storage import Storage, join

NUM_NAMED = 5  # keys that a message names before it says how many more there are


def main(argv: Sequence[str] | None = None) -> int:
    """Relabel as the arguments say; the exit code."""
    arguments = _parser().parse_args(argv)
    return exit_code_of(
        "relabel.py", lambda: _relabel(arguments), if_interrupted="nothing was written"
    )


def _relabel(arguments: argparse.Namespace) -> int:
    storage, output = open_storage(arguments), whole_path(arguments.output)
    url = whole_path(arguments.manifest)
    manifest = load_manifest(storage, url)
    parts = load_dataset(storage, [(url, 1)]).parts
    classes = class_names(arguments.classes) or manifest.classes
    num_classes = len(classes) if classes else arguments.num_classes
    listed = read_label_list(arguments.labels)
    label_range = LabelRange(num_classes)
    label_range.add(arguments.labels, list(listed.values()))
    check_destination(storage, output)
    check_reachable([url for part in parts for url in (part.url, part.index_url)], output)

    relabelled = _relabel_all(storage, parts, listed, arguments)
    _check_all_labelled(relabelled)
    name = write_labels(storage, output, (each.labels for each in relabelled))
    _write_manifest(storage, output, manifest, parts, classes, name)
    print(_summary(manifest, listed, relabelled))
    print(f"manifest: {join(output, MANIFEST_NAME)}")
    return 0


@dataclass(frozen=True)
class Relabelled:
    """A shard's new labels."""

    labels: ShardLabels
    listed: tuple[str, ...]
    """Keys that the list names."""
    unlabelled: tuple[str, ...]
    """Keys that it does not name, and that keep no old label either."""


def _relabel_all(
    storage: Storage,
    parts: Sequence[Part],
    listed: Mapping[str, tuple[int, ...]],
    arguments: argparse.Namespace,
) -> list[Relabelled]:
    def relabel(number: int, advance: Advance) -> Relabelled:
        part = parts[number]
        try:
            return _relabel_shard(storage, part, listed, arguments.keep_others, advance)
        except TarError as error:
            raise DataError(f"{part.url}: {printable(str(error))}") from error

    done = dict(each_tar(relabel, len(parts), arguments.workers))
    return [done[number] for number in range(len(parts))]


def _relabel_shard(
    storage: Storage,
    part: Part,
    listed: Mapping[str, tuple[int, ...]],
    keep_others: bool,
    advance: Advance,
) -> Relabelled:
    tar = TarHeaders(storage, part.url, part.shard.num_bytes, advance)
    old = load_shard_labels(storage, part) if keep_others else None
    labels: list[tuple[int, ...]] = []
    found, unlabelled = [], []
    for index, row in enumerate(load_index(storage, part)):
        begin, end = int(row["offset"]), int(row["offset"]) + int(row["num_bytes"])
        key = read_key(tar, begin, end)
        new: Labels = listed.get(key)
        if new is not None:
            found.append(key)
        elif keep_others:
            new = tuple(old.of(index)) if old else own_labels(sample_at(tar, begin, end))
        if new is None:
            unlabelled.append(key)
        labels.append(new or ())
    return Relabelled(shard_labels(labels), tuple(found), tuple(unlabelled))


def _check_all_labelled(relabelled: Iterable[Relabelled]) -> None:
    if missing := [key for each in relabelled for key in each.unlabelled]:
        raise DataError(
            f"{len(missing):,} samples get no label: {_some(missing)}; add them to the list, or "
            "give --keep-others where the others keep the labels that they have"
        )


def _write_manifest(
    storage: Storage,
    output: str,
    old: DatasetManifest,
    parts: Sequence[Part],
    classes: tuple[str, ...] | None,
    labels: str,
) -> None:
    """The same shards, named from another folder."""
    shards = tuple(
        part.shard.model_copy(
            update={"name": name_in(output, part.url), "index": name_in(output, part.index_url)}
        )
        for part in parts
    )
    changes = {"shards": shards, "classes": classes, "labels": labels}
    storage.write(join(output, MANIFEST_NAME), old.model_copy(update=changes).to_json())


def _summary(
    manifest: DatasetManifest,
    listed: Mapping[str, tuple[int, ...]],
    relabelled: Sequence[Relabelled],
) -> str:
    used = {key for each in relabelled for key in each.listed}
    unknown = [key for key in listed if key not in used]
    num_relabelled = sum(len(each.listed) for each in relabelled)
    summary = f"{num_relabelled:,} of {manifest.num_samples:,} samples have labels of the list"
    if unknown:
        summary += f"\n{len(unknown):,} keys of the list are in no tar: {_some(unknown)}"
    return summary


def _some(keys: Sequence[str]) -> str:
    named = ", ".join(printable(key) for key in keys[:NUM_NAMED])
    return named if len(keys) <= NUM_NAMED else f"{named} and {len(keys) - NUM_NAMED:,} more"


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description="Give a dataset other labels, and leave its tars as they are.",
        epilog="example: python data_tools/relabel.py datasets/train/manifest.json labels.csv "
        "--output datasets/train-relabelled",
    )
    parser.add_argument("manifest", metavar="MANIFEST", help="of the dataset as it is")
    parser.add_argument("labels", metavar="LABELS", help="key,label lines: .csv or .jsonl")
    parser.add_argument("--output", metavar="FOLDER", required=True, help="of the new manifest")
    parser.add_argument(
        "--keep-others",
        action="store_true",
        help="samples that are not listed keep their labels, else an error",
    )
    add_workers_argument(parser)
    add_class_arguments(parser)
    add_storage_options(parser)
    return parser


if __name__ == "__main__":
    sys.exit(main())
