"""python data_tools/verify.py MANIFEST: is every byte of a dataset what its manifest says?

Each tar is read whole, its samples tested one by one: size, SHA-256, index, CRC, members, label,
and with --decode the image. All damage is named, not only the first; the exit code is then 1.
"""

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from tqdm import tqdm

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # works from a bare checkout

from data_tools.command import exit_code_of
from data_tools.tar_pool import Advance, add_workers_argument, each_tar
from data_tools.tar_urls import whole_path
from mixer_dist.cli.storage_options import add_storage_options, open_storage
from mixer_dist.data.image_files import printable
from mixer_dist.data.manifest import DatasetManifest, Part, load_dataset, load_manifest
from mixer_dist.data.shard_check import Checks, Damage, check_shard
from mixer_dist.data.tar_spans import WholeTar
from mixer_dist.errors import MissingError
from mixer_dist.storage import Storage, join, parent


def main(argv: Sequence[str] | None = None) -> int:
    """Verify as the arguments say; the exit code."""
    arguments = _parser().parse_args(argv)
    return exit_code_of(
        "verify.py", lambda: _verify(arguments), if_interrupted="not all is verified"
    )


def _verify(arguments: argparse.Namespace) -> int:
    storage, url = open_storage(arguments), whole_path(arguments.manifest)
    manifest = load_manifest(storage, url)
    parts = load_dataset(storage, [(url, 1)]).parts
    checks = Checks(len(manifest.classes) if manifest.classes else None, arguments.decode)

    damages = _named(_labels_damages(storage, url, manifest))
    damages += _check_all(storage, parts, checks, arguments.workers)
    if arguments.json:
        print(json.dumps(_report(manifest, damages), indent=1))
    else:
        print(_summary(manifest, damages, arguments.decode))
    return 1 if damages else 0


def _check_all(
    storage: Storage, parts: Sequence[Part], checks: Checks, num_workers: int
) -> list[Damage]:
    """The damage of all shards in their order; named as it turns up."""

    def check(number: int, advance: Advance) -> list[Damage]:
        return check_shard(storage, parts[number], checks, advance)

    found: dict[int, list[Damage]] = {}
    for number, damages in each_tar(check, len(parts), num_workers):
        found[number] = _named(damages)
    return [damage for number in range(len(parts)) for damage in found[number]]


def _labels_damages(storage: Storage, url: str, manifest: DatasetManifest) -> list[Damage]:
    """What is wrong with the labels file as a whole."""
    if manifest.labels is None:
        return []
    labels_url = join(parent(url), manifest.labels)
    try:
        file = WholeTar(storage, labels_url, storage.size(labels_url), lambda num_bytes: None)
        if file.sha256() == manifest.labels_sha256:
            return []
        reason = "its SHA-256 is not the one in its name"
    except MissingError:
        reason = "missing"
    return [Damage(labels_url, None, "", reason)]


def _named(damages: list[Damage]) -> list[Damage]:
    for damage in damages:
        tqdm.write(_line(damage), file=sys.stderr)
    return damages


def _line(damage: Damage) -> str:
    if damage.index is None:
        return f"damaged: {damage.shard}: {damage.reason}"
    key = printable(damage.key) or "key unknown"
    return f"damaged: {damage.shard}, sample {damage.index}, {key}: {damage.reason}"


def _report(manifest: DatasetManifest, damages: Sequence[Damage]) -> dict[str, object]:
    return {
        "num_samples": manifest.num_samples,
        "num_shards": len(manifest.shards),
        "num_bytes": manifest.num_bytes,
        "num_without_sha256": sum(shard.sha256 is None for shard in manifest.shards),
        "damages": [asdict(damage) for damage in damages],
    }


def _summary(manifest: DatasetManifest, damages: Sequence[Damage], is_decoded: bool) -> str:
    num_unknown = sum(shard.sha256 is None for shard in manifest.shards)
    num_samples = sum(damage.index is not None for damage in damages)
    checked = "read and decoded" if is_decoded else "read, not decoded (--decode does that)"
    summary = (
        f"{manifest.num_samples:,} samples in {len(manifest.shards):,} shards, "
        f"{manifest.num_bytes / 1e6:,.1f} MB: {checked}\n"
    )
    if num_unknown:
        summary += f"{num_unknown:,} shards are indexed by headers only: CRCs are unchecked\n"
    if not damages:
        return summary + "no damage found"
    num_other = len(damages) - num_samples
    return summary + f"damaged: {num_samples:,} samples; {num_other:,} shards or files as a whole"


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description="Check every byte of a dataset against its manifest.",
        epilog="example: python data_tools/verify.py datasets/train/manifest.json --decode",
    )
    parser.add_argument("manifest", metavar="MANIFEST", help="file or URL")
    parser.add_argument("--decode", action="store_true", help="decode each image too")
    parser.add_argument("--json", action="store_true", help="print the result as JSON")
    add_workers_argument(parser)
    add_storage_options(parser)
    return parser


if __name__ == "__main__":
    sys.exit(main())
