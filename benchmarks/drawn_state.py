"""Engines of the paper's models whose weights and moments are drawn: state to save and to load."""

import math

import torch
from torch import Tensor

from mixer_dist import distributed
from mixer_dist.checkpoint.layout import TrainingState
from mixer_dist.config import RunConfig
from mixer_dist.run_dir import Attempt, RunDir, write_attempt
from mixer_dist.storage import Storage
from mixer_dist.train.engine import Engine
from tests.tiny import tiny_config, tiny_engine

STATE = TrainingState(step=1, num_updates=1, position=4096)


def variant_config(variant: str, engine: str) -> RunConfig:
    """A run of one of the paper's models on 224 px and 1,000 classes, in fp32."""
    return tiny_config(engine, model={"variant": variant, "num_classes": 1000})


def drawn_engine(config: RunConfig) -> Engine:
    """The engine, its moments not zero. All ranks must call this."""
    engine = tiny_engine(config)
    for piece in engine.pieces():
        if piece.kind != "param":
            piece.tensor.normal_(std=1e-3).abs_()
    return engine


def cleared(engine: Engine) -> None:
    """Take the state out of an engine, so that only a restore can bring it back."""
    for piece in engine.pieces():
        piece.tensor.zero_()


def fingerprint(engine: Engine) -> list[float]:
    """Sums of each kind over all ranks, in float64. All ranks must call this."""
    sums: dict[str, float] = {}
    for piece in engine.pieces():
        sums[piece.kind] = sums.get(piece.kind, 0.0) + _weighted_sum(piece.tensor, piece.start)
    return distributed.sum_over_ranks([sums.get(kind, 0.0) for kind in sorted(sums)])


def _weighted_sum(tensor: Tensor, start: int) -> float:
    """Of elements times their place, so that another order gives another sum."""
    places = torch.arange(start, start + tensor.numel(), dtype=torch.float64)
    return float(tensor.double() @ (places + 1))


def is_same(found: list[float], expected: list[float]) -> bool:
    """Whether two fingerprints are equal, up to the order of the sums."""
    return all(math.isclose(a, b, rel_tol=1e-9) for a, b in zip(found, expected, strict=True))


def begin_attempt(storage: Storage, run_dir: RunDir, config: RunConfig) -> Attempt:
    """Record a start, as a save asks for one. All ranks must call this."""
    attempt = Attempt(
        attempt=1, attempt_id="benchmark", resumed_from=0, dataset="none", config=config
    )
    distributed.on_main(lambda: write_attempt(storage, run_dir, attempt))
    return attempt
