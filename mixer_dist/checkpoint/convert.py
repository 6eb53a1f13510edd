"""Weights in and out: checkpoints to files of weights, and files to checkpoints."""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import PurePosixPath

import torch
from torch import Tensor

from mixer_dist.checkpoint.catalog import Checkpoint
from mixer_dist.checkpoint.layout import (
    MANIFEST_NAME,
    CheckpointManifest,
    TrainingState,
    WrittenBy,
    parameter_entries,
    pieces_file,
    versions,
)
from mixer_dist.checkpoint.load import full_tensors
from mixer_dist.checkpoint.piece_file import write_pieces
from mixer_dist.checkpoint.pieces import KINDS, Piece
from mixer_dist.checkpoint.weights_file import (
    Weights,
    WeightsFormat,
    check_finite,
    read_weights,
)
from mixer_dist.errors import CheckpointError, ConfigError, RefusedError
from mixer_dist.models.matching import check_is_mixer
from mixer_dist.storage import Storage, join


@dataclass(frozen=True)
class Export:
    """A file of weights that was written."""

    file: str
    names: str
    dtype: str
    num_parameters: int
    """Tensors, not values."""
    num_bytes: int
    sha256: str


def export_weights(
    storage: Storage, checkpoint: Checkpoint, url: str, file_format: WeightsFormat
) -> Export:
    """Write a checkpoint's weights to one file or URL."""
    tensors = full_tensors(storage, checkpoint)
    try:
        check_is_mixer(tensors)
    except ValueError as error:
        raise CheckpointError(f"{checkpoint.url} holds no Mixer: {error}") from None
    data = file_format.encode(tensors)
    storage.write(url, data)
    dtype = str(file_format.dtype).removeprefix("torch.")
    sha256 = hashlib.sha256(data).hexdigest()
    return Export(url, file_format.names, dtype, len(tensors), len(data), sha256)


def import_weights(storage: Storage, file: str, url: str) -> CheckpointManifest:
    """Make a checkpoint at step 0, its moments zero, from a file of weights."""
    if storage.exists(join(url, MANIFEST_NAME)):
        raise RefusedError(f"{url} holds a checkpoint already: choose another place")
    weights = read_weights(storage, file)
    try:
        check_is_mixer(weights.tensors, weights.key)
    except ValueError as error:
        raise ConfigError(f"{file} does not hold the weights of a Mixer: {error}") from None
    return _write_checkpoint(storage, weights.tensors, url, PurePosixPath(file).name)


def checkpoint_weights(storage: Storage, checkpoint: Checkpoint) -> Weights:
    """A checkpoint's weights without its moments; CheckpointError where they are not finite."""
    tensors = full_tensors(storage, checkpoint)
    try:
        check_finite(tensors)
    except ValueError as error:
        raise CheckpointError(f"{checkpoint.url}: {error}") from None
    manifest = storage.read(join(checkpoint.url, MANIFEST_NAME))
    return Weights(tensors, "ours", hashlib.sha256(manifest).hexdigest())


def _write_checkpoint(
    storage: Storage, tensors: Mapping[str, Tensor], url: str, imported_from: str
) -> CheckpointManifest:
    entry = write_pieces(storage, url, pieces_file(0, 0), _pieces(tensors))
    shapes = {fqn: tuple(tensor.shape) for fqn, tensor in tensors.items()}
    held = [(fqn, 0, tensor.numel(), 0) for fqn, tensor in tensors.items()]
    manifest = CheckpointManifest(
        **TrainingState(step=0, num_updates=0, position=0).model_dump(),
        attempt=0,
        config={"imported_from": imported_from},
        dataset=None,
        parameters=parameter_entries(shapes, held),
        files=(entry,),
        written_by=WrittenBy(engine="import", world_size=1, versions=versions()),
    )
    storage.write(join(url, MANIFEST_NAME), manifest.to_json())
    return manifest


def _pieces(tensors: Mapping[str, Tensor]) -> list[Piece]:
    def values(kind: str, tensor: Tensor) -> Tensor:
        return tensor.flatten() if kind == "param" else torch.zeros(tensor.numel())

    return [
        Piece(kind, fqn, 0, tensor.numel(), values(kind, tensor))
        for fqn, tensor in tensors.items()
        for kind in KINDS["adamw"]
    ]
