"""Mixers that others wrote for PyTorch, of the paper's sizes."""

from functools import cache
from typing import Any

import torch
from torch import nn

from mixer_dist.models.mixer import VARIANTS


def timm_mixer(variant: str, num_classes: int, **options: Any) -> nn.Module:
    """timm's model, as timm builds it but for the options; it has all of the paper's but H/14."""
    declare_torchvision_operators()
    import timm

    name = f"mixer_{variant.replace('/', '').lower()}_224"
    return timm.create_model(name, num_classes=num_classes, **options)


def timm_of_size(variant: str, num_classes: int) -> nn.Module:
    """timm's model in any of the paper's sizes, H/14 too."""
    declare_torchvision_operators()
    from timm.models.mlp_mixer import MlpMixer

    sizes = VARIANTS[variant]
    widths = (sizes.tokens_mlp_dim / sizes.hidden_dim, sizes.channels_mlp_dim / sizes.hidden_dim)
    return MlpMixer(
        num_classes=num_classes,
        img_size=224,
        patch_size=sizes.patch_size,
        num_blocks=sizes.num_blocks,
        embed_dim=sizes.hidden_dim,
        mlp_ratio=widths,
    )


def lucidrains_mixer(variant: str, num_classes: int) -> nn.Module:
    """The model of the package mlp-mixer-pytorch, given the paper's sizes.

    It makes the hidden layer of token mixing `expansion_factor` times as wide as there are
    channels, and that of channel mixing `expansion_factor_token` times: its defaults are swapped.
    """
    from mlp_mixer_pytorch import MLPMixer

    sizes = VARIANTS[variant]
    return MLPMixer(
        image_size=224,
        channels=3,
        patch_size=sizes.patch_size,
        dim=sizes.hidden_dim,
        depth=sizes.num_blocks,
        num_classes=num_classes,
        expansion_factor=sizes.tokens_mlp_dim / sizes.hidden_dim,
        expansion_factor_token=sizes.channels_mlp_dim / sizes.hidden_dim,
    )


@cache
def declare_torchvision_operators() -> torch.library.Library | None:
    """Let timm import a torchvision for CUDA beside a torch for CPUs; no Mixer calls these."""
    if torch.cuda.is_available():
        return None
    library = torch.library.Library("torchvision", "DEF")
    for name in ("nms", "qnms"):
        library.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    return library  # which takes its operators along when it goes: the cache keeps it
