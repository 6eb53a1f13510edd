"""GPUs as their makers describe them: rates without sparsity, one direction of a link.

Memory is CUDA's total as its users commonly report it, somewhat beside the number in the name.
"""

import re
from dataclasses import dataclass

from mixer_dist.errors import RefusedError

TERA, GIGA = 10**12, 10**9
GIB = 2**30


@dataclass(frozen=True)
class Card:
    """A GPU, and the node that it usually comes in."""

    title: str
    bf16_flops: float
    """Dense, a second."""
    fp32_flops: float
    """Without TF32, which training does not turn on."""
    memory_bytes: int
    memory_bytes_per_s: float
    node_bytes_per_s: float
    """To the other GPUs of a node, one direction."""
    network_bytes_per_s: float
    """Of a GPU's share of the node's network cards, one direction."""
    gpus_per_node: int
    cores_per_node: int

    def peak_flops(self, precision: str) -> float:
        """A second, in a run's precision."""
        return self.bf16_flops if precision == "bf16" else self.fp32_flops


CARDS = {
    # NVIDIA A100 data sheet (June 2021); DGX A100: 8 x 200 Gb/s, 2 x 64 cores.
    "a100": Card(
        "NVIDIA A100 SXM 80 GB", 312 * TERA, 19.5 * TERA, int(79.2 * GIB), 2039 * GIGA,
        300 * GIGA, 25 * GIGA, 8, 128,
    ),
    "a100-40": Card(
        "NVIDIA A100 SXM 40 GB", 312 * TERA, 19.5 * TERA, int(39.4 * GIB), 1555 * GIGA,
        300 * GIGA, 25 * GIGA, 8, 128,
    ),
    # NVIDIA H100 data sheet: 1,979 TFLOP/s with sparsity; DGX H100: 8 x 400 Gb/s, 2 x 56 cores.
    "h100": Card(
        "NVIDIA H100 SXM 80 GB", 989.4 * TERA, 66.9 * TERA, int(79.1 * GIB), 3350 * GIGA,
        450 * GIGA, 50 * GIGA, 8, 112,
    ),
    # NVIDIA H200 data sheet; DGX H200: the same node.
    "h200": Card(
        "NVIDIA H200 SXM 141 GB", 989.4 * TERA, 66.9 * TERA, int(139.7 * GIB), 4800 * GIGA,
        450 * GIGA, 50 * GIGA, 8, 112,
    ),
    # NVIDIA DGX B200 data sheet: 8 GPUs with 1,440 GB, 64 TB/s, 14.4 TB/s NVLink, 8 x 400 Gb/s.
    "b200": Card(
        "NVIDIA B200 SXM 180 GB", 2250 * TERA, 75 * TERA, int(178.3 * GIB), 8000 * GIGA,
        900 * GIGA, 50 * GIGA, 8, 112,
    ),
    # NVIDIA L40S data sheet: PCIe 4.0 x16, no NVLink; the node is a usual one, not a product.
    "l40s": Card(
        "NVIDIA L40S 48 GB", 362 * TERA, 91.6 * TERA, int(44.3 * GIB), 864 * GIGA,
        32 * GIGA, 25 * GIGA, 8, 64,
    ),
}  # fmt: skip


def card_of_device(name: str) -> Card | None:
    """The card behind a name as CUDA gives it, such as `NVIDIA A100-SXM4-40GB`."""
    words = re.split(r"[^a-z0-9]+", name.lower())
    keys = [key for key in CARDS if key.partition("-")[0] in words]
    smaller = [key for key in keys if f"{key.partition('-')[2]}gb" in words]
    return CARDS[(smaller or keys)[0]] if keys else None


def card_named(name: str) -> Card:
    """A card by its name, in any case; RefusedError names those known."""
    card = CARDS.get(name.lower())
    if card is None:
        raise RefusedError(f"--gpu must be one of {', '.join(CARDS)}, got {name!r}")
    return card
