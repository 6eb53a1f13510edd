"""Which Mixer some weights are of, and every name that does not match; weights in our names.

C channels, K classes, P patch size, S tokens, D_S tokens_mlp_dim, D_C channels_mlp_dim.
"""

import math
import re
from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from mixer_dist.models.mixer import COLOURS, Dimensions, MlpMixer, patch_grid

STEM = "stem.weight"  # (C, P*P*3)
TOKEN_KERNEL = "blocks.0.token_mixing.fc1.weight"  # (D_S, S)
CHANNEL_KERNEL = "blocks.0.channel_mixing.fc1.weight"  # (D_C, C)
HEAD = ("head.weight", "head.bias")  # (K, C), (K,)


def infer_dimensions(tensors: Mapping[str, Tensor]) -> Dimensions:
    """Return `MlpMixer`'s arguments for its weights, assuming a square image of sqrt(S)*P."""
    dimensions = _column_dimensions(tensors)
    num_tokens, _ = patch_grid(dimensions["image_size"], dimensions["patch_size"])
    side = math.isqrt(num_tokens)
    if side**2 != num_tokens:
        raise ValueError(
            f"expected the square number of tokens of a square image, got {num_tokens}; "
            "build the model with its image_size (height, width) instead"
        )
    dimensions["image_size"] = side * dimensions["patch_size"]
    return dimensions


def check_is_mixer(tensors: Mapping[str, Tensor], key: Callable[[str], str] = str) -> None:
    """Raise one ValueError that names every tensor which a Mixer of these sizes has not, or lacks.

    `key` gives the name in the weights' source of one of our names.
    """
    with torch.device("meta"):
        model = MlpMixer(**_column_dimensions(tensors))
    if found := mismatches(tensors, model, key):
        raise ValueError("; ".join(found))


def mismatches(
    tensors: Mapping[str, Tensor], model: MlpMixer, key: Callable[[str], str] = str
) -> list[str]:
    """Return a line for each tensor that is missing, unexpected or of another shape."""

    def shown(name: str) -> str:
        return name if key(name) == name else f"{name} ({key(name)})"

    shapes = {name: parameter.shape for name, parameter in model.named_parameters()}
    wrong = [f"missing {shown(name)}" for name in sorted(shapes.keys() - tensors.keys())]
    wrong += [f"unexpected {shown(name)}" for name in sorted(tensors.keys() - shapes.keys())]
    for name in sorted(shapes.keys() & tensors.keys()):
        given, expected = tuple(tensors[name].shape), tuple(shapes[name])
        if given != expected:
            wrong.append(f"{shown(name)} has shape {given}, expected {expected}")
    return wrong


def num_classes(tensors: Mapping[str, Tensor]) -> int:
    """Return K of a head, 0 where there is none."""
    head = [tensors[name] for name in HEAD if name in tensors]
    return next((tensor.shape[0] for tensor in head if tensor.dim()), 0)


def _column_dimensions(tensors: Mapping[str, Tensor]) -> Dimensions:
    """Return `MlpMixer`'s arguments for images one patch wide: weights tell S, but not the grid."""
    _check_matrices(tensors, (STEM, TOKEN_KERNEL, CHANNEL_KERNEL))
    hidden_dim, patch_values = tensors[STEM].shape
    patch_size = math.isqrt(patch_values // COLOURS)
    tokens_mlp_dim, num_tokens = tensors[TOKEN_KERNEL].shape
    return {
        "image_size": (num_tokens * patch_size, patch_size),
        "patch_size": patch_size,
        "hidden_dim": hidden_dim,
        "num_blocks": len({found[0] for name in tensors if (found := _block(name))}),
        "tokens_mlp_dim": tokens_mlp_dim,
        "channels_mlp_dim": tensors[CHANNEL_KERNEL].shape[0],
        "num_classes": num_classes(tensors),
    }


def _block(name: str) -> re.Match[str] | None:
    return re.match(r"blocks\.\d+\.", name)


def _check_matrices(tensors: Mapping[str, Tensor], names: tuple[str, ...]) -> None:
    unfit = [name for name in names if name not in tensors or tensors[name].dim() != 2]
    if unfit:
        raise ValueError(
            "expected the weights of a Mixer, got none, or no matrix, for "
            f"{', '.join(unfit)}; check that they are a Mixer's"
        )
