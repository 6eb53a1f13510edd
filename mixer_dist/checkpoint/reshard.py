"""Resharding: the same checkpoint in another number of files, with one of them in memory at a time.

The parameters, end to end, are cut into equal lengths; a file holds one length and its moments.
"""

from collections.abc import Mapping, Sequence
from itertools import pairwise
from math import prod

import torch

from mixer_dist.checkpoint.catalog import Checkpoint, read_checkpoint
from mixer_dist.checkpoint.layout import (
    MANIFEST_NAME,
    CheckpointManifest,
    FileEntry,
    parameter_entries,
    pieces_file,
)
from mixer_dist.checkpoint.load import read_pieces
from mixer_dist.checkpoint.piece_file import write_pieces
from mixer_dist.checkpoint.pieces import Piece
from mixer_dist.checkpoint.restore import verified
from mixer_dist.checkpoint.verification import file_problem
from mixer_dist.errors import CheckpointError, ConfigError, RefusedError
from mixer_dist.progress import watch
from mixer_dist.storage import Storage, join

Cut = tuple[str, int, int]
"""(fqn, start, stop): elements of a flattened parameter."""


def reshard(storage: Storage, source: str, url: str, num_files: int) -> CheckpointManifest:
    """Write a checkpoint anew in so many files of equal size; what it says stays the same.

    The old one is verified first, and the new one before it is committed: CheckpointError.
    """
    shapes = read_checkpoint(storage, source).manifest.shapes
    _check(storage, url, shapes, num_files)
    checkpoint = verified(storage, source)
    cuts = equal_cuts(shapes, num_files)
    files = [
        _write_file(storage, checkpoint, url, number, held)
        for number, held in enumerate(watch(cuts, num_files, "files"))
    ]
    entries = parameter_entries(
        shapes, ((*cut, number) for number, held in enumerate(cuts) for cut in held)
    )
    update = {"parameters": entries, "files": tuple(files)}
    manifest = checkpoint.manifest.model_copy(update=update)
    storage.write(join(url, MANIFEST_NAME), manifest.to_json())
    return manifest


def equal_cuts(shapes: Mapping[str, Sequence[int]], num_files: int) -> list[list[Cut]]:
    """What each file holds of the parameters; lengths differ by one element at most."""
    total = sum(prod(shape) for shape in shapes.values())
    bounds = [total * number // num_files for number in range(num_files + 1)]
    cuts: list[list[Cut]] = [[] for _ in range(num_files)]
    begin = 0
    for fqn, shape in shapes.items():
        end = begin + prod(shape)
        for held, (low, high) in zip(cuts, pairwise(bounds), strict=True):
            start, stop = max(begin, low), min(end, high)
            if start < stop:
                held.append((fqn, start - begin, stop - begin))
        begin = end
    return cuts


def _check(storage: Storage, url: str, shapes: Mapping[str, Sequence[int]], num_files: int) -> None:
    """Refuse what cannot be done, before anything is read or written."""
    total = sum(prod(shape) for shape in shapes.values())
    if not 1 <= num_files <= total:
        raise ConfigError(
            f"--files is {num_files}: expected 1 to {total}, the number of elements to deal out"
        )
    if storage.exists(join(url, MANIFEST_NAME)):
        raise RefusedError(f"{url} holds a checkpoint already: choose another place")
    storage.check_writable(url)


def _write_file(
    storage: Storage, checkpoint: Checkpoint, url: str, number: int, held: Sequence[Cut]
) -> FileEntry:
    """One file, read back after it was written."""
    pieces = [
        Piece(kind, fqn, start, stop, torch.empty(stop - start))
        for kind in checkpoint.manifest.kinds
        for fqn, start, stop in held
    ]
    read_pieces(storage, checkpoint, pieces)
    entry = write_pieces(storage, url, pieces_file(checkpoint.manifest.attempt, number), pieces)
    if problem := file_problem(storage, url, entry):
        raise CheckpointError(f"not what was written to {url}, nothing is committed: {problem}")
    return entry
