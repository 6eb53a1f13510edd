"""What runs on each rank in test_resume.py."""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from safetensors import safe_open

from mixer_dist import distributed
from mixer_dist.checkpoint.layout import TrainingState
from mixer_dist.checkpoint.load import load_pieces
from mixer_dist.checkpoint.pieces import Piece
from mixer_dist.checkpoint.restore import newest_verified
from mixer_dist.checkpoint.save import Saver
from mixer_dist.config import RunConfig
from mixer_dist.errors import CheckpointError
from mixer_dist.run_dir import Attempt, RunDir, write_attempt
from mixer_dist.storage import Storage
from mixer_dist.train.engine import Engine
from tests.tiny import NONE, Changes, take_steps, tiny_config, tiny_engine

SAVED_AT = 6
END = 16


def attempt_of(config: RunConfig, number: int) -> Attempt:
    return Attempt(
        attempt=number, attempt_id=f"id-{number}", resumed_from=0, dataset="none", config=config
    )


def train_and_save(
    run_dir: str, engine: str, precision: str, end: int = END, changes: Changes = NONE
) -> list[float]:
    """Train, save on the way, go on to the end; the losses after the save."""
    with distributed.connected(60):
        config = tiny_config(engine, precision, **changes)
        trained, attempt, storage = tiny_engine(config), attempt_of(config, 1), Storage()
        take_steps(trained, config, 0, SAVED_AT)
        if distributed.is_main():
            write_attempt(storage, RunDir(run_dir), attempt)
        distributed.barrier()
        position = SAVED_AT * config.global_batch_size
        state = TrainingState(step=SAVED_AT, num_updates=trained.num_updates, position=position)
        pieces = list(trained.pieces())
        saver = Saver(storage, RunDir(run_dir), attempt, trained.shapes, pieces)
        trained.before_update = saver.settle
        saver.start(pieces, state)
        losses = take_steps(trained, config, SAVED_AT, end)  # while it is being written
        saver.wait()
        return losses


class Resumed(NamedTuple):
    """What a rank has after restoring."""

    is_bitwise: bool
    """Every piece is what the files hold."""
    num_updates: int
    losses: list[float]
    """Of the steps after it."""


def restore_and_train(
    run_dirs: Sequence[str], engine: str, precision: str, end: int = END, changes: Changes = NONE
) -> list[Resumed]:
    """Restore each run's checkpoint into one engine in turn, and go on from it."""
    with distributed.connected(60):
        config = tiny_config(engine, precision, **changes)
        trained = tiny_engine(config)
        return [_resumed(trained, config, run_dir, end) for run_dir in run_dirs]


def _resumed(trained: Engine, config: RunConfig, run_dir: str, end: int) -> Resumed:
    storage = Storage()
    checkpoint = newest_verified(storage, RunDir(run_dir))
    assert checkpoint is not None
    load_pieces(storage, checkpoint, trained.pieces())
    trained.refresh(checkpoint.manifest.num_updates)
    same = all(torch.equal(p.tensor.cpu(), _stored(run_dir, p)) for p in trained.pieces())
    return Resumed(same, trained.num_updates, take_steps(trained, config, SAVED_AT, end))


def _stored(run_dir: str, piece: Piece) -> torch.Tensor:
    """What the files hold of a piece, read by safetensors' own code."""
    folder = Path(RunDir(run_dir).checkpoint(SAVED_AT))
    found: dict[int, torch.Tensor] = {}
    for path in folder.glob("*.safetensors"):
        with safe_open(path, "pt") as file:
            for key in file.keys():  # noqa: SIM118, it is no dictionary
                name, start = key.rsplit("@", 1)
                if name == piece.name:
                    found[int(start)] = file.get_tensor(key)
    return torch.cat([found[start] for start in sorted(found)])[piece.start : piece.stop]


def save_superseded(run_dir: str) -> str:
    """What a trainer is told that saves after another has started on its run."""
    with distributed.connected(60):
        config, storage = tiny_config("ddp"), Storage()
        trained = tiny_engine(config)
        for number in (1, 2):
            write_attempt(storage, RunDir(run_dir), attempt_of(config, number))
        pieces = list(trained.pieces())
        saver = Saver(storage, RunDir(run_dir), attempt_of(config, 1), trained.shapes, pieces)
        saver.start(pieces, TrainingState(step=1, num_updates=1, position=20))
        try:
            saver.wait()
        except CheckpointError as error:
            return str(error)
        return "saved"
