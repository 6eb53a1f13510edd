"""What shard.py says of the images it leaves out, and at its end."""

from collections import Counter
from collections.abc import Iterable, Sequence
from typing import get_args

from mixer_dist.data.image_files import ImageSource, LeftOut, Reason, printable
from mixer_dist.data.image_shards import WrittenShard
from mixer_dist.data.manifest import DatasetManifest
from mixer_dist.progress import say


def name_left_out(left_out: Iterable[LeftOut]) -> None:
    """A line for each, on stderr."""
    for each in left_out:
        say(f"{each.reason}: {printable(each.path)}: {printable(each.detail)}")


def describe_dataset(url: str, manifest: DatasetManifest) -> str:
    """One line on what is in a dataset."""
    num_shards, classes = len(manifest.shards), manifest.classes
    shards = "1 shard" if num_shards == 1 else f"{num_shards:,} shards"
    of_classes = "" if classes is None else f" of {len(classes):,} classes"
    return (
        f"{url}: {manifest.num_samples:,} images{of_classes} in {shards}, "
        f"{manifest.num_bytes / 1e6:,.1f} MB"
    )


def describe_images(source: ImageSource, shards: Sequence[WrittenShard], seconds: float) -> str:
    """Lines on what became of all images."""
    counts = Counter(each.reason for each in source.left_out)
    left_out = ", ".join(f"{counts[reason]:,} {reason}" for reason in get_args(Reason))
    ignored = f"{source.num_ignored:,} files that are hidden or no images by name"
    lines = [f"left out: {left_out}; ignored: {ignored}"]
    if num_resized := sum(shard.num_resized for shard in shards):
        before = sum(shard.resized_from_bytes for shard in shards) / 1e6
        after = sum(shard.resized_to_bytes for shard in shards) / 1e6
        lines.append(f"resized: {num_resized:,} images, from {before:,.1f} to {after:,.1f} MB")
    lines.append(f"time: {seconds:,.1f} s")
    return "\n".join(lines)
