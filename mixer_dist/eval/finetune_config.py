"""From a run and a fine-tuning task to the configuration of one fine-tuning run; pure."""

from collections.abc import Sequence

from mixer_dist.config import (
    AugmentConfig,
    CheckpointConfig,
    DataConfig,
    DatasetConfig,
    FinetuneConfig,
    ModelConfig,
    OptimizerConfig,
    RunConfig,
)
from mixer_dist.errors import ConfigError
from mixer_dist.eval.features import RESIZE_RATIO
from mixer_dist.sections import parse
from mixer_dist.train.build import model_dimensions


def finetune_config(
    config: RunConfig,
    task: FinetuneConfig,
    run_dir: str,
    init_from: str | None,
    manifests: Sequence[str],
    num_classes: int,
    learning_rate: float,
    seed: int,
) -> RunConfig:
    """A whole run: softmax, SGD, a zero head, nothing random but crops and flips (section 3)."""
    model = finetune_model(config.model, task, num_classes)
    data = config.data.model_dump(include={"num_threads", "prefetch_batches", "max_bad_fraction"})
    changes = {
        "run_dir": run_dir,
        "seed": seed,
        "total_steps": task.total_steps,
        "global_batch_size": task.global_batch_size,
        "micro_batch_size": task.micro_batch_size or _micro_batch_size(config, task),
        "loss": "softmax",
        "model": model,
        "init_from": init_from,
        "init_head": "new",
        "data": DataConfig(train=tuple(DatasetConfig(manifest=url) for url in manifests), **data),
        "augment": _augment(task, model.image_size),
        "optimizer": OptimizerConfig(
            name="sgd",
            learning_rate=learning_rate,
            warmup_steps=task.warmup_steps,
            decay=task.decay,
        ),
        "checkpoint": CheckpointConfig(
            every_steps=task.checkpoint_steps, keep_last=1, grace_s=config.checkpoint.grace_s
        ),
        "logging": config.logging.model_copy(update={"tensorboard": False}),
        "evals": (),
    }
    if config.engine.name.startswith("zero"):  # which has AdamW only
        changes["engine"] = config.engine.model_copy(update={"name": "fsdp"})
    tree = config.model_copy(update=changes).model_dump(mode="json")
    return parse(RunConfig, tree, f"evals: {task.name}")


def _micro_batch_size(config: RunConfig, task: FinetuneConfig) -> int | str:
    size = config.micro_batch_size
    return size if size == "auto" else min(size, task.global_batch_size)


def finetune_model(model: ModelConfig, task: FinetuneConfig, num_classes: int) -> ModelConfig:
    """The pretrained model for the task's images and classes; ConfigError."""
    sizes = model_dimensions(model)
    size_px = task.image_size or model.image_size
    factor, rest = divmod(size_px, model.image_size)
    if rest:
        raise ConfigError(
            f"{task.name}: image_size ({size_px}) must be a multiple of the pretrained model's "
            f"({model.image_size}), so that its token-mixing MLPs can be repeated"
        )
    sizes["tokens_mlp_dim"] *= factor**2  # one block a part of the image (appendix C)
    return ModelConfig(**sizes | {"image_size": size_px, "num_classes": num_classes})


def _augment(task: FinetuneConfig, size_px: int) -> AugmentConfig:
    if not task.crop:
        return AugmentConfig(min_crop_area=1.0, flip=task.flip)
    resize = task.train_resize or round(size_px * RESIZE_RATIO)
    return AugmentConfig(resize=resize, flip=task.flip)
