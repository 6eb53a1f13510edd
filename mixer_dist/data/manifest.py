"""A dataset on storage: manifest.json, data shards (plain webdataset tars) and their indexes."""

import hashlib
import json
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Annotated, Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from mixer_dist.errors import ConfigError, DataError, MissingError
from mixer_dist.sections import Section, parse
from mixer_dist.storage import Storage, join, parent

MANIFEST_NAME = "manifest.json"

INDEX_ROW = np.dtype([("offset", "<u8"), ("num_bytes", "<u4"), ("crc32", "<u4")])
"""One sample of an index: its whole span of the tar, headers included; crc32 0 is unchecked."""

Index = NDArray[np.void]
Count = Annotated[int, Field(ge=0)]
Sha256 = Annotated[str, Field(pattern="^[0-9a-f]{64}$")]
LabelsName = Annotated[str, Field(pattern=r"^(.*/)?labels-[0-9a-f]{64}\.safetensors$")]

NUM_READS = 3  # of an index whose hash is wrong, before it counts as another file
LONGEST_LINE = 600  # of what is wrong with a manifest, which may be wrong in every shard


class Shard(Section):
    """One tar of a dataset."""

    name: str
    """Relative to the manifest, a URL or an absolute path."""
    num_samples: Count
    num_bytes: Count
    sha256: Sha256 | None
    index: str
    """Relative to the manifest, a URL or an absolute path."""
    index_sha256: Sha256


class DatasetManifest(Section):
    """What manifest.json holds."""

    format: Literal["mixer_dist.dataset"] = "mixer_dist.dataset"
    version: Literal[1] = 1
    num_samples: Count
    num_bytes: Count
    classes: tuple[str, ...] | None
    labels: LabelsName | None = None
    """A file, named after its SHA-256, whose labels stand in for those in the tars."""
    shards: tuple[Shard, ...]

    @property
    def first_samples(self) -> list[int]:
        """The place of each shard's first sample."""
        return list(accumulate((shard.num_samples for shard in self.shards[:-1]), initial=0))

    @property
    def labels_sha256(self) -> str | None:
        """Of the labels file, as its name says."""
        return self.labels and self.labels.removesuffix(".safetensors")[-64:]

    def to_json(self) -> bytes:
        """The file's bytes, the same for the same dataset."""
        return (json.dumps(self.model_dump(mode="json"), indent=1) + "\n").encode()


@dataclass(frozen=True)
class Part:
    """One shard of a dataset laid end to end, with the URLs that it resolves to."""

    shard: Shard
    url: str
    index_url: str
    labels_url: str | None
    """A labels file of which the next two say where this shard's labels are."""
    number: int
    """Of the shard in its manifest."""
    first_sample: int
    """Of the shard, counted over its manifest."""


@dataclass(frozen=True)
class Dataset:
    """Manifests laid end to end, each as often as it is repeated: what a run reads."""

    parts: tuple[Part, ...]
    classes: tuple[str, ...] | None
    fingerprint: str

    @property
    def shard_sizes(self) -> list[int]:
        """Samples in each shard."""
        return [part.shard.num_samples for part in self.parts]

    @property
    def num_samples(self) -> int:
        """Samples in an epoch."""
        return sum(self.shard_sizes)

    @property
    def num_bytes(self) -> int:
        """Bytes of all tars in an epoch."""
        return sum(part.shard.num_bytes for part in self.parts)


def load_manifest(storage: Storage, url: str) -> DatasetManifest:
    """Read and check one manifest.json; MissingError, DataError."""
    try:
        tree = json.loads(storage.read(url))
        _check_format(tree)
        manifest = parse(DatasetManifest, tree, MANIFEST_NAME)
    except MissingError as error:
        raise MissingError(f"{error}; data_tools/shard.py writes a {MANIFEST_NAME}") from None
    except (ValueError, RecursionError, ConfigError) as error:
        problem = textwrap.shorten(str(error), LONGEST_LINE, placeholder=" …")
        raise DataError(f"{url} is not a dataset manifest: {problem}") from None
    _check(manifest, url)
    return manifest


