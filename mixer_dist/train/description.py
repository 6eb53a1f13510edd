"""A run in sentences: what the configuration comes to, before anything is done."""

from collections.abc import Sequence
from math import prod
from pathlib import Path

from mixer_dist.checkpoint.layout import TrainingState
from mixer_dist.config import RunConfig
from mixer_dist.data.manifest import Dataset
from mixer_dist.data.stream import micro_batch_shape
from mixer_dist.models.mixer import num_multiply_adds
from mixer_dist.run_dir import Change
from mixer_dist.train.build import empty_model, model_dimensions
from mixer_dist.train.changes import in_words
from mixer_dist.train.optim import scheduled_rate

STATE_BYTES = 12  # a parameter: fp32 weight and two moments

NOTHING_DONE = TrainingState(step=0, num_updates=0, position=0)


def describe(
    config: RunConfig,
    world_size: int,
    dataset: Dataset | None = None,
    done: TrainingState = NOTHING_DONE,
) -> list[str]:
    """The model, the steps, the batch, the schedule and, where it is at hand, the data."""
    lines = [_model(config), _steps(config, done), _batch(config, world_size), _schedule(config)]
    if config.init_from:
        lines.append(f"Weights: those of {config.init_from} at step 0, with moments of zero.")
    return lines + ([_data(config, dataset, done)] if dataset else [])


def missing_data(config: RunConfig) -> list[str]:
    """A sentence for each local manifest that is not there; no store is asked, as that may last."""
    urls = [entry.manifest for entry in config.data.train if "://" not in entry.manifest]
    return [f"NO DATASET at {url}: it has to be there when the run starts."
            for url in urls if not Path(url).exists()]  # fmt: skip


def describe_changes(changes: Sequence[Change], begun: RunConfig, config: RunConfig) -> str:
    """What is changed from here on, and what that does to the learning rate."""
    step = changes[0].step
    new, old = (scheduled_rate(step, each.total_steps, each.optimizer) for each in (config, begun))
    return (
        f"Changed after step {step:,}: {'; '.join(map(in_words, changes))}. The learning rate is "
        f"a function of the step and these values, whatever came before: {new:.3g} at step "
        f"{step + 1:,}, where the old values gave {old:.3g}."
    )


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


def _num_images(config: RunConfig, done: TrainingState) -> int:
    """Images of the whole run, whose first steps may have had another batch size."""
    return done.position + (config.total_steps - done.step) * config.global_batch_size


def _steps(config: RunConfig, done: TrainingState) -> str:
    is_changed = done.position != done.step * config.global_batch_size
    which = f", the last {config.total_steps - done.step:,}" if is_changed else ""
    return (
        f"Steps: {config.total_steps:,} steps{which} of {config.global_batch_size:,} images are "
        f"{_num_images(config, done):,} images; "
        f"a checkpoint every {config.checkpoint.every_steps:,} steps."
    )


def _batch(config: RunConfig, world_size: int) -> str:
    size, accumulation = micro_batch_shape(config, world_size)
    most = "as many as fit, at most " if config.micro_batch_size == "auto" else ""
    ranks = "1 rank takes" if world_size == 1 else f"{world_size} ranks take"
    return (
        f"Batch: {ranks} {config.global_batch_size:,} images a step in micro-batches of "
        f"{most}{size}, so gradients accumulate over {accumulation} (grad_accum_steps); "
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


def _data(config: RunConfig, dataset: Dataset, done: TrainingState) -> str:
    epochs = _num_images(config, done) / dataset.num_samples
    shards = "1 shard" if len(dataset.parts) == 1 else f"{len(dataset.parts):,} shards"
    return (
        f"Data: {dataset.num_samples:,} images in {shards} ({dataset.num_bytes / 1e6:,.1f} MB); "
        f"the run reads them {epochs:.1f} times."
    )
