"""Features on storage: computed once for a model and a dataset, read by every task after that.

run_dir/evals/features/<model>-<dataset>-<resize>-<crop>/ holds parts that each rank has written,
the labels, and features.json, whose writing commits them. Should two workers write at once after
all (feature_turn.py), their files have different names, and the last to commit is the one that
counts.
"""

import hashlib
import json
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import numpy as np
import safetensors.numpy
from pydantic import Field
from safetensors import SafetensorError

from mixer_dist.errors import ConfigError, DataError, MissingError
from mixer_dist.eval.feature_set import FeaturePart, Features, FeatureSet, LabelLists
from mixer_dist.run_dir import RunDir
from mixer_dist.sections import NonNegativeInt, PositiveInt, Section, parse
from mixer_dist.storage import Storage, join

COMMIT_NAME = "features.json"
KEPT_MODELS = 8  # whose features were written last; those of older ones are removed

logger = logging.getLogger(__name__)


class FeatureKey(Section):
    """What decides features."""

    model: Annotated[str, Field(pattern="^[0-9a-f]{64}$")]
    """SHA-256 of the checkpoint's manifest."""
    dataset: Annotated[str, Field(pattern="^[0-9a-f]{64}$")]
    """Its fingerprint."""
    resize_px: PositiveInt
    crop_px: PositiveInt

    @property
    def folder(self) -> str:
        return f"{self.model[:16]}-{self.dataset[:16]}-{self.resize_px}-{self.crop_px}"


class StoredFile(Section):
    """A safetensors file of features or labels."""

    name: Annotated[str, Field(pattern=r"^[a-z0-9-]+\.safetensors$")]
    num_images: NonNegativeInt
    num_bytes: NonNegativeInt
    sha256: str


class FeatureEntry(Section):
    """What features.json holds."""

    format: Literal["mixer_dist.features"] = "mixer_dist.features"
    version: Literal[1] = 1
    key: FeatureKey
    parts: tuple[StoredFile, ...]
    """In storage order of the images."""
    labels: StoredFile


@dataclass(frozen=True)
class FeatureFolder:
    """The features of one key."""

    storage: Storage
    run_dir: RunDir
    key: FeatureKey

    @property
    def url(self) -> str:
        return join(self.run_dir.features, self.key.folder)

    def find(self) -> FeatureEntry | None:
        """What is committed, whole by its sizes; None where there is nothing such."""
        try:
            entry = self._read_entry()
            files = [*entry.parts, entry.labels]
            sizes = [self.storage.size(join(self.url, file.name)) for file in files]
        except MissingError:
            return None
        except (ValueError, ConfigError) as error:
            logger.warning("%s is computed again: %s", self.url, error)
            return None
        is_whole = sizes == [file.num_bytes for file in files]
        return entry if is_whole and entry.key == self.key else None

    def write(self, name: str, num_images: int, arrays: Mapping[str, Any]) -> StoredFile:
        """One file, not yet part of an entry."""
        data = safetensors.numpy.save({key: np.ascontiguousarray(a) for key, a in arrays.items()})
        self.storage.write(join(self.url, name), data)
        sha256 = hashlib.sha256(data).hexdigest()
        return StoredFile(name=name, num_images=num_images, num_bytes=len(data), sha256=sha256)

    def commit(self, parts: Sequence[StoredFile], labels: StoredFile) -> FeatureEntry:
        """Make files the features of this key."""
        entry = FeatureEntry(key=self.key, parts=tuple(parts), labels=labels)
        self.storage.write(join(self.url, COMMIT_NAME), entry.model_dump_json().encode())
        return entry

    def open(self, entry: FeatureEntry, classes: Sequence[str] | None) -> FeatureSet:
        """The features, whose files are read and checked as they are needed; DataError."""
        labels = self._read(entry.labels)
        parts = [FeaturePart(file.num_images, self._reader(file)) for file in entry.parts]
        return FeatureSet(parts, LabelLists(labels["values"], labels["counts"]), classes)

    def _reader(self, file: StoredFile) -> Callable[[], Features]:
        def read() -> Features:
            features: Features = self._read(file)["features"]
            return features

        return read

    def _read_entry(self) -> FeatureEntry:
        url = join(self.url, COMMIT_NAME)
        return parse(FeatureEntry, json.loads(self.storage.read(url)), url)

    def _read(self, file: StoredFile) -> dict[str, Any]:
        url = join(self.url, file.name)
        try:
            data = self.storage.read(url, file.num_bytes)
            if hashlib.sha256(data).hexdigest() != file.sha256:
                raise ValueError("its SHA-256 is wrong")
            return safetensors.numpy.load(data)
        except (MissingError, ValueError, SafetensorError) as error:
            self.storage.delete(join(self.url, COMMIT_NAME))
            raise DataError(
                f"cached features are damaged, or were removed meanwhile: {url}: {error}: "
                "the same command computes them again"
            ) from None


def remove_old(storage: Storage, run_dir: RunDir) -> None:
    """Remove the features of all models but those whose features were written last."""
    written: dict[str, list[tuple[float, str]]] = {}
    for folder in storage.names(run_dir.features):
        model = folder.partition("-")[0]
        written.setdefault(model, []).append((_written(storage, run_dir, folder), folder))
    newest_first = sorted(written.values(), key=max, reverse=True)
    for folders in newest_first[KEPT_MODELS:]:
        for _, folder in folders:
            _remove(storage, join(run_dir.features, folder))


def _written(storage: Storage, run_dir: RunDir, folder: str) -> float:
    """When it was committed, or begun."""
    url = join(run_dir.features, folder)
    names = storage.names(url)
    name = COMMIT_NAME if COMMIT_NAME in names else next(iter(names), "")
    try:
        return storage.modified(join(url, name))
    except MissingError:  # removed just now
        return 0.0


def _remove(storage: Storage, url: str) -> None:
    """The commit goes first, so that nobody begins to read."""
    storage.delete(join(url, COMMIT_NAME))
    for name in storage.names(url):
        storage.delete(join(url, name))
    storage.delete_folder(url)
    logger.info("removed the features of an older model: %s", url)
