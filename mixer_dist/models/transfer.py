"""Weights of one Mixer made the first weights of another, as the paper fine-tunes.

Another resolution repeats the token-mixing MLPs over the parts of the larger image (appendix C);
another number of classes begins the head anew (section 3). Weights are in our names, fp32.
"""

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from mixer_dist.models.initial import initial_value
from mixer_dist.models.matching import HEAD, TOKEN_KERNEL, mismatches, num_classes
from mixer_dist.models.mixer import MlpMixer, patch_grid
from mixer_dist.models.resolution import change_resolution


@dataclass(frozen=True)
class Transfer:
    """What a model begins with, and where it comes from."""

    tensors: dict[str, Tensor]
    """Every parameter of the model, fp32."""
    report: tuple[str, ...]
    """What was taken, enlarged and begun anew, in sentences."""


def transfer(
    tensors: Mapping[str, Tensor],
    model: MlpMixer,
    key: Callable[[str], str] = str,
    *,
    keep_head: bool = True,
) -> Transfer:
    """Fit weights to a model that may be on the meta device, the head where it fits and is wanted.

    Every tensor that does not match is named in one ValueError, by our name and by what `key`
    makes of it.
    """
    source = _source_model(tensors, model)
    problems = mismatches(tensors, source, key)
    problems += _resolution_problems(tensors, source, model)
    if problems:
        raise ValueError("; ".join(problems))
    source.load_state_dict(tensors, assign=True)
    enlarged = change_resolution(source, model.image_size).state_dict()
    keep_head &= source.num_classes == model.num_classes
    taken = {name: enlarged[name] for name in enlarged if keep_head or name not in HEAD}
    new = {
        name: initial_value(name, parameter.shape, seed=0, head_bias=model.head_bias)
        for name, parameter in model.named_parameters()
        if name not in taken  # the head, of which nothing is drawn
    }
    fitted = {name: value.contiguous() for name, value in (taken | new).items()}
    return Transfer(fitted, tuple(_report(len(taken), source, model, keep_head)))


def _source_model(tensors: Mapping[str, Tensor], model: MlpMixer) -> MlpMixer:
    """The model that the weights should be of: another head and a smaller image are allowed."""
    dimensions = model.dimensions.copy()
    dimensions["num_classes"] = num_classes(tensors)
    factor = _factor(tensors, model)
    if factor > 1:
        height, width = model.image_size
        dimensions["image_size"] = (height // factor, width // factor)
        dimensions["tokens_mlp_dim"] = tensors[TOKEN_KERNEL].shape[0]
    with torch.device("meta"):
        return MlpMixer(**dimensions, head_bias=model.head_bias)


def _factor(tensors: Mapping[str, Tensor], model: MlpMixer) -> int:
    """How many times higher and wider the model's images are; 1 where that is no whole number."""
    kernel = tensors.get(TOKEN_KERNEL)
    rows, columns = patch_grid(model.image_size, model.patch_size)
    if kernel is None or kernel.dim() != 2 or not kernel.numel():
        return 1
    factor = math.isqrt(rows * columns // kernel.shape[1])
    is_whole = factor > 0 and rows % factor == 0 == columns % factor
    return factor if is_whole and factor**2 * kernel.shape[1] == rows * columns else 1


def _resolution_problems(
    tensors: Mapping[str, Tensor], source: MlpMixer, model: MlpMixer
) -> Iterator[str]:
    """What has to change in the model for images of another size than those of the weights."""
    kernel = tensors.get(TOKEN_KERNEL)
    factor, given = _enlargement(source, model), model.dimensions["tokens_mlp_dim"]
    needed = factor**2 * source.dimensions["tokens_mlp_dim"]
    num_tokens = math.prod(patch_grid(source.image_size, source.patch_size))
    if factor > 1 and needed != given:
        yield (
            f"from {source.image_size[0]} to {model.image_size[0]} px the token-mixing MLPs are "
            f"repeated {factor**2} times, so tokens_mlp_dim has to be {needed}, not {given}"
        )
    if kernel is not None and kernel.shape[-1:] != (num_tokens,):
        yield (
            "another image size has to be K times that of the weights, with a whole K: "
            f"{num_tokens} tokens are not K x K x {kernel.shape[-1]}"
        )


def _enlargement(source: MlpMixer, model: MlpMixer) -> int:
    return model.image_size[0] // source.image_size[0]


def _report(num_taken: int, source: MlpMixer, model: MlpMixer, keep_head: bool) -> Iterator[str]:
    yield f"{num_taken} tensors are taken"
    if (factor := _enlargement(source, model)) > 1:
        yield (
            f"the token-mixing MLPs of all {source.num_blocks} blocks are repeated over "
            f"{factor} x {factor} parts, from {source.image_size[0]} to {model.image_size[0]} px"
        )
    if not keep_head:
        yield (
            f"the head begins anew, for {model.num_classes:,} classes (before: "
            f"{source.num_classes or 'none'}): weights 0, biases {model.head_bias:g}"
        )
