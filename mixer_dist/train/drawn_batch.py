"""A batch of noise in the shape that a run's batches have, for trying and timing steps."""

import torch

from mixer_dist import distributed
from mixer_dist.config import RunConfig
from mixer_dist.data.batch import Batch, filled
from mixer_dist.data.order import batch_positions, rank_slice
from mixer_dist.data.stream import micro_batch_shape
from mixer_dist.train.build import model_dimensions

MIXED = 0.8  # any share but 1 mixes


def drawn_batch(config: RunConfig) -> Batch:
    """This rank's share, on the host."""
    world_size, sizes = distributed.world_size(), model_dimensions(config.model)
    micro_batch_size, grad_accum_steps = micro_batch_shape(config, world_size)
    num_rows = micro_batch_size * grad_accum_steps
    mine = rank_slice(distributed.rank(), world_size, config.global_batch_size)
    positions = filled(batch_positions(0, config.global_batch_size)[mine], num_rows, -1)
    pixels = (num_rows, 3, config.model.image_size, config.model.image_size)
    masks = (sizes["num_blocks"], 2, num_rows)
    return Batch(
        images=torch.randint(256, pixels, dtype=torch.uint8),
        labels=torch.randint(config.model.num_classes, (num_rows,)),
        weights=(positions >= 0).to(torch.float32),
        positions=positions,
        depth_masks=torch.ones(masks, dtype=torch.uint8) if config.model.stochastic_depth else None,
        mixup=MIXED if config.augment.mixup else 1.0,
    )
