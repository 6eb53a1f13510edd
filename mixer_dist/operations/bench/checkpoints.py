"""Saving and loading the run's training state at run_dir, in a folder that is then removed."""

import secrets
import time

from mixer_dist import distributed
from mixer_dist.checkpoint.catalog import read_checkpoint
from mixer_dist.checkpoint.layout import TrainingState
from mixer_dist.checkpoint.load import load_pieces
from mixer_dist.checkpoint.save import Saved, Saver
from mixer_dist.config import RunConfig
from mixer_dist.operations.bench.measured import Figure, Measured
from mixer_dist.run_dir import Attempt, RunDir, write_attempt
from mixer_dist.storage import Storage, join
from mixer_dist.train.build import build_engine, build_model
from mixer_dist.train.engine import Engine

STATE = TrainingState(step=1, num_updates=0, position=0)


def measure_checkpoints(config: RunConfig) -> Measured:
    """A save and a load of the engine's state. All ranks must call this."""
    storage = Storage(config.storage)
    run_dir = RunDir(join(config.run_dir, f"bench-{distributed.share(secrets.token_hex(4))}"))
    engine = build_engine(config, build_model(config))
    num_bytes = distributed.sum_over_ranks([_held_bytes(engine)])[0]
    try:
        saved = save(engine, config, storage, run_dir)
        load_s = load_seconds(engine, storage, saved.url)
    finally:
        if distributed.is_main():
            remove(storage, run_dir)
    num_nodes = len(set(distributed.hosts()))
    return Measured(
        f"Checkpoint: {num_bytes / 1e9:,.3g} GB of {config.engine.name} on "
        f"{distributed.world_size()} ranks, {num_nodes} nodes, at {config.run_dir}; what was just "
        "written may be read from memory.",
        (
            Figure("num_bytes", "size", num_bytes, "GB", 1e9),
            Figure("stall_s", "training stands still for", saved.stall_s, "s"),
            Figure("save_s", "saved in", saved.seconds, "s"),
            Figure("save_bytes_per_s", "save", num_bytes / saved.seconds, "GB/s", 1e9),
            Figure("load_bytes_per_s", "load", num_bytes / load_s, "GB/s", 1e9),
        ),
        {"save_bytes_per_s": num_bytes / saved.seconds / num_nodes},
    )


def save(engine: Engine, config: RunConfig, storage: Storage, run_dir: RunDir) -> Saved:
    """Save as training does. All ranks must call this."""
    attempt = Attempt(attempt=1, attempt_id="bench", resumed_from=0, dataset="none", config=config)
    distributed.on_main(lambda: write_attempt(storage, run_dir, attempt))
    saver = Saver(storage, run_dir, attempt, engine.shapes, list(engine.pieces()))
    saver.start(list(engine.pieces()), STATE)
    saver.settle()
    return saver.wait()


def load_seconds(engine: Engine, storage: Storage, url: str) -> float:
    """Until the last rank has its pieces back. All ranks must call this."""
    distributed.barrier()
    began = time.perf_counter()
    load_pieces(storage, read_checkpoint(storage, url), engine.pieces())
    return float(max(distributed.gather(time.perf_counter() - began)))


def remove(storage: Storage, run_dir: RunDir) -> None:
    """All that a save has written."""
    checkpoints = (run_dir.checkpoint(STATE.step), run_dir.checkpoints)
    for folder in (*checkpoints, run_dir.attempts, run_dir.url):
        for name in storage.names(folder):
            storage.delete(join(folder, name))
        storage.delete_folder(folder)


def _held_bytes(engine: Engine) -> int:
    return sum(piece.tensor.numel() * piece.tensor.element_size() for piece in engine.pieces())
