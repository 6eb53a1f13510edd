"""From a configuration to a model, to the engine that trains it, and to its batches."""

from dataclasses import asdict
from functools import partial
from typing import Any

import torch
from torch.utils.checkpoint import checkpoint

from mixer_dist import distributed
from mixer_dist.config import EngineConfig, ModelConfig, RunConfig
from mixer_dist.data.manifest import Dataset
from mixer_dist.data.stream import Cursor, Share, TrainStream, micro_batch_shape
from mixer_dist.models.initial import initialize
from mixer_dist.models.mixer import VARIANTS, MlpMixer, depth_rates
from mixer_dist.storage import Storage
from mixer_dist.train.engine import Engine
from mixer_dist.train.torch_engine import TorchEngine, mesh_shape


def model_dimensions(config: ModelConfig) -> dict[str, Any]:
    """The arguments of MlpMixer."""
    sizes = config.dimensions()
    if config.variant:
        given = {name: size for name, size in sizes.items() if size is not None}
        sizes = asdict(VARIANTS[config.variant]) | given
    return {**sizes, "image_size": config.image_size, "num_classes": config.num_classes}


def build_model(config: RunConfig) -> MlpMixer:
    """The model with its initial values, on the CPU: a pure function of the configuration."""
    model = empty_model(config.model).to_empty(device="cpu")
    initialize(model, config.seed, head_bias=config.model.head_bias)
    return model


def empty_model(config: ModelConfig) -> MlpMixer:
    """The model without values, on the meta device."""
    with torch.device("meta"):
        return MlpMixer(**model_dimensions(config), head_bias=config.head_bias)


def build_engine(config: RunConfig, model: MlpMixer) -> Engine:
    """The engine that the configuration names, around a model. All ranks must call this."""
    micro_batch_size, grad_accum_steps = micro_batch_shape(config, distributed.world_size())
    fit_blocks(config.engine, model)
    if config.engine.name.startswith("zero"):
        from mixer_dist.train.zero_engine import ZeroEngine  # DeepSpeed takes seconds to import

        return ZeroEngine(model, config, micro_batch_size, grad_accum_steps)
    return TorchEngine(model, config, micro_batch_size)


def fit_blocks(config: EngineConfig, model: MlpMixer) -> None:
    """Have blocks compute their forward again, or compiled, as the configuration asks."""
    for block in model.blocks:
        if config.recompute:
            block.forward = partial(
                checkpoint, block.forward, use_reentrant=False, preserve_rng_state=False
            )
        if config.compile:
            block.compile()  # now: what engines hook into a block later is left as it is


def build_stream(
    config: RunConfig, dataset: Dataset, storage: Storage, cursor: Cursor
) -> TrainStream:
    """This rank's batches from a cursor on."""
    size, grad_accum_steps = micro_batch_shape(config, distributed.world_size())
    num_blocks = model_dimensions(config.model)["num_blocks"]
    return TrainStream(
        config,
        dataset,
        storage,
        cursor,
        Share(distributed.rank(), distributed.world_size(), size * grad_accum_steps),
        depth_rates(num_blocks, config.model.stochastic_depth),
    )


def check_engine(config: RunConfig, world_size: int) -> None:
    """ConfigError where this engine or batch cannot be had on so many ranks."""
    micro_batch_shape(config, world_size)
    if not config.engine.name.startswith("zero"):
        mesh_shape(config.engine, world_size)
