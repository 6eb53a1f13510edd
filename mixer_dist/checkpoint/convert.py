"""Weights in and out: the official `.npz` and one safetensors file in our own names.

Nothing is read through a pickle.
"""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor

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
from mixer_dist.checkpoint.restore import Checkpoint
from mixer_dist.errors import CheckpointError, ConfigError, MissingError, RefusedError
from mixer_dist.models.npz import from_official, npz_bytes, read_npz, to_official
from mixer_dist.storage import Storage, join

FORMATS = (".npz", ".safetensors")


def export_weights(storage: Storage, checkpoint: Checkpoint, path: str) -> None:
    """Write a checkpoint's weights to one file or URL, its format by the suffix; fp32."""
    kind = _format(path)
    tensors = full_tensors(storage, checkpoint)
    if kind == ".npz":
        storage.write(path, npz_bytes(to_official(tensors, _patch_size(tensors))))
    else:
        storage.write(path, safetensors.torch.save(tensors))


def import_weights(storage: Storage, path: str, url: str) -> CheckpointManifest:
    """Make a checkpoint at step 0, its moments zero, from a weights file."""
    if storage.exists(join(url, MANIFEST_NAME)):
        raise RefusedError(f"{url} holds a checkpoint already: choose another place")
    tensors = read_weights(path)
    name = pieces_file(0, 0)
    entry = write_pieces(storage, url, name, _pieces(tensors))
    shapes = {fqn: tuple(tensor.shape) for fqn, tensor in tensors.items()}
    held = [(fqn, 0, tensor.numel(), 0) for fqn, tensor in tensors.items()]
    manifest = CheckpointManifest(
        **TrainingState(step=0, num_updates=0, position=0).model_dump(),
        attempt=0,
        config={"imported_from": Path(path).name},
        dataset=None,
        parameters=parameter_entries(shapes, held),
        files=(entry,),
        written_by=WrittenBy(engine="import", world_size=1, versions=versions()),
    )
    storage.write(join(url, MANIFEST_NAME), manifest.to_json())
    return manifest


def read_weights(path: str) -> dict[str, Tensor]:
    """Weights of a file in our names, fp32; MissingError, ConfigError."""
    kind = _format(path)
    if not Path(path).is_file():
        raise MissingError(f"no weights file at {path}; it has to be a local file")
    try:
        tensors = (
            from_official(read_npz(path)) if kind == ".npz" else safetensors.torch.load_file(path)
        )
    except (ValueError, safetensors.SafetensorError) as error:
        raise ConfigError(f"{path} does not hold a Mixer: {error}") from None
    return {fqn: tensor.to(torch.float32).contiguous() for fqn, tensor in tensors.items()}


def _pieces(tensors: Mapping[str, Tensor]) -> list[Piece]:
    def values(kind: str, tensor: Tensor) -> Tensor:
        return tensor.flatten() if kind == "param" else torch.zeros(tensor.numel())

    return [
        Piece(kind, fqn, 0, tensor.numel(), values(kind, tensor))
        for fqn, tensor in tensors.items()
        for kind in KINDS
    ]


def _format(path: str) -> str:
    suffix = Path(path).suffix
    if suffix not in FORMATS:
        raise ConfigError(f"expected a file ending in {' or '.join(FORMATS)}, got {path!r}")
    return suffix


def _patch_size(tensors: Mapping[str, Any]) -> int:
    """From the stem's (C, P*P*3)."""
    if "stem.weight" not in tensors:
        raise CheckpointError("the checkpoint holds no Mixer: it has no stem.weight")
    return math.isqrt(int(tensors["stem.weight"].shape[1]) // 3)
