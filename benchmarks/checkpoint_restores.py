"""Checkpoints that can be damaged and restored: ours, and one of torch.distributed.checkpoint."""

import logging
import traceback
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import torch
import torch.distributed.checkpoint as dcp
from torch import Tensor
from torch.distributed.checkpoint.api import CheckpointException

from benchmarks.file_damage import Files, names_changed
from benchmarks.mutations import HangError, deadline
from mixer_dist.checkpoint.catalog import Checkpoint
from mixer_dist.checkpoint.layout import MANIFEST_NAME
from mixer_dist.checkpoint.load import read_pieces
from mixer_dist.checkpoint.pieces import KINDS, Piece
from mixer_dist.checkpoint.restore import newest_verified, verified
from mixer_dist.errors import MissingError, MixerError
from mixer_dist.run_dir import RunDir
from mixer_dist.storage import Storage

NAMED, UNNAMED, SAME, OTHER, STRANGE = OUTCOMES = (
    "found, file named", "found, file not named", "same values", "other values", "another error",
)  # fmt: skip
NUM_DCP_FILES = 3
NUM_PARTS = 7  # of each tensor, as on so many ranks

Values = dict[str, Tensor]
"""The training state: tensors by name."""


@dataclass(frozen=True)
class Subject:
    """A checkpoint that can be damaged."""

    folder: Path
    files: Files
    """What may be damaged of it."""
    is_restored: Callable[[], bool]
    """Whether restoring gives what was saved; raises where damage is found."""
    refusals: tuple[type[BaseException], ...]
    """Errors by which it says so."""


def outcome_of(subject: Subject, files: Files) -> tuple[str, str]:
    """(outcome, what was said) of restoring a checkpoint that holds other files."""
    write_folder(subject.folder, files)
    with listening() as lines:
        try:
            with deadline():
                return SAME if subject.is_restored() else OTHER, ""
        except HangError as error:
            return STRANGE, str(error)
        except subject.refusals as error:
            said = "\n".join([*lines, str(error)])
            stems = [Path(name).stem for name in names_changed(subject.files, files)]
            return NAMED if any(stem in said for stem in stems) else UNNAMED, said
        except Exception as error:  # noqa: BLE001, what is not expected is what is counted
            return STRANGE, "".join(traceback.format_exception(error, limit=-4))


def our_subjects(run_dir: str, step: int) -> tuple[Subject, Subject, Subject]:
    """A checkpoint of ours, damaged before its check; and after it, read whole or in parts."""
    storage, run = Storage(), RunDir(run_dir)
    saved = verified(storage, run.checkpoint(step))
    values, folder = read_values(storage, saved), Path(saved.url)
    files = read_folder(folder)
    pieces = {name: data for name, data in files.items() if name != MANIFEST_NAME}

    def start() -> bool:
        found = newest_verified(storage, run)
        if found is None:
            raise MissingError("no checkpoint is there")
        is_same = found.manifest == saved.manifest
        return is_same and same(read_values(storage, found), values)

    def read(num_parts: int) -> bool:
        return same(read_values(storage, saved, num_parts), values)

    return (
        Subject(folder, files, start, (MixerError,)),
        Subject(folder, pieces, lambda: read(1), (MixerError,)),
        Subject(folder, pieces, lambda: read(NUM_PARTS), (MixerError,)),
    )


def dcp_subject(folder: Path, values: Values) -> Subject:
    """The same tensors as torch.distributed.checkpoint keeps them."""
    writer = dcp.FileSystemWriter(folder, thread_count=NUM_DCP_FILES)
    dcp.save(dict(values), storage_writer=writer, no_dist=True)

    def load() -> bool:
        found = {name: torch.zeros_like(tensor) for name, tensor in values.items()}
        dcp.load(found, checkpoint_id=folder, no_dist=True)
        return same(found, values)

    return Subject(folder, read_folder(folder), load, (Exception, CheckpointException))


def stored_values(run_dir: str, step: int) -> Values:
    """All tensors of a run's checkpoint."""
    return read_values(Storage(), verified(Storage(), RunDir(run_dir).checkpoint(step)))


def read_values(storage: Storage, checkpoint: Checkpoint, num_parts: int = 1) -> Values:
    """All tensors of a checkpoint, each read in so many parts."""
    found: Values = {}
    wanted: list[Piece] = []
    for fqn, entry in checkpoint.manifest.parameters.items():
        for kind in KINDS["adamw"]:
            flat = found[f"{kind}.{fqn}"] = torch.zeros(entry.cuts[-1])
            cuts = [flat.numel() * part // num_parts for part in range(num_parts + 1)]
            wanted += [
                Piece(kind, fqn, start, stop, flat[start:stop])
                for start, stop in pairwise(cuts)
                if start < stop
            ]
    read_pieces(storage, checkpoint, wanted)
    return found


def same(found: Values, expected: Values) -> bool:
    """Whether all bits are the same: 0 and -0 are not."""
    return all(
        torch.equal(found[name].view(torch.int32), expected[name].view(torch.int32))
        for name in expected
    )


def read_folder(folder: Path) -> Files:
    """All that a folder holds."""
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def write_folder(folder: Path, files: Files) -> None:
    """Have a folder hold just these files."""
    for path in folder.iterdir():
        path.unlink()
    for name, data in files.items():
        (folder / name).write_bytes(data)


@contextmanager
def listening() -> Iterator[list[str]]:
    """What the package logs meanwhile, kept from the terminal."""
    lines: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: lines.append(record.getMessage())  # type: ignore[method-assign]
    logger = logging.getLogger("mixer_dist")
    logger.addHandler(handler)
    logger.propagate = False
    try:
        with warnings.catch_warnings(action="ignore"):
            yield lines
    finally:
        logger.removeHandler(handler)
        logger.propagate = True
