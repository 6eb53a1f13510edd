"""One file of weights, on a disk or at a URL: the official `.npz`, or safetensors in our names or
timm's. No pickle is ever read.
"""

import hashlib
import io
import math
from collections.abc import Callable, Mapping
from contextlib import closing
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Literal

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor

from mixer_dist.errors import ConfigError, RefusedError, StorageError
from mixer_dist.models.mixer import COLOURS
from mixer_dist.models.npz import from_official, npz_bytes, official_key, parse_npz, to_official
from mixer_dist.models.timm_names import from_timm, is_timm, timm_key, to_timm
from mixer_dist.progress import Progress
from mixer_dist.storage import Storage

Names = Literal["official", "ours", "timm"]

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
FORMATS = (".npz", ".safetensors")
PICKLES = (".pt", ".pth", ".bin", ".ckpt", ".pkl")
READ_BYTES = 16 * 2**20  # in one request

_KEYS: dict[Names, Callable[[str], str]] = {
    "official": official_key,
    "ours": str,
    "timm": timm_key,
}


@dataclass(frozen=True)
class Weights:
    """What a file or a checkpoint holds of a model."""

    tensors: dict[str, Tensor]
    """fp32, under our names; what has none keeps its own."""
    names: Names
    """Those of its source."""
    sha256: str
    """Of the file, or of the checkpoint's manifest."""

    def key(self, name: str) -> str:
        """The source's name of one of our parameters; other names stay as they are."""
        try:
            return _KEYS[self.names](name)
        except ValueError:
            return name


@dataclass(frozen=True)
class WeightsFormat:
    """How weights are written."""

    suffix: str
    names: Names
    dtype: torch.dtype

    def encode(self, tensors: Mapping[str, Tensor]) -> bytes:
        """Weights under our names as the bytes of a file, equal for equal weights."""
        if self.suffix == ".npz":
            return npz_bytes(to_official(tensors, _patch_size(tensors)))
        named = to_timm(tensors) if self.names == "timm" else tensors
        return safetensors.torch.save({key: self._cast(key, named[key]) for key in named})

    def _cast(self, key: str, tensor: Tensor) -> Tensor:
        cast = tensor.to(self.dtype)
        if not torch.equal(cast.isfinite(), tensor.isfinite()):
            raise RefusedError(
                f"{key} has values beyond {torch.finfo(self.dtype).max:g}, the largest of "
                f"{self.dtype}: export bfloat16 or float32"
            )
        return cast


def weights_format(
    url: str, names: Literal["ours", "timm"] | None = None, dtype: str = "float32"
) -> WeightsFormat:
    """The format of a file to be written, by its suffix; ConfigError where there is none such."""
    suffix = PurePosixPath(url).suffix
    if suffix not in FORMATS:
        raise ConfigError(f"expected a file ending in {' or '.join(FORMATS)}, got {url!r}")
    if suffix == ".npz" and (names or dtype != "float32"):
        raise ConfigError(
            f"{url}: .npz holds the official names in float32; "
            "for other names and types choose a file ending in .safetensors"
        )
    return WeightsFormat(suffix, "official" if suffix == ".npz" else names or "ours", DTYPES[dtype])


def is_file_name(url: str) -> bool:
    """Whether a URL is that of a file of weights, by its suffix, and not of a folder."""
    return PurePosixPath(url).suffix in FORMATS + PICKLES


def check_format(url: str) -> str:
    """The suffix of a file of weights; ConfigError for any other."""
    suffix = PurePosixPath(url).suffix
    if suffix in PICKLES:
        raise ConfigError(
            f"{url}: a {suffix} file is read through a pickle, which can run any code, so that "
            "none is read here: where you trust it, save its tensors with "
            "safetensors.torch.save_file and give that file"
        )
    if suffix not in FORMATS:
        raise ConfigError(f"expected a file ending in {' or '.join(FORMATS)}, got {url!r}")
    return suffix


def read_weights(storage: Storage, url: str) -> Weights:
    """The weights in a file; MissingError, ConfigError where they are damaged or not finite."""
    suffix = check_format(url)
    data = _read(storage, url)
    try:
        tensors, names = _decode_npz(data, url) if suffix == ".npz" else _decode(data)
        check_finite(tensors)
    except (ValueError, SafetensorError) as error:
        raise ConfigError(f"{url} does not hold the weights of a Mixer: {error}") from None
    tensors = {name: tensor.to(torch.float32).contiguous() for name, tensor in tensors.items()}
    return Weights(tensors, names, hashlib.sha256(data).hexdigest())


def check_finite(tensors: Mapping[str, Tensor]) -> None:
    """Raise one ValueError that names every tensor with a value that is no number."""
    wrong = [
        f"{name} is {tensor.dtype}" if not tensor.is_floating_point() else f"{name} is not finite"
        for name, tensor in tensors.items()
        if not (tensor.is_floating_point() and tensor.to(torch.float32).isfinite().all())
    ]
    if wrong:
        raise ValueError(f"expected finite floating-point numbers, but {'; '.join(wrong)}")


def _decode_npz(data: bytes, url: str) -> tuple[dict[str, Tensor], Names]:
    return from_official(parse_npz(io.BytesIO(data), url)), "official"


def _decode(data: bytes) -> tuple[dict[str, Tensor], Names]:
    tensors = safetensors.torch.load(data)
    return (from_timm(tensors), "timm") if is_timm(tensors) else (tensors, "ours")


def _read(storage: Storage, url: str) -> bytes:
    """A whole file of any size, in parts that are of one version of it."""
    num_bytes = storage.size(url)
    parts, versions = [], set()
    with closing(Progress(num_bytes, "bytes")) as progress:
        for start in range(0, num_bytes, READ_BYTES):
            part, version = storage.read_versioned(url, start, min(start + READ_BYTES, num_bytes))
            parts.append(part)
            versions.add(version)
            progress.add(len(part))
            progress.show_line()
    if len(versions) > 1:
        raise StorageError(f"{url} was changed while it was read: try again")
    return b"".join(parts)


def _patch_size(tensors: Mapping[str, Tensor]) -> int:
    """From the stem's (C, P*P*3)."""
    return math.isqrt(tensors["stem.weight"].shape[1] // COLOURS)
