"""Small checkpoints written without any training, for cases about what becomes of them."""

from dataclasses import dataclass
from typing import Any

import torch

from mixer_dist.checkpoint.catalog import list_checkpoints
from mixer_dist.checkpoint.layout import (
    MANIFEST_NAME,
    CheckpointManifest,
    WrittenBy,
    parameter_entries,
    pieces_file,
    versions,
)
from mixer_dist.checkpoint.pieces import KINDS, Piece
from mixer_dist.checkpoint.save import write_pieces
from mixer_dist.checkpoint.verification import damages
from mixer_dist.run_dir import Attempt, RunDir, write_attempt
from mixer_dist.storage import Storage, join
from tests.tiny import tiny_config

NUM_RANKS = 2
PER_RANK = 8


@dataclass(frozen=True)
class HandmadeRun:
    """A run directory that a test fills."""

    storage: Storage
    run_dir: RunDir

    def url(self, step: int) -> str:
        return self.run_dir.checkpoint(step)

    def start(self, attempt: int, **checkpoint: Any) -> None:
        """What a trainer records when it starts."""
        config = tiny_config("ddp", checkpoint=checkpoint)
        record = Attempt(
            attempt=attempt, attempt_id=f"id-{attempt}", resumed_from=0, dataset="-", config=config
        )
        write_attempt(self.storage, self.run_dir, record)

    def write_pieces(self, step: int, attempt: int = 1) -> list[Any]:
        """What all ranks write before the commit."""
        names = [pieces_file(attempt, rank) for rank in range(NUM_RANKS)]
        return [
            write_pieces(self.storage, self.url(step), name, _pieces(rank, step))
            for rank, name in enumerate(names)
        ]

    def commit(self, step: int, attempt: int = 1) -> str:
        """A whole checkpoint."""
        files = self.write_pieces(step, attempt)
        held = [("w", PER_RANK * r, PER_RANK * (r + 1), r) for r in range(NUM_RANKS)]
        manifest = CheckpointManifest(
            step=step,
            num_updates=step,
            position=step,
            attempt=attempt,
            config={},
            dataset=None,
            parameters=parameter_entries({"w": (NUM_RANKS * PER_RANK,)}, held),
            files=tuple(files),
            written_by=WrittenBy(engine="ddp", world_size=NUM_RANKS, versions=versions()),
        )
        content = manifest.model_dump_json().encode()
        self.storage.write(join(self.url(step), MANIFEST_NAME), content)
        return self.url(step)

    def commit_all(self, *steps: int) -> None:
        for step in steps:
            self.commit(step)

    def damage(self, step: int, attempt: int = 1) -> None:
        """Flip a bit in the last rank's file."""
        url = join(self.url(step), pieces_file(attempt, NUM_RANKS - 1))
        data = bytearray(self.storage.read(url))
        data[-1] ^= 1
        self.storage.write(url, bytes(data))

    def steps(self) -> list[int]:
        """Those that are committed, ascending."""
        found, _ = list_checkpoints(self.storage, self.run_dir)
        return sorted(checkpoint.manifest.step for checkpoint in found)

    def files(self, step: int) -> list[str]:
        return self.storage.names(self.url(step))


def all_are_whole(run: HandmadeRun) -> bool:
    """Whether everything that looks committed verifies."""
    found, _ = list_checkpoints(run.storage, run.run_dir)
    return not any(damages(run.storage, checkpoint) for checkpoint in found)


def _pieces(rank: int, step: int) -> list[Piece]:
    start, stop = PER_RANK * rank, PER_RANK * (rank + 1)
    return [
        Piece(kind, "w", start, stop, torch.full((PER_RANK,), float(step)))
        for kind in KINDS["adamw"]
    ]
