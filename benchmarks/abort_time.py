"""python benchmarks/abort_time.py: how soon all ranks end, once one of them is killed.

A small real run trains on several ranks; at a drawn moment one of them, another each time, gets
SIGKILL. Counted until the last of the others has ended, with the line that names the dead rank.

Prints a Markdown table; ends with 1 where the bar is missed.
"""

import argparse
import os
import random
import signal
import statistics
import sys
import tempfile
import time
from multiprocessing.connection import wait
from pathlib import Path

from tqdm import tqdm

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # works from a bare checkout

from data_tools import sample_data, shard
from tests.ranks import Ranks, free_port
from tests.system.failure_cases import pretrain

BAR_S = 10.0
START_S = 120.0
HANG_S = 60.0


def main() -> int:
    """Kill, measure and print; 1 where the bar is missed."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--kills", type=int, default=10)
    parser.add_argument("--ranks", type=int, default=3)
    parser.add_argument("--engines", nargs="+", default=["fsdp", "zero2"])
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    draw, found = random.Random(arguments.seed), {engine: [] for engine in arguments.engines}
    with tempfile.TemporaryDirectory() as name:
        folder, ranks = Path(name), Ranks()
        write_data(folder)
        for kill in tqdm(range(arguments.kills), "kills", disable=None):
            engine = arguments.engines[kill % len(arguments.engines)]
            victim = kill % arguments.ranks
            place = folder / f"{kill}"
            seconds = seconds_to_end(ranks, arguments.ranks, victim, engine, place, draw.random())
            found[engine].append(seconds)
    return print_table(found, arguments.ranks)


def write_data(folder: Path) -> None:
    """The digits in shards."""
    sample_data.write_digits(folder / "images", size_px=32)
    command = [str(folder / "images/train"), str(folder / "train"), "--shard-mb", "0.5"]
    assert shard.main(command) == 0


def seconds_to_end(
    ranks: Ranks, world_size: int, victim: int, engine: str, place: Path, delay_s: float
) -> float:
    """From the SIGKILL of one rank to the end of the last."""
    arguments = [
        f"run_dir={place}", f"engine.name={engine}", "total_steps=100000", "global_batch_size=16",
        "micro_batch_size=8", "model.num_blocks=2", "model.hidden_dim=32", "logging.every_steps=5",
        f"data.train.0.manifest={place.parent}/train/manifest.json",
    ]  # fmt: skip
    port, log = free_port(), f"{place}.log"
    processes = [
        ranks.start(world_size, rank, port, pretrain, arguments, log)[0]
        for rank in range(world_size)
    ]
    give_up = time.monotonic() + START_S
    while "step 10/" not in read(f"{log}-0"):
        assert time.monotonic() < give_up, read(f"{log}-0")
        time.sleep(0.05)
    time.sleep(delay_s)
    os.kill(processes[victim].pid, signal.SIGKILL)
    began = time.monotonic()
    for process in processes:
        wait([process.sentinel], HANG_S)
        process.kill()
    seconds = time.monotonic() - began
    witness = 1 if victim == 0 else 0
    assert f"rank {victim} (host" in read(f"{log}-{witness}"), read(f"{log}-{witness}")
    return seconds


def read(path: str) -> str:
    """A file that may not be there yet."""
    return Path(path).read_text() if Path(path).exists() else ""


def print_table(found: dict[str, list[float]], world_size: int) -> int:
    """Seconds by engine; the exit code."""
    print("| engine | ranks | kills | median, s | max, s |\n|---|---|---|---|---|")
    for engine, seconds in found.items():
        median, longest = statistics.median(seconds), max(seconds)
        print(f"| {engine} | {world_size} | {len(seconds)} | {median:.1f} | {longest:.1f} |")
    longest = max(max(seconds) for seconds in found.values())
    print(f"\nLongest: {longest:.1f} s (bar: {BAR_S:g} s).")
    return int(longest > BAR_S)


if __name__ == "__main__":
    sys.exit(main())
