"""MLP-Mixer: the arithmetic and the paper's sizes (arXiv 2105.01601).

B batch, S tokens (patches), C channels (hidden_dim), K classes, P patch size,
D_S tokens_mlp_dim, D_C channels_mlp_dim; a patch grid has `rows` x `columns` = S patches.

Activations are token-major, (S, B, C): token mixing is one matrix product
(D_S, S) @ (S, B*C), channel mixing another, LayerNorm runs over the last axis and the average
over the first, so no activation is ever transposed. A parameter is used only in the forward of
the module that owns it, because ZeRO-3 and FSDP gather parameters by hooks on that module.
"""

from dataclasses import asdict, dataclass
from typing import TypedDict

import torch
from torch import Tensor, nn

from mixer_dist.models.fused import LAYER_NORM_EPSILON, Branch, added
from mixer_dist.models.initial import initialize
from mixer_dist.models.recomputed import (
    ChannelLinear,
    LazyLayerNorm,
    Normed,
    RecomputedChannelLinear,
    TokenLinear,
)

COLOURS = 3


@dataclass(frozen=True)
class Variant:
    """The sizes of one column of the paper's table 1."""

    patch_size: int
    hidden_dim: int
    num_blocks: int
    tokens_mlp_dim: int
    channels_mlp_dim: int


VARIANTS: dict[str, Variant] = {
    "S/32": Variant(32, 512, 8, 256, 2048),
    "S/16": Variant(16, 512, 8, 256, 2048),
    "B/32": Variant(32, 768, 12, 384, 3072),
    "B/16": Variant(16, 768, 12, 384, 3072),
    "L/32": Variant(32, 1024, 24, 512, 4096),
    "L/16": Variant(16, 1024, 24, 512, 4096),
    "H/14": Variant(14, 1280, 32, 640, 5120),
}


class Dimensions(TypedDict):
    """The sizes that `MlpMixer` and `num_multiply_adds` take by name."""

    image_size: int | tuple[int, int]
    patch_size: int
    hidden_dim: int
    num_blocks: int
    tokens_mlp_dim: int
    channels_mlp_dim: int
    num_classes: int


class Mlp(nn.Module):
    """Two linear maps with a GELU between them (paper section 2, eq. 1)."""

    def __init__(self, fc1: nn.Module, fc2: nn.Module) -> None:
        super().__init__()
        self.fc1 = fc1
        self.fc2 = fc2

    def forward(self, x: Normed) -> Tensor | Branch:
        """Return fc2(gelu(fc1(LayerNorm(x)))), of the shape of x."""
        mixed: Tensor | Branch = self.fc2(self.fc1(x))  # which know what they are maps of
        return mixed


class MixerBlock(nn.Module):
    """Token mixing, then channel mixing, each behind a LayerNorm and a skip (paper eq. 1)."""

    def __init__(
        self, num_tokens: int, hidden_dim: int, tokens_mlp_dim: int, channels_mlp_dim: int
    ) -> None:
        super().__init__()
        self.token_norm = LazyLayerNorm(hidden_dim)
        self.token_mixing = Mlp(
            TokenLinear(num_tokens, tokens_mlp_dim), TokenLinear(tokens_mlp_dim, num_tokens)
        )
        self.channel_norm = LazyLayerNorm(hidden_dim)
        self.channel_mixing = Mlp(
            RecomputedChannelLinear(hidden_dim, channels_mlp_dim),
            RecomputedChannelLinear(channels_mlp_dim, hidden_dim),
        )

    def forward(self, x: Tensor, masks: Tensor | None = None) -> Tensor:
        """Map (S, B, C) to (S, B, C); `masks` (2, B) of {0, 1} keep or drop the two branches."""
        token_mask, channel_mask = (None, None) if masks is None else masks.unbind(0)
        x = _add_branch(x, self.token_mixing(self.token_norm(x)), token_mask)
        return _add_branch(x, self.channel_mixing(self.channel_norm(x)), channel_mask)


