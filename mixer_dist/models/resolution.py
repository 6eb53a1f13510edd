"""A trained model made to take images K times larger (paper appendix C, arXiv 2105.01601).

S tokens, D_S tokens_mlp_dim, K the factor of both height and width; the enlarged model
has K*K*S tokens and a tokens_mlp_dim of K*K*D_S.

The paper repeats each token-mixing MLP block-diagonally, once for each of the K x K parts of the
larger image. That wants the tokens of a part side by side, but a model sees them row by row over
the whole image, so the token axes of the repeated weights are permuted into that order.
"""

import torch
from torch import Tensor

from mixer_dist.models.mixer import Dimensions, MlpMixer, height_and_width, patch_grid


def change_resolution(model: MlpMixer, image_size: int | tuple[int, int]) -> MlpMixer:
    """Return a new model for images of K times the height and width; head and dtype are kept.

    Before any fine-tuning its pre-logits are the mean of the old model's over the K x K parts.
    """
    dimensions = _enlarged_dimensions(model, image_size)
    with torch.device("meta"):
        enlarged = MlpMixer(**dimensions, head_bias=model.head_bias)
    factor = enlarged.image_size[0] // model.image_size[0]
    order = part_order(patch_grid(model.image_size, model.patch_size), factor)  # (K*K*S,)
    state = {
        name: _enlarged_parameter(name, parameter.detach(), factor**2, order)
        for name, parameter in model.named_parameters()
    }
    enlarged.load_state_dict(state, assign=True)
    return enlarged.train(model.training)


def part_order(grid: tuple[int, int], factor: int) -> Tensor:
    """Return (K*K*S,) row-major token numbers of the large image, listed part after part.

    `grid` is the patch grid (rows, columns) of one part.
    """
    rows, columns = grid
    tokens = torch.arange(factor**2 * rows * columns, device="cpu")
    tokens = tokens.view(factor, rows, factor, columns)  # (part row, row, part column, column)
    return tokens.transpose(1, 2).reshape(-1)  # (K*K*S,)


def _enlarged_parameter(name: str, value: Tensor, num_parts: int, order: Tensor) -> Tensor:
    """Return a copy of a parameter, for token-mixing MLPs repeated over the parts."""
    if ".token_mixing." not in name:
        return value.clone()
    if value.dim() == 1:
        repeated = value.repeat(num_parts)
    else:
        repeated = torch.block_diag(*[value] * num_parts)  # type: ignore[no-untyped-call]
    rank = order.argsort().to(value.device)  # the place of each image-order token in part order
    if name.endswith("fc1.weight"):
        return repeated[:, rank]  # (K*K*D_S, K*K*S)
    if name.endswith("fc1.bias"):
        return repeated  # (K*K*D_S,): hidden units have no place in the image
    return repeated[rank]  # (K*K*S, K*K*D_S) or (K*K*S,)


def _enlarged_dimensions(model: MlpMixer, image_size: int | tuple[int, int]) -> Dimensions:
    old_height, old_width = model.image_size
    height, width = height_and_width(image_size)
    factor = height // old_height
    if factor < 1 or (height, width) != (factor * old_height, factor * old_width):
        raise ValueError(
            f"expected an image size K times {model.image_size} with one whole K >= 1, got "
            f"{(height, width)}: the larger image is cut into K x K parts of the old size, each "
            "with its own copy of the token-mixing MLPs; choose such a size"
        )
    dimensions = model.dimensions.copy()
    dimensions["image_size"] = (height, width)
    dimensions["tokens_mlp_dim"] *= factor**2
    return dimensions
