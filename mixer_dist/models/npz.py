"""The official checkpoint layout: .npz files of fp32 arrays under the authors' names.

C channels, K classes, P patch size, S tokens, D_S tokens_mlp_dim, D_C channels_mlp_dim.

    ours                                      official
    stem.weight (C, P*P*3)                    stem/kernel (P, P, 3, C)
    blocks.0.token_norm.weight (C,)           MixerBlock_0/LayerNorm_0/scale (C,)
    blocks.0.token_mixing.fc1.weight (D_S, S) MixerBlock_0/token_mixing/Dense_0/kernel (S, D_S)
    head.weight (K, C)                        head/kernel (C, K)

Reading also takes the older layout that the authors' loader converts (google-research/big_vision,
models/mlp_mixer.py): `embedding/…`, `Mixer/encoder_norm/…`, and in `Mixer/encoderblock_0/`
`token_mixing_phase_0/kernel1` and the like.
"""

import io
import os
import re
import zipfile
import zlib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch
from torch import Tensor

from mixer_dist.models.mixer import COLOURS, MlpMixer

Array = np.ndarray[Any, np.dtype[Any]]

# Module and parameter names, ours and theirs; a block's index stands between the first two parts.
_OFFICIAL_MODULES = {
    "stem": "stem",
    "token_norm": "LayerNorm_0",
    "token_mixing.fc1": "token_mixing/Dense_0",
    "token_mixing.fc2": "token_mixing/Dense_1",
    "channel_norm": "LayerNorm_1",
    "channel_mixing.fc1": "channel_mixing/Dense_0",
    "channel_mixing.fc2": "channel_mixing/Dense_1",
    "pre_head_norm": "pre_head_layer_norm",
    "head": "head",
}
_OUR_MODULES = {theirs: ours for ours, theirs in _OFFICIAL_MODULES.items()}

_OLD_BLOCK = r"Mixer/encoderblock_(\d+)"
_OLD_DENSE = re.compile(
    _OLD_BLOCK + r"/(token_mixing|channel_mixing)_phase_\d+/(kernel|bias)([12])"
)
_OLD_NORM = re.compile(_OLD_BLOCK + r"/LayerNorm_(\d+)/(scale|bias)")


def load_npz(model: MlpMixer, path: str | os.PathLike[str]) -> None:
    """Set the model's parameters, of any dtype, to those of an official .npz file.

    Every missing, extra or misshapen array is named in one ValueError, and nothing is loaded.
    """
    arrays = _modernised(read_npz(path))
    _check(arrays, _official_shapes(model), str(path))
    model.load_state_dict(from_official(arrays))


def save_npz(model: MlpMixer, path: str | os.PathLike[str]) -> None:
    """Write the model's parameters as an official .npz file; equal weights give equal bytes."""
    _write_npz(to_official(model.state_dict(), model.patch_size), path)


def npz_bytes(arrays: Mapping[str, Array]) -> bytes:
    """Official arrays as the bytes of an .npz file, the same for the same values."""
    buffer = io.BytesIO()
    # np.savez stamps every member with the same fixed date, so the order decides.
    np.savez(buffer, **{key: arrays[key] for key in sorted(arrays)})  # type: ignore[arg-type]
    return buffer.getvalue()


def _write_npz(arrays: Mapping[str, Array], path: str | os.PathLike[str]) -> None:
    """Write official arrays whole or not at all."""
    target = Path(path)
    partial = target.with_name(f".{target.name}.{os.getpid()}.partial")
    try:
        partial.write_bytes(npz_bytes(arrays))
        partial.replace(target)
    finally:
        partial.unlink(missing_ok=True)


def read_npz(path: str | os.PathLike[str]) -> dict[str, Array]:
    """Return all arrays of an .npz file, in the layout they were written in; no pickle is read."""
    with open(path, "rb") as file:
        return parse_npz(file, str(path))


