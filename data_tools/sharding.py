"""From a source to committed datasets, in the order in which it happens."""

import argparse
import json
import time
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path

from data_tools.dataset_folder import QUARANTINE_NAME, DatasetFolder, remove_temporaries
from data_tools.shard_passes import ShardTask, Written, compare_files, read_excluded, write_shards
from data_tools.shard_summary import describe_dataset, describe_images, name_left_out
from mixer_dist.cli.storage_options import open_storage
from mixer_dist.data.class_names import read_class_names
from mixer_dist.data.image_files import ImageFile, ImageSource
from mixer_dist.data.image_folder import scan_images
from mixer_dist.data.image_list import is_list, read_image_list
from mixer_dist.data.image_shards import Treatment, WrittenShard, mean_shrinkage
from mixer_dist.data.manifest import DatasetManifest, load_dataset
from mixer_dist.data.shard_plan import cut, fingerprint_plan, shuffle, split_off, without
from mixer_dist.errors import ConfigError, DataError
from mixer_dist.progress import say, watch
from mixer_dist.storage import join

SHRINKAGE_IMAGES = 64  # that are made smaller to foresee the size of shards

# The options that decide what is written; the others may change before a stopped run goes on.
DECIDING = (
    "shard_mb", "seed", "decode_check", "resize_short_side", "quality", "deduplicate",
    "exclude_distance", "val_fraction",
)  # fmt: skip
ENCODERS = ("simplejpeg", "torch")  # other versions may give other bytes


