"""The matrix products of a step alone: what no training step of the same shapes can undercut."""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from statistics import median

import torch

from mixer_dist import distributed
from mixer_dist.config import RunConfig
from mixer_dist.models.mixer import patch_grid
from mixer_dist.operations.bench.stopwatch import seconds_of
from mixer_dist.train.build import model_dimensions
from mixer_dist.train.torch_engine import DTYPES

NUM_TIMES = 5


@dataclass(frozen=True)
class Product:
    """(rows, inner) @ (inner, columns)."""

    rows: int
    inner: int
    columns: int

    @property
    def flops(self) -> int:
        """A multiplication and an addition each."""
        return 2 * self.rows * self.inner * self.columns


@dataclass(frozen=True)
class MatmulTime:
    """Of the blocks' products of one micro-batch, forward and backward."""

    seconds: float
    flops: int


def time_matmuls(config: RunConfig, num_images: int) -> MatmulTime:
    """The products of all blocks, each shape by itself, in the run's precision."""
    num_blocks = model_dimensions(config.model)["num_blocks"]
    counts = block_products(config, num_images)
    dtype = DTYPES[config.engine.precision]
    seconds = sum(count * _seconds(product, dtype) for product, count in counts.items())
    flops = sum(count * product.flops for product, count in counts.items())
    return MatmulTime(num_blocks * seconds, num_blocks * flops)


def block_products(config: RunConfig, num_images: int) -> Counter[Product]:
    """The twelve products of a block: a map's result, its gradient of the input, of the weight."""
    sizes = model_dimensions(config.model)
    rows, columns = patch_grid(sizes["image_size"], sizes["patch_size"])
    num_tokens, channels = rows * columns, sizes["hidden_dim"]
    of_tokens = _mlp(num_tokens, sizes["tokens_mlp_dim"], num_images * channels)
    of_channels = _mlp(channels, sizes["channels_mlp_dim"], num_images * num_tokens)
    return Counter(of_tokens) + Counter(of_channels)


def _mlp(width: int, hidden: int, num_vectors: int) -> Iterator[Product]:
    for in_features, out_features in ((width, hidden), (hidden, width)):
        yield Product(out_features, in_features, num_vectors)
        yield Product(in_features, out_features, num_vectors)
        yield Product(out_features, num_vectors, in_features)


def _seconds(product: Product, dtype: torch.dtype) -> float:
    device = distributed.device()
    a = torch.randn(product.rows, product.inner, device=device, dtype=dtype)
    b = torch.randn(product.inner, product.columns, device=device, dtype=dtype)
    return median(seconds_of(lambda: a @ b, NUM_TIMES))
