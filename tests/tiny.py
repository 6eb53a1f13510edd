"""A tiny run whose data are drawn, for cases that are about engines and not about files."""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

import torch

from mixer_dist import distributed
from mixer_dist.config import RunConfig
from mixer_dist.data.augment import depth_masks, mixup_lambda
from mixer_dist.data.batch import Batch, filled
from mixer_dist.data.order import batch_positions, rank_slice
from mixer_dist.data.stream import micro_batch_shape
from mixer_dist.models.mixer import depth_rates
from mixer_dist.sections import parse
from mixer_dist.train.build import build_engine, build_model
from mixer_dist.train.engine import Engine
from mixer_dist.train.optim import scheduled_rate

SIZE_PX = 16
NUM_CLASSES = 10

Changes = Mapping[str, Any]
"""Sections and keys of the tiny configuration, with other values."""
NONE: Changes = MappingProxyType({})
SGD: Changes = {
    "optimizer": {"name": "sgd", "learning_rate": 0.05, "decay": "cosine", "warmup_steps": 4}
}


def tiny_config(engine: str, precision: str = "fp32", **changes: Any) -> RunConfig:
    """A Mixer of 3 blocks on 16 px; odd sizes, so that ranges do not fall on round numbers."""
    tree = {
        "run_dir": "unused",
        "total_steps": 40,
        "global_batch_size": 20,
        "micro_batch_size": 4,
        "loss": "sigmoid",
        "model": {
            "patch_size": 4, "hidden_dim": 30, "num_blocks": 3, "tokens_mlp_dim": 14,
            "channels_mlp_dim": 50, "image_size": SIZE_PX, "num_classes": NUM_CLASSES,
            "head_bias": -2.3, "stochastic_depth": 0.4,
        },
        "data": {"train": [{"manifest": "unused"}]},
        "augment": {"mixup": 0.5},
        "optimizer": {"learning_rate": 3e-3, "warmup_steps": 4, "weight_decay": 0.1},
        "engine": {
            "name": engine, "precision": precision, "start_timeout_s": 60.0,
            "shard_ranks": 2 if distributed.world_size() % 2 == 0 else None,
        },
    }  # fmt: skip
    return parse(RunConfig, tree | changes, "tiny")


def tiny_engine(config: RunConfig) -> Engine:
    """The engine at step 0."""
    return build_engine(config, build_model(config))


def tiny_batch(config: RunConfig, step: int) -> Batch:
    """This rank's share of a step's batch, drawn from the step alone."""
    world_size = distributed.world_size()
    size, accumulation = micro_batch_shape(config, world_size)
    mine = rank_slice(distributed.rank(), world_size, config.global_batch_size)
    positions = batch_positions(step * config.global_batch_size, config.global_batch_size)[mine]
    generator = torch.Generator().manual_seed(step)
    shape = (config.global_batch_size, 3, SIZE_PX, SIZE_PX)
    labels = torch.randint(0, NUM_CLASSES, shape[:1], generator=generator)
    noise = torch.randint(0, 64, shape, generator=generator, dtype=torch.uint8)
    images = noise + (20 * labels).to(torch.uint8).view(-1, 1, 1, 1)  # a class is a brightness
    num_rows = size * accumulation
    rows = filled(positions, num_rows, -1)
    full = torch.zeros((num_rows, *shape[1:]), dtype=torch.uint8)
    full[: len(positions)] = images[mine]
    rates = torch.tensor(depth_rates(3, config.model.stochastic_depth), dtype=torch.float64)
    return Batch(
        images=full,
        labels=filled(labels[mine].numpy(), num_rows, 0),
        weights=(rows >= 0).to(torch.float32),
        positions=rows,
        depth_masks=depth_masks(config.seed, rows.numpy(), rates.numpy()),
        mixup=mixup_lambda(config.seed, step, config.augment.mixup),
        step=step,
    )


def take_steps(engine: Engine, config: RunConfig, first: int, stop: int) -> list[float]:
    """The losses of steps [first, stop). All ranks must call this."""
    losses = []
    for step in range(first, stop):
        rate = scheduled_rate(step, config.total_steps, config.optimizer)
        result = engine.train_step(tiny_batch(config, step).to(distributed.device()), rate)
        losses.append(distributed.sum_over_ranks([float(result.loss)])[0])
    return losses
