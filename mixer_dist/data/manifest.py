"""A dataset on storage: manifest.json, data shards (plain webdataset tars) and their indexes."""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from mixer_dist.config import Section, parse
from mixer_dist.errors import ConfigError, DataError, MissingError
from mixer_dist.storage import Storage, join, parent

MANIFEST_NAME = "manifest.json"

INDEX_ROW = np.dtype([("offset", "<u8"), ("num_bytes", "<u4"), ("crc32", "<u4")])
"""One sample of an index: its whole span of the tar, headers included; crc32 0 is unchecked."""

Index = NDArray[np.void]
Count = Annotated[int, Field(ge=0)]
Sha256 = Annotated[str, Field(pattern="^[0-9a-f]{64}$")]


class Shard(Section):
    """One tar of a dataset."""

    name: str
    """Relative to the manifest, or a URL."""
    num_samples: Count
    num_bytes: Count
    sha256: Sha256 | None
    index: str
    """Relative to the manifest, or a URL."""
    index_sha256: Sha256


class DatasetManifest(Section):
    """What manifest.json holds."""

    format: Literal["mixer_dist.dataset"] = "mixer_dist.dataset"
    version: Literal[1] = 1
    num_samples: Count
    num_bytes: Count
    classes: tuple[str, ...] | None
    labels: str | None = None
    shards: tuple[Shard, ...]

    def to_json(self) -> bytes:
        """The file's bytes, the same for the same dataset."""
        return (json.dumps(self.model_dump(mode="json"), indent=1) + "\n").encode()


@dataclass(frozen=True)
class Part:
    """One shard of a dataset laid end to end, with the URLs that it resolves to."""

    shard: Shard
    url: str
    index_url: str


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
        manifest = parse(DatasetManifest, tree, url)
    except MissingError as error:
        raise MissingError(f"{error}; data_tools/shard.py writes a {MANIFEST_NAME}") from None
    except (ValueError, ConfigError) as error:
        raise DataError(f"not a dataset manifest: {' '.join(str(error).split())}") from None
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
            "labels": None,
        }
        for manifest, repeats in manifests
    ]
    canonical = json.dumps(content, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(canonical.encode()).hexdigest()


def load_index(storage: Storage, part: Part) -> Index:
    """The rows of a shard's index, checked against the manifest; DataError."""
    try:
        data = storage.read(part.index_url)
    except MissingError as error:
        raise DataError(f"the index of {part.url} is missing: {error}") from error
    if hashlib.sha256(data).hexdigest() != part.shard.index_sha256:
        raise DataError(f"{part.index_url} is not the index that the manifest names: shard anew")
    rows = np.frombuffer(data, INDEX_ROW)
    if len(rows) != part.shard.num_samples:
        raise DataError(
            f"{part.index_url}: expected {part.shard.num_samples} rows, found {len(rows)}"
        )
    return rows


def _parts(manifest: DatasetManifest, url: str) -> list[Part]:
    base = parent(url)
    return [
        Part(shard, join(base, shard.name), join(base, shard.index)) for shard in manifest.shards
    ]


def _check(manifest: DatasetManifest, url: str) -> None:
    counted = sum(shard.num_samples for shard in manifest.shards)
    if counted != manifest.num_samples:
        raise DataError(f"{url}: num_samples is {manifest.num_samples}, its shards hold {counted}")
    names: list[Any] = [name for s in manifest.shards for name in (s.name, s.index)]
    if outside := [name for name in names if "://" not in name and ".." in name.split("/")]:
        raise DataError(f"{url}: {outside[0]!r} leaves the manifest's folder")
    if manifest.labels:
        raise DataError(f"{url}: a labels file ({manifest.labels}) is not read by this version")
