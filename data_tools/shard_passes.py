"""The passes that shard.py makes over all images on its workers: compare, exclude, write."""

from collections.abc import Mapping, Sequence
from contextlib import closing
from typing import NamedTuple

from data_tools.journal import Journal
from data_tools.shard_summary import name_left_out
from data_tools.workers import run_tasks
from mixer_dist.data.duplicates import find_duplicates, hash_contents, same_size_images
from mixer_dist.data.exclusion import ExcludedImages, Fingerprint, fingerprint_shard, gather
from mixer_dist.data.image_files import ImageFile, ImageSource, LeftOut
from mixer_dist.data.image_shards import Treatment, WrittenShard, write_image_shard
from mixer_dist.data.manifest import Part
from mixer_dist.progress import Progress
from mixer_dist.storage import Storage

BATCH_IMAGES = 1000  # that a worker compares at a time


class ShardTask(NamedTuple):
    """A shard that is to be written."""

    folder: str
    journal: Journal | None
    """None in a dry run, which writes nothing."""
    name: str
    """Without an extension."""
    images: list[ImageFile]

    @property
    def place(self) -> tuple[str, str]:
        """Folder and the tar's name."""
        return self.folder, f"{self.name}.tar"


Written = Mapping[tuple[str, str], WrittenShard]
"""Shards that are on storage, by folder and the tar's name."""


def compare_files(storage: Storage, source: ImageSource, num_workers: int) -> list[LeftOut]:
    """Exact copies of other images of the source."""
    images = same_size_images(source.images)
    starts = range(0, len(images), BATCH_IMAGES)
    batches = [images[start : start + BATCH_IMAGES] for start in starts]
    tasks = [(storage, source.root, batch) for batch in batches]
    hashes: dict[str, str] = {}
    with closing(Progress(len(images), "compared files")) as progress:
        for place, found in run_tasks(hash_contents, tasks, num_workers, progress):
            hashes |= found
            progress.add(len(batches[place]))
    return find_duplicates(hashes)


def read_excluded(
    storage: Storage, parts: Sequence[Part], max_distance: int, num_workers: int
) -> ExcludedImages:
    """Fingerprints of all images in other datasets."""
    tasks = [(storage, part) for part in parts]
    found: dict[int, list[Fingerprint]] = {}
    num_images = sum(part.shard.num_samples for part in parts)
    with closing(Progress(num_images, "excluded images")) as progress:
        for place, found[place] in run_tasks(fingerprint_shard, tasks, num_workers, progress):
            progress.add(len(found[place]))
    return gather((each for place in sorted(found) for each in found[place]), max_distance)


def write_shards(
    storage: Storage,
    root: str,
    tasks: Sequence[ShardTask],
    treatment: Treatment,
    finished: Written,
    num_workers: int,
) -> Written:
    """All shards, but for those that are finished; images left out are named as they turn up."""
    written = dict(finished)
    todo = [task for task in tasks if task.place not in finished]
    with closing(Progress(sum(len(task.images) for task in tasks))) as progress:
        for task in tasks:
            if task.place in finished:
                progress.skip(len(task.images))
                name_left_out(finished[task.place].left_out)
        arguments = [(storage, root, task, treatment) for task in todo]
        for at, done in run_tasks(write_and_record, arguments, num_workers, progress):
            written[todo[at].place] = done
            progress.add(len(todo[at].images))
            name_left_out(done.left_out)
    return written


def write_and_record(
    storage: Storage, root: str, task: ShardTask, treatment: Treatment
) -> WrittenShard:
    """One shard, then the note that it is there; in any process."""
    folder = task.folder if task.journal else None
    written = write_image_shard(storage, root, task.images, treatment, folder, task.name)
    if task.journal:
        task.journal.record(task.name, written.to_json())
    return written