def parse_npz(file: BinaryIO, source: str) -> dict[str, Array]:
    """Return the same of an open file, which errors call by the name of its source."""
    try:
        loaded = np.load(file, allow_pickle=False)
        if isinstance(loaded, np.ndarray):
            raise ValueError("it holds a single array")
        with loaded:
            return {key: loaded[key] for key in loaded.files}
    except (ValueError, RuntimeError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        # zipfile has all of these for damaged bytes, a RuntimeError where they read "encrypted".
        raise ValueError(
            f"expected an .npz file of numeric arrays, got {source} ({error}); "
            "download or export it again"
        ) from error


def to_official(state_dict: Mapping[str, Tensor], patch_size: int) -> dict[str, Array]:
    """Return the official names and fp32 arrays of some or all of our parameters."""
    return {
        official_key(name): _official_array(name, value, patch_size)
        for name, value in state_dict.items()
    }


def from_official(arrays: Mapping[str, Array]) -> dict[str, Tensor]:
    """Return our names and fp32 tensors of official arrays, in either of their layouts.

    A name that no Mixer has stays as it is; ValueError for arrays that are no numbers.
    """
    modern = _modernised(arrays)
    if other := [
        f"{key} is {array.dtype}" for key, array in modern.items() if not _is_float(array)
    ]:
        raise ValueError(f"expected arrays of floating-point numbers, got: {'; '.join(other)}")
    return {_our_name(key): _our_tensor(array) for key, array in modern.items()}


def official_key(name: str) -> str:
    """Return the official name of one of our parameters."""
    module, _, leaf = name.rpartition(".")
    block = re.fullmatch(r"blocks\.(\d+)\.(.+)", module)
    prefix, module = (f"MixerBlock_{block[1]}/", block[2]) if block else ("", module)
    if module not in _OFFICIAL_MODULES or leaf not in ("weight", "bias"):
        raise ValueError(f"expected the name of an MlpMixer parameter, got {name!r}")
    scale_or_kernel = "scale" if module.endswith("norm") else "kernel"
    official_leaf = "bias" if leaf == "bias" else scale_or_kernel
    return f"{prefix}{_OFFICIAL_MODULES[module]}/{official_leaf}"


def _our_name(key: str) -> str:
    module, _, leaf = key.rpartition("/")
    block = re.fullmatch(r"MixerBlock_(\d+)/(.+)", module)
    prefix, module = (f"blocks.{block[1]}.", block[2]) if block else ("", module)
    if module not in _OUR_MODULES:
        return key
    name = f"{prefix}{_OUR_MODULES[module]}.{'bias' if leaf == 'bias' else 'weight'}"
    return name if official_key(name) == key else key


def _official_shape(name: str, shape: torch.Size, patch_size: int) -> tuple[int, ...]:
    if name == "stem.weight":
        return (patch_size, patch_size, COLOURS, shape[0])
    return tuple(reversed(shape))


def _official_shapes(model: MlpMixer) -> dict[str, tuple[int, ...]]:
    return {
        official_key(name): _official_shape(name, parameter.shape, model.patch_size)
        for name, parameter in model.named_parameters()
    }


def _official_array(name: str, value: Tensor, patch_size: int) -> Array:
    ours: Array = value.detach().to(device="cpu", dtype=torch.float32).numpy()
    # A kernel (out, in) is (in, out) there; C order, else the file's bytes would differ.
    official = ours.T.reshape(_official_shape(name, value.shape, patch_size))
    return np.array(official, order="C")


def _our_tensor(array: Array) -> Tensor:
    ours = array.reshape(-1, array.shape[-1]).T if array.ndim > 1 else array  # (out, in)
    return torch.from_numpy(np.array(ours, dtype=np.float32, order="C"))


def _is_float(array: Array) -> bool:
    return array.dtype.kind == "f"


def _check(arrays: Mapping[str, Array], shapes: Mapping[str, tuple[int, ...]], source: str) -> None:
    """Raise one ValueError that names every array which does not fit the expected shapes."""
    problems = [f"missing {key}" for key in sorted(shapes.keys() - arrays.keys())]
    problems += [f"unexpected {key}" for key in sorted(arrays.keys() - shapes.keys())]
    for key in sorted(shapes.keys() & arrays.keys()):
        array = arrays[key]
        if array.shape != shapes[key] or not _is_float(array):
            problems.append(f"{key} is {array.dtype} {array.shape}, expected float {shapes[key]}")
    if problems:
        raise ValueError(
            f"expected {source} to fit the model, got {len(problems)} arrays that do not: "
            f"{'; '.join(problems)}; build the model with the sizes that infer_dimensions gives"
        )


def _modernised(arrays: Mapping[str, Array]) -> dict[str, Array]:
    """Return arrays of the older layout under today's names; today's layout is left as it is."""
    if not any(key.startswith("Mixer/") for key in arrays):
        return dict(arrays)
    first_norms = _first_norms(arrays)
    modern: dict[str, Array] = {}
    for key, array in arrays.items():
        new_key = _modern_key(key, first_norms)
        if new_key in modern:
            raise ValueError(f"expected one array for {new_key}, got a second, {key}; remove one")
        # The older MLP kernels and biases carry axes of length 1.
        modern[new_key] = array.squeeze() if _OLD_DENSE.fullmatch(key) else array
    return modern


def _first_norms(keys: Iterable[str]) -> dict[str, int]:
    """Return the number of each block's token norm in the older layout.

    Module numbers then ran over all modules of a block: its two norms need not be 0 and 1.
    """
    first_norms: dict[str, int] = {}
    for norm in filter(None, map(_OLD_NORM.fullmatch, keys)):
        first_norms[norm[1]] = min(int(norm[2]), first_norms.get(norm[1], int(norm[2])))
    return first_norms


def _modern_key(key: str, first_norms: Mapping[str, int]) -> str:
    if dense := _OLD_DENSE.fullmatch(key):
        block, mixing, leaf, number = dense.groups()
        return f"MixerBlock_{block}/{mixing}/Dense_{int(number) - 1}/{leaf}"
    if norm := _OLD_NORM.fullmatch(key):
        block, number, leaf = norm.groups()
        return f"MixerBlock_{block}/LayerNorm_{int(int(number) > first_norms[block])}/{leaf}"
    key = re.sub(r"^embedding/", "stem/", key)
    return re.sub(r"^Mixer/encoder_norm/", "pre_head_layer_norm/", key)
