"""What runs on each rank in test_engines.py: all engines in turn, in one process group."""

from collections.abc import Sequence
from dataclasses import replace
from itertools import product
from typing import NamedTuple

import torch

from mixer_dist import distributed
from mixer_dist.train import torch_engine
from mixer_dist.train.build import build_model
from mixer_dist.train.stragglers import ForwardTimer
from tests.tiny import NONE, Changes, take_steps, tiny_batch, tiny_config, tiny_engine

NUM_STEPS = 30


class Skip(NamedTuple):
    """What a step did whose last rank saw NaN, and the step after it."""

    weights_unchanged: bool
    finite_after: bool
    skipped: bool
    next_skipped: bool
    num_updates: int


def losses(
    engines: Sequence[str], precision: str, changes: Changes = NONE
) -> dict[str, list[float]]:
    """Losses of a short run with mixup and stochastic depth on, for each engine."""
    found = {}
    with distributed.connected(60):
        for engine in engines:
            config = tiny_config(engine, precision, **changes)
            found[engine] = take_steps(tiny_engine(config), config, 0, NUM_STEPS)
    return found


def grad_norms(engine: str) -> list[float]:
    """Global gradient norms of the first steps."""
    with distributed.connected(60):
        config = tiny_config(engine)
        trained = tiny_engine(config)
        results = [trained.train_step(tiny_batch(config, step), 1e-3) for step in range(3)]
        return [float(result.grad_norm) for result in results]


def skips(engines: Sequence[str], precision: str, changes: Changes = NONE) -> dict[str, Skip]:
    """What a NaN on one rank does under each engine."""
    with distributed.connected(60):
        return {engine: _skip(engine, precision, changes) for engine in engines}


def guarded(engines: Sequence[str], precision: str) -> dict[str, Skip]:
    """What a guard does that lets one finite update not pass, under each engine."""
    with distributed.connected(60):
        return {engine: _guarded(engine, precision) for engine in engines}


def _guarded(engine: str, precision: str) -> Skip:
    config = tiny_config(engine, precision)
    trained = tiny_engine(config)
    take_steps(trained, config, 0, 3)
    before = [piece.tensor.clone() for piece in trained.pieces()]
    judged = []
    trained.guard = lambda norm: judged.append(norm) or torch.ones(())
    skipped = trained.train_step(tiny_batch(config, 3), 1e-3).update_skipped
    after = [piece.tensor.clone() for piece in trained.pieces()]
    same = all(torch.equal(a, b) for a, b in zip(before, after, strict=True))
    trained.guard = lambda norm: judged.append(norm) or torch.zeros(())
    result = trained.train_step(tiny_batch(config, 4), 1e-3)
    assert len(judged) == 2 and judged[1] == result.grad_norm
    finite = all(bool(torch.isfinite(piece.tensor).all()) for piece in trained.pieces())
    return Skip(same, finite, bool(skipped), bool(result.update_skipped), trained.num_updates)


def _skip(engine: str, precision: str, changes: Changes = NONE) -> Skip:
    config = tiny_config(engine, precision, **changes)
    trained = tiny_engine(config)
    take_steps(trained, config, 0, 3)
    before = [piece.tensor.clone() for piece in trained.pieces()]
    batch = tiny_batch(config, 3)
    if distributed.rank() == distributed.world_size() - 1:
        batch = replace(batch, weights=batch.weights * float("nan"))
    skipped = trained.train_step(batch, 1e-3).update_skipped
    after = [piece.tensor.clone() for piece in trained.pieces()]
    same = all(torch.equal(a, b) for a, b in zip(before, after, strict=True))
    next_skipped = trained.train_step(tiny_batch(config, 4), 1e-3).update_skipped
    finite = all(bool(torch.isfinite(piece.tensor).all()) for piece in trained.pieces())
    return Skip(same, finite, bool(skipped), bool(next_skipped), trained.num_updates)


def recomputed_losses(engines: Sequence[str]) -> dict[str, tuple[list[float], list[float]]]:
    """By engine, losses of a model as it is, and where its blocks are computed again."""
    found = {}
    with distributed.connected(60):
        for name in engines:
            config = tiny_config(name, "bf16")
            changes = {"recompute": True, "reshard_after_forward": True}
            engine = config.engine.model_copy(update=changes)
            both = (config, config.model_copy(update={"engine": engine}))
            plain, again = (take_steps(tiny_engine(each), each, 0, 4) for each in both)
            found[name] = (plain, again)
    return found


def losses_by_unit(engine: str) -> dict[tuple[int, bool], list[float]]:
    """Losses by how many of the 3 blocks make a unit, and whether its weights are freed between."""
    found = {}
    clipped = {"learning_rate": 3e-3, "max_grad_norm": 0.1}
    config = tiny_config(engine, "bf16", optimizer=clipped)
    with distributed.connected(60):
        of_block = sum(p.numel() for p in build_model(config).blocks[0].parameters())
        for num_blocks, is_freed in product((1, 2, 3), (False, True)):
            torch_engine.LEAST_UNIT_ELEMENTS = num_blocks * of_block
            changes = {"reshard_after_forward": is_freed}
            each = config.model_copy(update={"engine": config.engine.model_copy(update=changes)})
            found[num_blocks, is_freed] = take_steps(tiny_engine(each), each, 0, 4)
    return found


def compiled_losses(engine: str) -> tuple[list[float], list[float], int, dict[str, int]]:
    """Losses of a model as it is, and with its blocks compiled; graphs, and why any was broken."""
    torch._inductor.config.compile_threads = 1  # no processes of its own beside this one
    with distributed.connected(60):
        config = tiny_config(engine)
        compiled = config.engine.model_copy(update={"compile": True})
        both = (config, config.model_copy(update={"engine": compiled}))
        losses = []
        for each in both:
            trained = tiny_engine(each)
            ForwardTimer(trained)
            losses.append(take_steps(trained, each, 0, 3))
        counters = torch._dynamo.utils.counters
        return *losses, counters["stats"]["unique_graphs"], dict(counters["graph_break"])
