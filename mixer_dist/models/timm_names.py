"""timm's names for a Mixer's parameters (`mixer_b16_224` and the like), both ways.

C channels, K classes, P patch size.

    ours                              timm's
    stem.weight (C, P*P*3)            stem.proj.weight (C, 3, P, P)
    blocks.0.token_norm.weight        blocks.0.norm1.weight
    blocks.0.token_mixing.fc1.weight  blocks.0.mlp_tokens.fc1.weight
    pre_head_norm.weight              norm.weight
    head.weight (K, C)                head.weight (K, C)

Linear weights have the same shape in both. timm's models use the exact GELU unless they are built
with the tanh approximation of the official ones: `act_layer=partial(nn.GELU, approximate="tanh")`.
"""

import math
import re
from collections.abc import Iterable, Mapping

from torch import Tensor

from mixer_dist.models.mixer import COLOURS

# Module names, ours and theirs; in a block they follow `blocks.<index>.`.
_MODULES = {"stem": "stem.proj", "pre_head_norm": "norm", "head": "head"}
_BLOCK_MODULES = {
    "token_norm": "norm1",
    "token_mixing.fc1": "mlp_tokens.fc1",
    "token_mixing.fc2": "mlp_tokens.fc2",
    "channel_norm": "norm2",
    "channel_mixing.fc1": "mlp_channels.fc1",
    "channel_mixing.fc2": "mlp_channels.fc2",
}
_OUR_MODULES = {theirs: ours for ours, theirs in _MODULES.items()}
_OUR_BLOCK_MODULES = {theirs: ours for ours, theirs in _BLOCK_MODULES.items()}

_BLOCK = re.compile(r"(blocks\.\d+\.)(.+)")


def to_timm(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Our parameters under timm's names, the stem as a convolution's kernel."""
    return {timm_key(name): _convolution(name, value) for name, value in tensors.items()}


def from_timm(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """timm's parameters under our names; a name that no Mixer has stays as it is."""
    ours: dict[str, Tensor] = {}
    for key, value in tensors.items():
        name = _our_name(key)
        is_taken = name != key and name in tensors  # two names for one parameter are not merged
        ours[key if is_taken else name] = value if is_taken else _flat_patches(key, value)
    return ours


def is_timm(keys: Iterable[str]) -> bool:
    """Whether names of parameters are timm's and not ours."""
    return any(_our_name(key) != key for key in keys)


def timm_key(name: str) -> str:
    """timm's name of one of our parameters; other names stay as they are."""
    return _renamed(name, _MODULES, _BLOCK_MODULES)


def _our_name(key: str) -> str:
    return _renamed(key, _OUR_MODULES, _OUR_BLOCK_MODULES)


def _renamed(name: str, modules: Mapping[str, str], block_modules: Mapping[str, str]) -> str:
    block = _BLOCK.fullmatch(name)
    prefix, rest = (block[1], block[2]) if block else ("", name)
    module, _, leaf = rest.rpartition(".")
    renamed = (block_modules if block else modules).get(module)
    return name if renamed is None else f"{prefix}{renamed}.{leaf}"


def _convolution(name: str, value: Tensor) -> Tensor:
    if name != "stem.weight":
        return value
    patch_size = math.isqrt(value.shape[1] // COLOURS)
    kernel = value.view(-1, patch_size, patch_size, COLOURS)  # (C, P, P, 3)
    return kernel.permute(0, 3, 1, 2).contiguous()  # (C, 3, P, P)


def _flat_patches(key: str, value: Tensor) -> Tensor:
    if key != "stem.proj.weight" or value.dim() != 4:
        return value
    return value.permute(0, 2, 3, 1).flatten(1)  # (C, P*P*3)