def load_dataset(storage: Storage, sources: Sequence[tuple[str, int]]) -> Dataset:
    """Lay (manifest URL, repeats) end to end; DataError where their classes differ."""
    manifests = [(load_manifest(storage, url), url, repeats) for url, repeats in sources]
    first, first_url, _ = manifests[0]
    for manifest, url, _ in manifests:
        if manifest.classes != first.classes:
            raise DataError(f"the classes of {url} differ from those of {first_url}")
    parts = [part for m, url, repeats in manifests for part in _parts(m, url) * repeats]
    if not sum(part.shard.num_samples for part in parts):
        raise DataError(f"no samples in {', '.join(url for url, _ in sources)}")
    fingerprint = dataset_fingerprint([(manifest, repeats) for manifest, _, repeats in manifests])
    return Dataset(tuple(parts), first.classes, fingerprint)


def dataset_fingerprint(manifests: Sequence[tuple[DatasetManifest, int]]) -> str:
    """SHA-256 of what decides the samples: repeats, shards and classes, never paths."""
    content = [
        {
            "repeats": repeats,
            "shards": [
                shard.model_dump(include={"num_samples", "sha256", "index_sha256"})
                for shard in manifest.shards
            ],
            "classes": manifest.classes,
            "labels": manifest.labels_sha256,
        }
        for manifest, repeats in manifests
    ]
    canonical = json.dumps(content, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(canonical.encode()).hexdigest()


def load_index(storage: Storage, part: Part) -> Index:
    """The rows of a shard's index, checked against the manifest; DataError."""
    data = _read_index(storage, part)
    rows = np.frombuffer(data, INDEX_ROW)
    if len(rows) != part.shard.num_samples:
        raise DataError(
            f"{part.index_url}: expected {part.shard.num_samples} rows, found {len(rows)}"
        )
    return rows


def _read_index(storage: Storage, part: Part) -> bytes:
    """The bytes that the manifest's hash is of, read again where they were damaged on the way."""
    try:
        for _ in range(NUM_READS):
            data = storage.read(part.index_url, part.shard.num_samples * INDEX_ROW.itemsize)
            if hashlib.sha256(data).hexdigest() == part.shard.index_sha256:
                return data
    except MissingError as error:
        raise DataError(f"the index of {part.url} is missing: {error}") from error
    raise DataError(
        f"{part.index_url} is not the index that the manifest names: restore it, or make "
        "the dataset anew"
    )


def name_in(folder: str, url: str) -> str:
    """How a manifest in `folder` names a file: relative where it lies below, else as it is."""
    return url.removeprefix(folder.rstrip("/") + "/")


def _parts(manifest: DatasetManifest, url: str) -> list[Part]:
    base = parent(url)
    labels_url = manifest.labels and join(base, manifest.labels)
    return [
        Part(shard, join(base, shard.name), join(base, shard.index), labels_url, number, first)
        for number, (shard, first) in enumerate(
            zip(manifest.shards, manifest.first_samples, strict=True)
        )
    ]


def _check_format(tree: Any) -> None:
    if not isinstance(tree, dict) or {"format", "version"} - tree.keys():
        raise ValueError("expected format and version in it")


def _check(manifest: DatasetManifest, url: str) -> None:
    for count in ("num_samples", "num_bytes"):
        given, counted = getattr(manifest, count), sum(getattr(s, count) for s in manifest.shards)
        if counted != given:
            raise DataError(f"{url}: {count} is {given}, its shards hold {counted}")
    names = [name for s in manifest.shards for name in (s.name, s.index)] + [manifest.labels or ""]
    if outside := [name for name in names if "://" not in name and ".." in name.split("/")]:
        raise DataError(f"{url}: {outside[0]!r} leaves the manifest's folder")
