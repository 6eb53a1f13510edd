"""Saving: each rank writes its pieces, then rank 0 commits by writing the manifest."""

import hashlib
import json
import struct
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mixer_dist import distributed
from mixer_dist.checkpoint.layout import (
    MANIFEST_NAME,
    CheckpointManifest,
    FileEntry,
    TrainingState,
    WrittenBy,
    parameter_entries,
    piece_key,
    pieces_file,
    versions,
)
from mixer_dist.checkpoint.pieces import Piece
from mixer_dist.errors import CheckpointError, MixerError
from mixer_dist.run_dir import Attempt, RunDir, check_not_superseded
from mixer_dist.storage import Storage, join

_ALIGNMENT = 8  # of the data in a safetensors file


@dataclass(frozen=True)
class Saver:
    """Writes checkpoints of one attempt."""

    storage: Storage
    run_dir: RunDir
    attempt: Attempt
    shapes: Mapping[str, tuple[int, ...]]

    def save(self, pieces: Sequence[Piece], state: TrainingState) -> str:
        """Write and commit a checkpoint, return its URL. All ranks must call this.

        CheckpointError on every rank, and nothing committed, where any rank failed.
        """
        url = self.run_dir.checkpoint(state.step)
        reports = _all_succeeded(distributed.gather(self._write_mine(url, pieces)))
        committed: dict[str, Any] = {}
        if distributed.is_main():
            committed = _outcome(lambda: self._commit(url, reports, state))
        _all_succeeded([distributed.share(committed)])
        return url

    def _write_mine(self, url: str, pieces: Sequence[Piece]) -> dict[str, Any]:
        name = pieces_file(self.attempt.attempt, distributed.rank())
        held = [(p.fqn, p.start, p.stop) for p in pieces if p.kind == "param"]

        def write() -> dict[str, Any]:
            entry = write_pieces(self.storage, url, name, pieces)
            return {"file": entry.model_dump(), "held": held}

        return _outcome(write)

    def _commit(
        self, url: str, reports: Sequence[dict[str, Any]], state: TrainingState
    ) -> dict[str, Any]:
        check_not_superseded(self.storage, self.run_dir, self.attempt)
        manifest = build_manifest(self.shapes, reports, state, self.attempt)
        self.storage.write(join(url, MANIFEST_NAME), manifest.model_dump_json().encode())
        return {}


def build_manifest(
    shapes: Mapping[str, tuple[int, ...]],
    reports: Sequence[dict[str, Any]],
    state: TrainingState,
    attempt: Attempt,
) -> CheckpointManifest:
    """The manifest of what all ranks report to have written."""
    held = [(*entry, file) for file, report in enumerate(reports) for entry in report["held"]]
    return CheckpointManifest(
        **state.model_dump(),
        attempt=attempt.attempt,
        config=attempt.config.model_dump(mode="json"),
        dataset=attempt.dataset,
        parameters=parameter_entries(shapes, held),
        files=tuple(FileEntry(**report["file"]) for report in reports),
        written_by=WrittenBy(
            engine=attempt.config.engine.name, world_size=len(reports), versions=versions()
        ),
    )


def write_pieces(storage: Storage, folder: str, name: str, pieces: Sequence[Piece]) -> FileEntry:
    """Write pieces as one safetensors file, straight from memory, hashed on the way."""
    arrays = {piece_key(p.kind, p.fqn, p.start): _host_array(p) for p in pieces}
    ordered = {key: arrays[key] for key in sorted(arrays)}
    header = safetensors_header(ordered)
    digest = hashlib.sha256()

    def parts() -> Iterator[Any]:
        nonlocal digest
        digest = hashlib.sha256()  # a second try starts anew
        buffers: list[Any] = [array.data for array in ordered.values()]
        for part in (header, *buffers):
            digest.update(part)
            yield part

    storage.write_parts(join(folder, name), parts)
    num_bytes = len(header) + sum(array.nbytes for array in ordered.values())
    return FileEntry(name=name, num_bytes=num_bytes, sha256=digest.hexdigest())


def safetensors_header(arrays: Mapping[str, NDArray[np.float32]]) -> bytes:
    """The head of a safetensors file of 1-D fp32 tensors; their CRC-32s lie in its metadata."""
    entries: dict[str, Any] = {
        "__metadata__": {key: f"{zlib.crc32(array.data):08x}" for key, array in arrays.items()}
    }
    end = 0
    for key, array in arrays.items():
        begin, end = end, end + array.nbytes
        entries[key] = {"dtype": "F32", "shape": [array.size], "data_offsets": [begin, end]}
    text = json.dumps(entries, separators=(",", ":")).encode()
    text += b" " * (-len(text) % _ALIGNMENT)
    return struct.pack("<Q", len(text)) + text


def _host_array(piece: Piece) -> NDArray[np.float32]:
    array: NDArray[np.float32] = piece.tensor.cpu().numpy()
    return array


def _outcome(action: Any) -> dict[str, Any]:
    """What an action returns, or its error as text for the other ranks."""
    try:
        result: dict[str, Any] = action()
        return result
    except MixerError as error:
        return {"error": str(error)}


def _all_succeeded(outcomes: Sequence[dict[str, Any]]) -> Sequence[dict[str, Any]]:
    for rank, outcome in enumerate(outcomes):
        if "error" in outcome:
            raise CheckpointError(f"not saved, rank {rank}: {outcome['error']}")
    return outcomes
