"""A checkpoint's names and its manifest; pure, nothing is read or written here.

The manifest ends with the SHA-256 of all bytes before it, so that no change of it goes unseen. A
parameter and its moments are cut alike: part i of a tensor is [cuts[i], cuts[i + 1]) and lies in
files[i]. A gap or an overlap cannot be written down.
"""

import hashlib
import json
import platform
import re
from collections.abc import Iterable, Mapping, Sequence
from math import prod
from typing import Annotated, Any, Literal

import torch
from pydantic import Field, model_validator

from mixer_dist import __version__
from mixer_dist.checkpoint.pieces import KINDS
from mixer_dist.errors import CheckpointError, RefusedError
from mixer_dist.sections import Section

MANIFEST_NAME = "manifest.json"
NEWEST_VERSION = 1  # of the manifest

TOMBSTONE_NAME = "tombstone.json"

# Also what a disk calls it while it is being written.
_PIECES_FILE = re.compile(r"^\.?pieces-(\d{4,})-\d{5,}\.safetensors(\..*\.tmp)?$")
_SEAL = b',"sha256":"'  # what stands before the manifest's own hash

Count = Annotated[int, Field(ge=0)]


class TrainingState(Section):
    """What a run is beside its weights and moments."""

    step: Count
    """Steps done."""
    num_updates: Count
    """Steps that changed the weights: what Adam's bias correction counts."""
    position: Count
    """The next global sample."""
    skipped: tuple[tuple[int, int], ...] = ()
    """Windows [start, stop) of positions that are never read."""
    num_bad_samples: Count = 0
    """Damaged samples met in the whole run."""


class FileEntry(Section):
    """One file of pieces."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9._-]+\.safetensors$")]
    num_bytes: Count
    sha256: Annotated[str, Field(pattern="^[0-9a-f]{64}$")]


class ParameterEntry(Section):
    """How a parameter and its moments are cut, and which file holds each part."""

    shape: tuple[Count, ...]
    cuts: tuple[Count, ...]
    files: tuple[Count, ...]

    @model_validator(mode="after")
    def _covers_the_tensor(self) -> "ParameterEntry":
        ascending = all(a < b for a, b in zip(self.cuts, self.cuts[1:], strict=False))
        ends = self.cuts[:1] == (0,) and self.cuts[-1] == prod(self.shape)
        if not (ascending and ends and len(self.files) == len(self.cuts) - 1):
            raise ValueError(f"cuts {self.cuts[:4]}… do not cover a tensor of shape {self.shape}")
        return self


class WrittenBy(Section):
    """Who wrote a checkpoint."""

    engine: str
    world_size: Count
    versions: dict[str, str]


class CheckpointManifest(TrainingState):
    """What manifest.json holds; writing it commits the checkpoint."""

    format: Literal["mixer_dist.checkpoint"] = "mixer_dist.checkpoint"
    version: Literal[1] = 1
    attempt: Count
    config: dict[str, Any]
    dataset: str | None
    parameters: dict[str, ParameterEntry]
    files: tuple[FileEntry, ...]
    written_by: WrittenBy

    @model_validator(mode="after")
    def _names_its_files(self) -> "CheckpointManifest":
        used = {index for entry in self.parameters.values() for index in entry.files}
        if used and max(used) >= len(self.files):
            raise ValueError(
                f"a parameter lies in file {max(used)}, only {len(self.files)} are named"
            )
        return self

    @property
    def kinds(self) -> tuple[str, ...]:
        """Of its tensors: the parameter and the moments that its optimizer has."""
        return KINDS[self.config.get("optimizer", {}).get("name", "adamw")]

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """The full shape of each parameter."""
        return {fqn: entry.shape for fqn, entry in self.parameters.items()}

    @property
    def state(self) -> TrainingState:
        """The counters alone."""
        return TrainingState(**{name: getattr(self, name) for name in TrainingState.model_fields})

    def to_json(self) -> bytes:
        """The file's content, sealed."""
        return sealed(self.model_dump_json().encode())


def sealed(content: bytes) -> bytes:
    """A JSON object with one more field at its end: the SHA-256 of all bytes before that."""
    body = content.removesuffix(b"}")
    return body + _SEAL + hashlib.sha256(body).hexdigest().encode() + b'"}'


def unsealed(data: bytes) -> Any:
    """The object that was sealed, or one that never was; ValueError where bytes were changed."""
    tree = json.loads(data)
    if isinstance(tree, dict) and "sha256" in tree:
        if data != sealed(data.rpartition(_SEAL)[0] + b"}"):
            raise ValueError("it does not have its SHA-256: bytes were changed")
        del tree["sha256"]
    return tree


class Tombstone(Section):
    """Announces that a checkpoint will be removed; it is none from now on."""

    attempt: Count
    """Of the checkpoint that is meant: one that a later attempt commits here is not."""
    token: str
    """Differs from one announcement to the next."""


def check_version(tree: Any, url: str) -> None:
    """RefusedError where a manifest is of a version that did not exist yet."""
    version = tree.get("version") if isinstance(tree, dict) else None
    if isinstance(version, int) and version > NEWEST_VERSION:
        raise RefusedError(
            f"{url} was written by a newer mixer_dist: its format has version {version}, this one "
            f"reads up to {NEWEST_VERSION}. Install the newer one, or choose another run_dir"
        )


def pieces_file(attempt: int, rank: int) -> str:
    """The file into which a rank writes its pieces."""
    return f"pieces-{attempt:04d}-{rank:05d}.safetensors"


def pieces_attempt(name: str) -> int | None:
    """The attempt that wrote a file of pieces, whole or in part; None for other files."""
    match = _PIECES_FILE.match(name)
    return int(match[1]) if match else None


def piece_key(kind: str, fqn: str, start: int) -> str:
    """A piece's key in its file; zero-padded, so that text order is numeric order."""
    return f"{kind}.{fqn}@{start:012d}"


def parameter_entries(
    shapes: Mapping[str, Sequence[int]], held: Iterable[tuple[str, int, int, int]]
) -> dict[str, ParameterEntry]:
    """Entries from all ranks' (fqn, start, stop, file); CheckpointError at a gap or overlap."""
    ranges: dict[str, list[tuple[int, int, int]]] = {fqn: [] for fqn in shapes}
    for fqn, start, stop, file in held:
        ranges[fqn].append((start, stop, file))
    return {fqn: _entry(fqn, shapes[fqn], sorted(found)) for fqn, found in ranges.items()}


def _entry(
    fqn: str, shape: Sequence[int], ranges: Sequence[tuple[int, int, int]]
) -> ParameterEntry:
    starts = [start for start, _, _ in ranges]
    stops = [stop for _, stop, _ in ranges]
    if [0, *stops] != [*starts, prod(shape)]:
        raise CheckpointError(f"the ranks' pieces do not tile {fqn}: {ranges[:4]}")
    return ParameterEntry(
        shape=tuple(shape), cuts=(0, *stops), files=tuple(file for _, _, file in ranges)
    )


def versions() -> dict[str, str]:
    """Package versions that decide the bits of a run."""
    return {
        "mixer_dist": __version__,
        "torch": torch.__version__,
        "python": platform.python_version(),
    }