class Sharding:
    """One run of shard.py; what cannot work is refused when it is made."""

    def __init__(self, arguments: argparse.Namespace) -> None:
        self._arguments = arguments
        self._storage = open_storage(arguments)
        self._folders = [DatasetFolder(self._storage, url) for url in self._dataset_urls()]
        if not any(folder.is_marked for folder in self._folders):
            self._refuse_datasets()
        self._source = self._read_source()
        self._check_split()
        self._others = [load_dataset(self._storage, [(url, 1)]) for url in arguments.exclude]
        self._job = self._fingerprint()
        self._is_resumed = any(folder.journal.is_open(self._job) for folder in self._folders)
        if not self._is_resumed:
            self._refuse_datasets()

    def run(self) -> int:
        """Write all, or what an earlier run has left to do; the exit code."""
        is_dry = self._arguments.dry_run
        is_committed = all(folder.is_committed for folder in self._folders)
        if self._is_resumed and is_committed and not is_dry:
            return self._close()  # it was killed between its last manifest and its end
        began = time.monotonic()
        finished = {} if is_dry else self._begin()
        name_left_out(self._source.left_out)
        if self._arguments.deduplicate:
            copies = compare_files(self._storage, self._source, self._arguments.workers)
            name_left_out(copies)
            self._source = without(self._source, copies)
        datasets = self._write_shards(finished)
        manifests = [self._manifest(shards) for shards in datasets]
        every = [shard for shards in datasets for shard in shards]
        self._source = without(self._source, [each for one in every for each in one.left_out])
        for folder, manifest in zip(self._folders, manifests, strict=True):
            print(describe_dataset(folder.url, manifest))
        print(describe_images(self._source, every, time.monotonic() - began))
        if self._arguments.dry_run:
            print("dry run: nothing was written")
            return 0
        self._commit(manifests)
        return self._close()

    def _dataset_urls(self) -> list[str]:
        if self._arguments.val_fraction is None:
            return [self._arguments.destination]
        return [join(self._arguments.destination, name) for name in ("train", "val")]

    def _refuse_datasets(self) -> None:
        for folder in self._folders:
            folder.refuse_dataset()

    def _read_source(self) -> ImageSource:
        source, file = self._arguments.source, self._arguments.classes
        classes = read_class_names(self._storage, file) if file else None
        if is_list(source):
            return read_image_list(self._storage, source, classes, watch)
        return scan_images(Path(source), classes, watch)

    def _check_split(self) -> None:
        """Before anything is written."""
        for folder, images in zip(self._folders, self._sides(), strict=True):
            if not images:
                raise ConfigError(
                    f"--val-fraction {self._arguments.val_fraction} of "
                    f"{len(self._source.images):,} images leaves none for {folder.url}"
                )

    def _sides(self) -> Sequence[Sequence[ImageFile]]:
        """The images of each dataset."""
        images, fraction = self._source.images, self._arguments.val_fraction
        return [images] if fraction is None else split_off(images, fraction)

    def _fingerprint(self) -> str:
        settings = {name: getattr(self._arguments, name) for name in DECIDING}
        excluded = [dataset.fingerprint for dataset in self._others]
        versions = {name: version(name) for name in ENCODERS}
        return fingerprint_plan(self._source, settings | versions | {"excluded": excluded})

    def _begin(self) -> Written:
        """Open the journals; the shards that are there already."""
        remove_temporaries(self._storage, self._arguments.destination)
        finished = {
            (folder.url, name): written
            for folder in self._folders
            for name, written in folder.resume(self._job).items()
        }
        if finished:
            say(f"going on: {len(finished):,} finished shards are there already")
        elif any(folder.is_marked for folder in self._folders):
            say("the run that was stopped here had other images or settings: all is done anew")
        return finished

    def _write_shards(self, finished: Written) -> list[list[WrittenShard]]:
        """All shards of each dataset."""
        treatment = self._treatment()
        tasks = [
            task
            for folder, images in zip(self._folders, self._sides(), strict=True)
            for task in self._tasks(folder, images, treatment)
        ]
        root, num_workers = self._source.root, self._arguments.workers
        written = write_shards(self._storage, root, tasks, treatment, finished, num_workers)
        return [
            [written[task.place] for task in tasks if task.folder == folder.url]
            for folder in self._folders
        ]

    def _treatment(self) -> Treatment:
        arguments = self._arguments
        excluded = None
        if parts := [part for dataset in self._others for part in dataset.parts]:
            distance = arguments.exclude_distance
            excluded = read_excluded(self._storage, parts, distance, arguments.workers)
        return Treatment(
            decodes=arguments.decode_check,
            short_side_px=arguments.resize_short_side,
            quality=arguments.quality,
            excluded=excluded,
        )

    def _tasks(
        self, folder: DatasetFolder, images: Sequence[ImageFile], treatment: Treatment
    ) -> list[ShardTask]:
        images = shuffle(images, self._arguments.seed)
        shrinkage = 1.0
        if treatment.short_side_px:
            some = images[:SHRINKAGE_IMAGES]
            shrinkage = mean_shrinkage(self._storage, self._source.root, some, treatment)
        runs = cut(images, self._arguments.shard_mb * 1e6, shrinkage)
        journal = None if self._arguments.dry_run else folder.journal
        return [
            ShardTask(folder.url, journal, f"shard-{number:06d}", run)
            for number, run in enumerate(runs)
        ]

    def _manifest(self, written: Sequence[WrittenShard]) -> DatasetManifest:
        shards = tuple(each.shard for each in written)
        num_samples = sum(shard.num_samples for shard in shards)
        if not num_samples:
            num_images = sum(len(each.left_out) for each in written)
            raise DataError(f"none of {num_images:,} images can be used; no manifest written")
        return DatasetManifest(
            num_samples=num_samples,
            num_bytes=sum(shard.num_bytes for shard in shards),
            classes=self._source.classes,
            shards=shards,
        )

    def _commit(self, manifests: Sequence[DatasetManifest]) -> None:
        lines = [json.dumps(each._asdict()) + "\n" for each in sorted(self._source.left_out)]
        url = join(self._arguments.destination, QUARANTINE_NAME)
        self._storage.write(url, "".join(lines).encode())
        for folder, manifest in zip(self._folders, manifests, strict=True):
            folder.commit(manifest)

    def _close(self) -> int:
        """Forget what was only needed to go on."""
        for folder in self._folders:
            folder.close()
            print(f"manifest: {folder.manifest_url}")
        return 0
