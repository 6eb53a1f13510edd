"""python benchmarks/step_overhead.py IMAGES: what a training step costs beside the step itself.

One process trains a Mixer on real photos, in blocks of steps that are in turn bare, on one batch in
memory, and as `pretrain` takes them: read, decoded and augmented in threads, watched, logged, with
an asynchronous save of all weights and moments a block. Counted: CPU time of all threads, from
opening the data to the commit of the save. From it goes what decoding, cropping and resizing alone
take. IMAGES is a folder of JPEG photos (*.JPEG) with a sub-folder a class.

Prints a Markdown table; ends with 1 where the bar is missed.
"""

import argparse
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import torch
from tqdm import tqdm

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # works from a bare checkout

from benchmarks.readers import BATCH, MIN_AREA, bare_crops
from data_tools import shard
from mixer_dist import distributed
from mixer_dist.config import RunConfig
from mixer_dist.data.batch import Batch
from mixer_dist.liveness import peers_watched
from mixer_dist.stop_requests import StopRequests
from mixer_dist.train.build import build_engine, build_model
from mixer_dist.train.drawn_batch import drawn_batch
from mixer_dist.train.engine import Engine
from mixer_dist.train.pretrain import train
from mixer_dist.train.start import start_run
from mixer_dist.train.watchdog import Watchdog
from tests.tiny import tiny_config

BAR = 0.03  # of a bare step


class Round(NamedTuple):
    """CPU seconds a step."""

    bare: float
    whole: float
    decoding: float

    @property
    def overhead(self) -> float:
        """What is neither the step nor decoding, of a bare step."""
        return (self.whole - self.bare - self.decoding) / self.bare


def main() -> int:
    """Measure and print; 1 where the bar is missed."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("images", metavar="IMAGES", type=Path)
    parser.add_argument("--variant", default="S/32")
    parser.add_argument("--batch", type=int, default=32, help="images of a step")
    parser.add_argument("--steps", type=int, default=20, help="of a block")
    parser.add_argument("--rounds", type=int, default=5)
    given = parser.parse_args()
    torch.set_num_threads(1)
    images = given.images.resolve()
    with tempfile.TemporaryDirectory() as folder:
        shard.main([str(images), f"{folder}/shards", "--shard-mb", "32"])
        os.chdir(folder)
        num_classes = sum(path.is_dir() for path in images.iterdir())
        config = run_config(given.variant, num_classes, given.batch, given.steps)
        rounds = measured(config, images, given.rounds)
    return print_table(rounds)


def run_config(variant: str, num_classes: int, batch_size: int, num_steps: int) -> RunConfig:
    """A run of one block on the shards in this folder."""
    return tiny_config(
        "single", run_dir="run", total_steps=num_steps, global_batch_size=batch_size,
        micro_batch_size=batch_size, model={"variant": variant, "num_classes": num_classes},
        data={"train": [{"manifest": "shards/manifest.json"}], "num_threads": 1,
              "order": {"lanes": 8}},
        augment={"min_crop_area": MIN_AREA}, logging={"every_steps": 2},
        checkpoint={"every_steps": num_steps}, optimizer={"learning_rate": 1e-3},
    )  # fmt: skip


def measured(config: RunConfig, images: Path, num_rounds: int) -> list[Round]:
    """Blocks in turn, after one of each that nobody counts."""
    decoded, rounds = bare_crops(str(images)), []
    with distributed.connected(60):
        engine = build_engine(config, build_model(config))
        batch = drawn_batch(config)
        for number in tqdm(range(num_rounds + 1), unit="round"):
            blocks = (
                cpu_s(lambda: take_bare(engine, batch, config.total_steps)),
                whole_block(engine, config.model_copy(update={"run_dir": f"run-{number}"})),
                cpu_s(lambda: next(decoded)) * config.global_batch_size * config.total_steps
                / BATCH,
            )  # fmt: skip
            rounds.append(Round(*(seconds / config.total_steps for seconds in blocks)))
    return rounds[1:]


def take_bare(engine: Engine, batch: Batch, num_steps: int) -> None:
    """Steps and nothing else."""
    for _ in range(num_steps):
        engine.train_step(batch, 1e-3)


def whole_block(engine: Engine, config: RunConfig) -> float:
    """CPU seconds of a run, once it has been checked and its model built."""
    with peers_watched() as peers, Watchdog(peers, config) as watchdog:
        run, _ = start_run(config, (), peers.hosts)
        return cpu_s(lambda: train(run, engine, StopRequests(), watchdog))


def cpu_s(action: Callable[[], object]) -> float:
    """CPU seconds of this process, all threads."""
    began = time.process_time()
    action()
    return time.process_time() - began


def print_table(rounds: list[Round]) -> int:
    """Medians, and the exit code."""
    overheads = [each.overhead for each in rounds]
    lower, median, upper = statistics.quantiles(overheads, n=4)
    print("| CPU ms a step | median | least | most |\n|---|---|---|---|")
    for name in Round._fields:
        values = [1000 * getattr(each, name) for each in rounds]
        print(
            f"| {name} | {statistics.median(values):,.0f} | {min(values):,.0f} "
            f"| {max(values):,.0f} |"
        )
    print(
        f"\nNeither step nor decoding: {median:.1%} of a bare step (quartiles {lower:.1%} to "
        f"{upper:.1%}; bar: {BAR:.0%})"
    )
    return int(median > BAR)


if __name__ == "__main__":
    sys.exit(main())
