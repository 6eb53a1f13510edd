"""python benchmarks/host_time.py: what the host spends on a step, whatever the GPU does meanwhile.

A model of B/16's 12 blocks is so small that it computes next to nothing: what remains of a step is
Python, autograd, fully_shard and the issuing of kernels. Units of three blocks, as B/16 has them,
take turns with each block as a unit of its own; CPU time of the process is counted. What a unit
costs more is `plan`'s unit_s, what is left for each kernel its launch_s.

Prints a Markdown table.
"""

import argparse
import statistics
import sys
import time
from itertools import chain, pairwise
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # works from a bare checkout

from mixer_dist import distributed
from mixer_dist.config import RunConfig
from mixer_dist.data.batch import Batch
from mixer_dist.operations.plan.micro_batch import micro_batch
from mixer_dist.train import torch_engine
from mixer_dist.train.build import build_engine, build_model
from mixer_dist.train.drawn_batch import drawn_batch
from mixer_dist.train.engine import Engine
from tests.tiny import tiny_config

NUM_BLOCKS = 12
BLOCKS_OF_UNIT = (1, 3)
WARM_UP_STEPS = 5
COLUMNS = ("precision", "blocks a unit", "units", "CPU ms a step", "quartiles")


def main() -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--steps", type=int, default=100, help="of each, in ten turns")
    given = parser.parse_args()
    torch.set_num_threads(1)
    print(f"| {' | '.join(COLUMNS)} |\n|{'---|' * len(COLUMNS)}")
    with distributed.connected(60):
        for precision in torch_engine.DTYPES:
            compare(shallow_config(precision), given.steps)
    return 0


def shallow_config(precision: str) -> RunConfig:
    """B/16's depth and nothing of its width."""
    return tiny_config(
        "single", precision, global_batch_size=2, micro_batch_size=2, augment={"mixup": 0.0},
        model={
            "image_size": 32, "patch_size": 16, "hidden_dim": 32, "num_blocks": NUM_BLOCKS,
            "tokens_mlp_dim": 16, "channels_mlp_dim": 64, "num_classes": 10,
        },
    )  # fmt: skip


def compare(config: RunConfig, num_steps: int) -> None:
    """Print a row for each way to cut the blocks into units, and what follows from them."""
    engines, num_units = engines_by_unit(config)
    batch = drawn_batch(config).to(distributed.device())
    for engine in engines.values():
        step_ms(engine, batch, WARM_UP_STEPS)
    turns = [
        {size: step_ms(engine, batch, num_steps // 10) for size, engine in engines.items()}
        for _ in range(10)
    ]
    medians = {}
    for size in engines:
        low, medians[size], high = statistics.quantiles(chain(*(t[size] for t in turns)), n=4)
        print(
            f"| {config.engine.precision} | {size} | {num_units[size]} | {medians[size]:.1f} "
            f"| {low:.1f}–{high:.1f} |",
            flush=True,
        )
    print_rates(config, medians, num_units)


def print_rates(config: RunConfig, medians: dict[int, float], num_units: dict[int, int]) -> None:
    """What a unit costs, and each kernel beside."""
    one, several = BLOCKS_OF_UNIT
    unit_ms = (medians[one] - medians[several]) / (num_units[one] - num_units[several])
    work = micro_batch(config, config.global_batch_size)
    num_kernels = work.forward.total() + work.backward.total()
    kernel_ms = (medians[several] - num_units[several] * unit_ms) / num_kernels
    print(
        f"| {config.engine.precision} | | a unit: {1000 * unit_ms:.0f} µs "
        f"| each of {num_kernels} kernels: {1000 * kernel_ms:.0f} µs | |"
    )


def engines_by_unit(config: RunConfig) -> tuple[dict[int, Engine], dict[int, int]]:
    """The same engine with small and with large units, and how many units it has."""
    engines, num_units = {}, {}
    for size in BLOCKS_OF_UNIT:
        model = build_model(config)
        of_block = sum(p.numel() for p in model.blocks[0].parameters())
        torch_engine.LEAST_UNIT_ELEMENTS = size * of_block
        num_units[size] = len(torch_engine.units(model))
        engines[size] = build_engine(config, model)
    return engines, num_units


def step_ms(engine: Engine, batch: Batch, num_steps: int) -> list[float]:
    """CPU milliseconds of each step."""
    marks = [time.process_time()]
    for _ in range(num_steps):
        engine.train_step(batch, 1e-4)
        marks.append(time.process_time())
    return [1000 * (after - before) for before, after in pairwise(marks)]


if __name__ == "__main__":
    sys.exit(main())