class MlpMixer(nn.Module):
    """MLP-Mixer (paper section 2); `num_classes=0` leaves out the head."""

    def __init__(
        self,
        image_size: int | tuple[int, int],
        patch_size: int,
        hidden_dim: int,
        num_blocks: int,
        tokens_mlp_dim: int,
        channels_mlp_dim: int,
        num_classes: int,
        *,
        head_bias: float = 0.0,
    ) -> None:
        super().__init__()
        self.dimensions: Dimensions = {
            "image_size": height_and_width(image_size),
            "patch_size": patch_size,
            "hidden_dim": hidden_dim,
            "num_blocks": num_blocks,
            "tokens_mlp_dim": tokens_mlp_dim,
            "channels_mlp_dim": channels_mlp_dim,
            "num_classes": num_classes,
        }
        _check_dimensions(self.dimensions)
        self.image_size = height_and_width(image_size)
        self.patch_size = patch_size
        self.num_blocks = num_blocks
        self.num_classes = num_classes
        self.head_bias = head_bias
        rows, columns = patch_grid(image_size, patch_size)
        self.stem = ChannelLinear(COLOURS * patch_size**2, hidden_dim)
        self.blocks = nn.ModuleList(
            MixerBlock(rows * columns, hidden_dim, tokens_mlp_dim, channels_mlp_dim)
            for _ in range(num_blocks)
        )
        self.pre_head_norm = nn.LayerNorm(hidden_dim, eps=LAYER_NORM_EPSILON)
        self.head = ChannelLinear(hidden_dim, num_classes) if num_classes else None
        if not self.stem.weight.is_meta:
            initialize(self, seed=0, head_bias=head_bias)

    def features(self, images: Tensor, depth_masks: Tensor | None = None) -> Tensor:
        """Return the pre-logits (B, C) of images (B, 3, H, W), averaged over the tokens.

        `depth_masks` (num_blocks, 2, B) of {0, 1} multiply each block's token and channel
        branch: the stochastic depth of the official code, which does not rescale what it keeps.
        """
        self._check_images(images)
        self._check_depth_masks(depth_masks, images.shape[0])
        x = self.stem(patchify(images, self.patch_size))  # (S, B, C)
        for index, block in enumerate(self.blocks):
            x = block(x, None if depth_masks is None else depth_masks[index])
        pre_logits: Tensor = self.pre_head_norm(x).mean(0)  # (B, C)
        return pre_logits

    def forward(self, images: Tensor, depth_masks: Tensor | None = None) -> Tensor:
        """Return logits (B, K) of images (B, 3, H, W), or `features` if there is no head."""
        pre_logits = self.features(images, depth_masks)  # (B, C)
        if self.head is None:
            return pre_logits
        logits: Tensor = self.head(pre_logits)  # (B, K)
        return logits

    def _check_images(self, images: Tensor) -> None:
        height, width = self.image_size
        if images.dim() != 4 or images.shape[1:] != (COLOURS, height, width):
            raise ValueError(
                f"expected images of shape (batch, {COLOURS}, {height}, {width}), got "
                f"{tuple(images.shape)}; resize them or build the model with another image_size"
            )
        if not images.is_floating_point():
            raise ValueError(
                f"expected floating-point images, got {images.dtype}; scale them to [-1, 1] first"
            )

    def _check_depth_masks(self, depth_masks: Tensor | None, batch: int) -> None:
        expected = (self.num_blocks, 2, batch)
        if depth_masks is not None and depth_masks.shape != expected:
            raise ValueError(
                f"expected depth_masks of shape {expected}, got {tuple(depth_masks.shape)}; "
                "give each block a token mask and a channel mask for every image"
            )


def build_mixer(
    variant: str,
    num_classes: int,
    image_size: int | tuple[int, int] = 224,
    *,
    head_bias: float = 0.0,
) -> MlpMixer:
    """Build a model of the paper's table 1, named as there: 'S/32' to 'H/14'."""
    if variant not in VARIANTS:
        raise ValueError(
            f"expected a Mixer variant out of {', '.join(VARIANTS)}, got {variant!r}; "
            "for other sizes build MlpMixer itself"
        )
    sizes = asdict(VARIANTS[variant])
    return MlpMixer(image_size, **sizes, num_classes=num_classes, head_bias=head_bias)


def patchify(images: Tensor, patch_size: int) -> Tensor:
    """Cut (B, 3, H, W) into row-major patches (S, B, P*P*3), pixels ordered row, column, colour.

    This order makes the stem's weight the official convolution kernel (P, P, 3, C), flattened.
    """
    batch, _, height, width = images.shape
    rows, columns = height // patch_size, width // patch_size
    x = images.reshape(batch, COLOURS, rows, patch_size, columns, patch_size)
    x = x.permute(2, 4, 0, 3, 5, 1)  # (rows, columns, B, P, P, 3)
    return x.reshape(rows * columns, batch, patch_size * patch_size * COLOURS)  # (S, B, P*P*3)


def depth_rates(num_blocks: int, rate: float) -> list[float]:
    """Return each block's drop probability i / max(n - 1, 1) * rate, so 0 first and `rate` last.

    One block alone is never dropped. (Formula: google-research/big_vision, models/mlp_mixer.py.)
    """
    return [index / max(num_blocks - 1, 1) * rate for index in range(num_blocks)]


def num_multiply_adds(
    image_size: int | tuple[int, int],
    patch_size: int,
    hidden_dim: int,
    num_blocks: int,
    tokens_mlp_dim: int,
    channels_mlp_dim: int,
    num_classes: int,
) -> int:
    """Return the multiply-adds of one image's forward pass, matrix products only."""
    rows, columns = patch_grid(image_size, patch_size)
    num_tokens = rows * columns
    stem = num_tokens * patch_size**2 * COLOURS * hidden_dim
    token_mixing = 2 * hidden_dim * num_tokens * tokens_mlp_dim
    channel_mixing = 2 * num_tokens * hidden_dim * channels_mlp_dim
    return stem + num_blocks * (token_mixing + channel_mixing) + hidden_dim * num_classes


def patch_grid(image_size: int | tuple[int, int], patch_size: int) -> tuple[int, int]:
    """Return how many patches an image has as (rows, columns)."""
    height, width = height_and_width(image_size)
    return height // patch_size, width // patch_size


def height_and_width(image_size: int | tuple[int, int]) -> tuple[int, int]:
    """Return an image size as (height, width)."""
    if isinstance(image_size, int):
        return image_size, image_size
    height, width = image_size
    return height, width


def _add_branch(x: Tensor, branch: Tensor | Branch, mask: Tensor | None) -> Tensor:
    if isinstance(branch, Branch):
        return added(branch, mask)
    if mask is None:
        return x + branch
    # addcmul: one pass over memory instead of the two of x + mask * branch.
    return torch.addcmul(x, branch, mask.to(branch.dtype).view(1, -1, 1))  # (S, B, C)


def _check_dimensions(dimensions: Dimensions) -> None:
    height, width = height_and_width(dimensions["image_size"])
    patch_size = dimensions["patch_size"]
    sizes = [size for size in dimensions.values() if isinstance(size, int)]
    if min(height, width, patch_size) < 1 or min(sizes) < 0:
        raise ValueError(
            f"expected an image and patch size of at least 1 and no negative size, got {dimensions}"
        )
    if height % patch_size or width % patch_size:
        raise ValueError(
            f"expected an image size divisible by the patch size {patch_size}, got "
            f"{(height, width)}; choose multiples of {patch_size} as height and width"
        )
