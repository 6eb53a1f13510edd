"""What runs on each rank in test_engines.py."""

from dataclasses import replace

import torch

from mixer_dist import distributed
from tests.tiny import take_steps, tiny_batch, tiny_config, tiny_engine

NUM_STEPS = 30


def losses(engine: str, precision: str) -> list[float]:
    """Losses of a short run with mixup and stochastic depth on."""
    with distributed.connected(60):
        config = tiny_config(engine, precision)
        return take_steps(tiny_engine(config), config, 0, NUM_STEPS)


def grad_norms(engine: str) -> list[float]:
    """Global gradient norms of the first steps."""
    with distributed.connected(60):
        config = tiny_config(engine)
        trained = tiny_engine(config)
        results = [trained.train_step(tiny_batch(config, step), 1e-3) for step in range(3)]
        return [float(result.grad_norm) for result in results]


def weights_around_nan(engine: str, precision: str) -> tuple[bool, bool, list[float], int]:
    """A step whose last rank sees NaN: (weights unchanged, all finite after, skips, updates)."""
    with distributed.connected(60):
        config = tiny_config(engine, precision)
        trained = tiny_engine(config)
        take_steps(trained, config, 0, 3)
        before = [piece.tensor.clone() for piece in trained.pieces()]
        batch = tiny_batch(config, 3)
        if distributed.rank() == distributed.world_size() - 1:
            batch = replace(batch, weights=batch.weights * float("nan"))
        skipped = trained.train_step(batch, 1e-3).update_skipped
        after = [piece.tensor.clone() for piece in trained.pieces()]
        same = all(torch.equal(a, b) for a, b in zip(before, after, strict=True))
        good = trained.train_step(tiny_batch(config, 4), 1e-3).update_skipped
        finite = all(torch.isfinite(piece.tensor).all() for piece in trained.pieces())
        return same, bool(finite), [float(skipped), float(good)], trained.num_updates
