"""A run in sentences: what the configuration comes to, before anything is done."""

from math import prod

from mixer_dist.config import RunConfig
from mixer_dist.data.manifest import Dataset
from mixer_dist.data.stream import micro_batch_shape
from mixer_dist.models.mixer import num_multiply_adds
from mixer_dist.train.build import empty_model, model_dimensions

STATE_BYTES = 12  # a parameter: fp32 weight and two moments


def describe(config: RunConfig, world_size: int, dataset: Dataset | None = None) -> list[str]:
    """The model, the steps, the batch, the schedule and, where it is at hand, the data."""
    lines = [_model(config), _steps(config), _batch(config, world_size), _schedule(config)]
    if config.init_from:
        lines.append(f"Weights: those of {config.init_from} at step 0, with moments of zero.")
    return lines + ([_data(config, dataset)] if dataset else [])


def num_parameters(config: RunConfig) -> int:
    """Parameters of the model, its head included."""
    return sum(prod(p.shape) for p in empty_model(config.model).parameters())


def _model(config: RunConfig) -> str:
    dimensions = model_dimensions(config.model)
    name = config.model.variant or f"{dimensions['hidden_dim']} x {dimensions['num_blocks']}"
    count = num_parameters(config)
    giga = num_multiply_adds(**dimensions) / 1e9
    return (
        f"Model: Mixer-{name} at {config.model.image_size} px with {config.model.num_classes} "
        f"classes has {count:,} parameters and takes {giga:,.3g} G multiply-adds an image; "
        f"weights and moments are {count * STATE_BYTES / 1e9:.3g} GB over all ranks."
    )


def _steps(config: RunConfig) -> str:
    images = config.total_steps * config.global_batch_size
    return (
        f"Steps: {config.total_steps:,} steps of {config.global_batch_size:,} images are "
        f"{images:,} images; a checkpoint every {config.checkpoint.every_steps:,} steps."
    )


def _batch(config: RunConfig, world_size: int) -> str:
    size, accumulation = micro_batch_shape(config, world_size)
    ranks = "1 rank takes" if world_size == 1 else f"{world_size} ranks take"
    return (
        f"Batch: {ranks} {config.global_batch_size:,} images a step in micro-batches of "
        f"{size}, so gradients accumulate over {accumulation} (grad_accum_steps); "
        f"engine {config.engine.name}, {config.engine.precision}."
    )


def _schedule(config: RunConfig) -> str:
    optimizer = config.optimizer
    return (
        f"Schedule: the learning rate rises to {optimizer.learning_rate:g} over "
        f"{optimizer.warmup_steps:,} steps, then falls ({optimizer.decay}) to "
        f"{optimizer.end_learning_rate:g}; weight decay {optimizer.weight_decay:g}, gradients "
        f"clipped to norm {optimizer.max_grad_norm:g}, {config.loss} loss."
    )


def _data(config: RunConfig, dataset: Dataset) -> str:
    epochs = config.total_steps * config.global_batch_size / dataset.num_samples
    shards = "1 shard" if len(dataset.parts) == 1 else f"{len(dataset.parts):,} shards"
    return (
        f"Data: {dataset.num_samples:,} images in {shards} ({dataset.num_bytes / 1e6:,.1f} MB); "
        f"the run reads them {epochs:.1f} times."
    )
