"""python benchmarks/mixer_step.py: training steps of public Mixers beside ours, on a CPU.

A step is forward, cross-entropy, backward and AdamW, of a batch of noise in fp32 on one core. Ours
and a peer's take turns, each first in every other round and after a moment in which the other's
threads come to rest, and CPU seconds of the process are counted, so that whatever else the machine
does bears on both. The peers come from an environment of their own, whose Python runs this file:

    python -m venv build/mixers
    build/mixers/bin/pip install torch==2.13.0 timm mlp-mixer-pytorch jax flax optax
    build/mixers/bin/python benchmarks/mixer_step.py

Prints a Markdown table, and the machine's load over the last 1, 5 and 15 minutes; ends with 1 where
a bar is missed.
"""

import argparse
import math
import os
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # works from a bare checkout

from benchmarks.peer_models import lucidrains_mixer, timm_mixer
from mixer_dist.models.mixer import VARIANTS, build_mixer
from mixer_dist.train.freed_memory import keep_freed_memory

NUM_CLASSES = 1000
IMAGE_PX = 224
BARS = {"timm": 1.0, "flax": 1.3}
SAVED_SHARE_BAR = 0.52  # of what timm's keeps
REST_S = 0.2  # XLA's threads look out for work that long after a step

COLUMNS = (
    "model", "peer", "ours, CPU s", "peer, CPU s", "peer / ours", "quartiles", "ours, MB/image",
    "peer, MB/image",
)  # fmt: skip


@dataclass(frozen=True)
class Batch:
    """What every step trains on."""

    images: Tensor
    """(B, 3, H, W)."""
    labels: Tensor
    """(B,)."""


@dataclass(frozen=True)
class Contender:
    """A Mixer whose step is measured."""

    step: Callable[[], None]
    saved_mb: float
    """Megabytes an image that are kept for the backward pass; NaN where that is not known."""


def main() -> int:
    """Measure and print; 1 where a bar is missed."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("variants", metavar="VARIANT", nargs="*", default=["S/16", "B/16"])
    parser.add_argument("--peers", nargs="+", choices=PEERS, default=list(PEERS))
    parser.add_argument("--batch", type=int, default=8, help="images of a step")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument(
        "--keep-memory", action="store_true",
        help="have the process keep what it frees, as `pretrain` does on a CPU; peers gain too",
    )  # fmt: skip
    given = parser.parse_args()
    torch.set_num_threads(1)
    os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})  # XLA heeds nothing else
    if given.keep_memory:
        keep_freed_memory()
    print(f"| {' | '.join(COLUMNS)} |\n|{'---|' * len(COLUMNS)}")
    pairs = [(variant, peer) for variant in given.variants for peer in given.peers]
    num_missed = sum(not compare(*pair, given.batch, given.rounds) for pair in pairs)
    print(f"\nLoad of the machine: {', '.join(f'{load:.1f}' for load in os.getloadavg())}.")
    return int(num_missed > 0)


def compare(variant: str, peer: str, num_images: int, num_rounds: int) -> bool:
    """Print a row of the table; whether the bars are met."""
    batch = drawn_batch(num_images)
    contenders = (our_contender(variant, batch), PEERS[peer](variant, batch))
    mine, theirs = alternating_seconds(contenders, num_rounds)
    ratios = [b / a for a, b in zip(mine, theirs, strict=True)]
    low, ratio, high = statistics.quantiles(ratios, n=4)
    saved = [contender.saved_mb for contender in contenders]
    of_peer = "–" if math.isnan(saved[1]) else f"{saved[1]:.1f}"
    print(
        f"| {variant} | {peer} | {statistics.median(mine):.3f} | {statistics.median(theirs):.3f} "
        f"| {ratio:.3f} | {low:.3f}–{high:.3f} | {saved[0]:.1f} | {of_peer} |",
        flush=True,
    )
    is_small = peer != "timm" or saved[0] <= SAVED_SHARE_BAR * saved[1]
    return is_small and ratio >= BARS.get(peer, 0.0)


def alternating_seconds(
    contenders: tuple[Contender, Contender], num_rounds: int
) -> tuple[list[float], list[float]]:
    """CPU seconds of each one's steps, after one that is not counted."""
    seconds: tuple[list[float], list[float]] = ([], [])
    for contender in contenders:
        contender.step()
    for number in range(num_rounds):
        for index in (0, 1) if number % 2 else (1, 0):
            time.sleep(REST_S)
            began = time.process_time()
            contenders[index].step()
            seconds[index].append(time.process_time() - began)
    return seconds


def drawn_batch(num_images: int) -> Batch:
    """Images of noise."""
    generator = torch.Generator().manual_seed(0)
    images = torch.rand(num_images, 3, IMAGE_PX, IMAGE_PX, generator=generator) * 2 - 1
    return Batch(images, torch.randint(NUM_CLASSES, (num_images,), generator=generator))


def our_contender(variant: str, batch: Batch) -> Contender:
    """mixer_dist's own model."""
    return torch_contender(build_mixer(variant, NUM_CLASSES), batch)


def timm_contender(variant: str, batch: Batch) -> Contender:
    """timm's model as it is."""
    return torch_contender(timm_mixer(variant, NUM_CLASSES), batch)


def lucidrains_contender(variant: str, batch: Batch) -> Contender:
    """The package mlp-mixer-pytorch."""
    return torch_contender(lucidrains_mixer(variant, NUM_CLASSES), batch)


def flax_contender(variant: str, batch: Batch) -> Contender:
    """The official model, compiled by XLA."""
    from benchmarks.flax_mixer import flax_step

    images = batch.images.permute(0, 2, 3, 1).numpy()  # (B, H, W, 3)
    step = flax_step(VARIANTS[variant], NUM_CLASSES, images, batch.labels.numpy())
    return Contender(step, float("nan"))


PEERS: dict[str, Callable[[str, Batch], Contender]] = {
    "timm": timm_contender,
    "lucidrains": lucidrains_contender,
    "flax": flax_contender,
}


def torch_contender(model: nn.Module, batch: Batch) -> Contender:
    """A model of PyTorch's, with its fused AdamW."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=0.1, fused=True)

    def step() -> None:
        F.cross_entropy(model(batch.images), batch.labels).backward()
        optimizer.step()
        optimizer.zero_grad()

    return Contender(step, saved_bytes(model, batch) / len(batch.images) / 1e6)


def saved_bytes(model: nn.Module, batch: Batch) -> int:
    """What autograd keeps of a batch for the backward pass, each storage counted once."""
    not_saved = storages((*model.parameters(), batch.images, batch.labels))
    saved: list[Tensor] = []  # alive together, so that no two have the same address

    def pack(tensor: Tensor) -> Tensor:
        saved.append(tensor.detach())
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        F.cross_entropy(model(batch.images), batch.labels)
    return sum(size for address, size in storages(saved).items() if address not in not_saved)


def storages(tensors: Sequence[Tensor]) -> dict[int, int]:
    """Bytes of the memory behind tensors, by its address."""
    found = [tensor.untyped_storage() for tensor in tensors]
    return {storage.data_ptr(): storage.nbytes() for storage in found}


if __name__ == "__main__":
    sys.exit(main())
