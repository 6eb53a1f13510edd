"""python benchmarks/gpu_step.py: training steps on a GPU, ours beside timm's and bare products.

H/14 in bf16 at 256 images, and with --largest at the most that fit, under fully_shard and DeepSpeed
at world size 1, beside timm's model, eager and compiled, and the blocks' matrix products alone.
Steps are timed by the device's events, on drawn data; each contender is built, warmed up, timed and
dropped, in one order and then in the reverse. Needs timm too.

    python benchmarks/gpu_step.py --largest
    python benchmarks/gpu_step.py --variant B/16
    python benchmarks/gpu_step.py --variant S/32 --batch 4 --steps 2 --precision fp32   # on a CPU

Prints Markdown.
"""

import argparse
import statistics
import sys
from collections import defaultdict
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import NamedTuple

import torch
from torch import nn
from torch.nn import functional as F

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # works from a bare checkout

from benchmarks.peer_models import timm_of_size
from mixer_dist import distributed
from mixer_dist.config import RunConfig
from mixer_dist.operations.bench.machine import card_here, device_name
from mixer_dist.operations.bench.matmuls import time_matmuls
from mixer_dist.operations.bench.stopwatch import seconds_of
from mixer_dist.operations.plan.micro_batch import image_flops
from mixer_dist.train.build import build_engine, build_model
from mixer_dist.train.drawn_batch import drawn_batch
from mixer_dist.train.micro_batch import free_memory, is_within_memory, largest_fitting
from mixer_dist.train.torch_engine import DTYPES
from tests.tiny import tiny_config

LARGEST_TRIED = 4096
NUM_CLASSES = 1000
COLUMNS = ("contender", "images", "ms a step", "images/s", "MFU", "MB an image", "of bare products")

Step = Callable[[], object]
Build = Callable[[RunConfig], Step]


class Cost(NamedTuple):
    """Of a step."""

    seconds: float
    bytes_per_image: float
    """Held at most beside the training state; NaN on a CPU."""


def main() -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--variant", default="H/14")
    parser.add_argument("--batch", type=int, default=256, help="images of a step")
    parser.add_argument("--precision", choices=DTYPES, default="bf16")
    parser.add_argument("--steps", type=int, default=20, help="that are timed, of each contender")
    parser.add_argument("--largest", action="store_true", help="also the most images that fit")
    given = parser.parse_args()
    torch.set_float32_matmul_precision("highest")
    with distributed.connected(600):
        print(
            f"Mixer-{given.variant}, {given.precision}, torch {torch.__version__}, {device_name()}"
        )
        print(f"\n| {' | '.join(COLUMNS)} |\n|{'---|' * len(COLUMNS)}")
        of_size = partial(run_config, given.variant, given.precision)
        compare(of_size(given.batch), given.steps)
        if given.largest and distributed.device().type == "cuda":
            largest = largest_fitting(lambda n: bool(cost_of(OURS, of_size(n), 1)), LARGEST_TRIED)
            compare(of_size(largest), given.steps)
    return 0


def compare(config: RunConfig, num_steps: int) -> None:
    """Print a row for each contender at one batch size."""
    found: dict[str, list[Cost | None]] = defaultdict(list)
    for names in (list(CONTENDERS), list(reversed(CONTENDERS))):
        for name in names:
            found[name].append(cost_of(CONTENDERS[name], config, num_steps))
    bare_s = time_matmuls(config, config.global_batch_size).seconds
    print_row("bare products", config, Cost(bare_s, float("nan")), bare_s)
    for name in CONTENDERS:
        costs = [cost for cost in found[name] if cost]
        if costs:
            mean_s = statistics.mean(cost.seconds for cost in costs)
            print_row(name, config, Cost(mean_s, costs[0].bytes_per_image), bare_s)
        else:
            print(f"| {name} | {config.global_batch_size} | does not fit | | | | |", flush=True)


def cost_of(build: Build, config: RunConfig, num_steps: int) -> Cost | None:
    """None where memory does not suffice."""
    found: list[Cost] = []
    is_within_memory(lambda: found.append(measured(build, config, num_steps)))
    free_memory()
    return found[0] if found else None


def measured(build: Build, config: RunConfig, num_steps: int) -> Cost:
    """Of steps after the first, which compiles."""
    step = build(config)
    step()
    before = allocated_bytes()
    seconds = statistics.median(seconds_of(step, num_steps))
    return Cost(seconds, (peak_bytes() - before) / config.global_batch_size)


def print_row(name: str, config: RunConfig, cost: Cost, bare_s: float) -> None:
    """One line of the table."""
    num_images, card, seconds = config.global_batch_size, card_here(), cost.seconds
    flops_per_s = image_flops(config) * num_images / seconds
    mfu = f"{flops_per_s / card.peak_flops(config.engine.precision):.1%}" if card else "–"
    print(
        f"| {name} | {num_images} | {1e3 * seconds:,.1f} | {num_images / seconds:,.0f} | {mfu} "
        f"| {cost.bytes_per_image / 1e6:,.0f} | {seconds / bare_s:.2f} |",
        flush=True,
    )


def ours(engine: str, config: RunConfig) -> Step:
    """A step of one of our engines."""
    named = config.engine.model_copy(update={"name": engine})
    config = config.model_copy(update={"engine": named})
    trained = build_engine(config, build_model(config))
    batch = drawn_batch(config).to(distributed.device())
    return lambda: trained.train_step(batch, learning_rate=1e-4)


def timm(compiled: bool, config: RunConfig) -> Step:
    """A step of timm's model under autocast, with fused AdamW and our loss, nothing clipped."""
    model: nn.Module = timm_of_size(config.model.variant, NUM_CLASSES).to(distributed.device())
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, weight_decay=0.1, fused=True)
    forward = torch.compile(model) if compiled else model
    batch = drawn_batch(config).to(distributed.device())
    images = batch.images.float() / 127.5 - 1
    targets = F.one_hot(batch.labels, NUM_CLASSES).float()
    precision = config.engine.precision

    def step() -> None:
        with torch.autocast(images.device.type, DTYPES[precision], enabled=precision != "fp32"):
            logits = forward(images)
        loss = F.binary_cross_entropy_with_logits(logits.float(), targets, reduction="sum")
        (loss / len(images)).backward()
        optimizer.step()
        optimizer.zero_grad()

    return step


OURS: Build = partial(ours, "single")
CONTENDERS: dict[str, Build] = {
    "mixer_dist, fully_shard": OURS,
    "mixer_dist, ZeRO-2": partial(ours, "zero2"),
    "timm": partial(timm, False),
    "timm, compiled": partial(timm, True),
}


def run_config(variant: str, precision: str, num_images: int) -> RunConfig:
    """One micro-batch a step, and nothing that timm's step has not."""
    return tiny_config(
        "single", precision, model={"variant": variant, "num_classes": NUM_CLASSES},
        global_batch_size=num_images, micro_batch_size=num_images, augment={"mixup": 0.0},
    )  # fmt: skip


def allocated_bytes() -> float:
    """Of the GPU, by tensors, now; the peak is counted from here."""
    if distributed.device().type != "cuda":
        return float("nan")
    torch.cuda.reset_peak_memory_stats()
    return torch.cuda.memory_allocated()


def peak_bytes() -> float:
    """The most since `allocated_bytes`."""
    is_gpu = distributed.device().type == "cuda"
    return torch.cuda.max_memory_allocated() if is_gpu else float("nan")


if __name__ == "__main__":
    sys.exit(main())
