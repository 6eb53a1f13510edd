"""python benchmarks/save_kills.py: runs that are killed again and again while they save.

Ranks train a small Mixer until one gets SIGKILL, or all do, at a named point of a save or at a
random moment; then the run is started anew under another engine and number of ranks. After each
kill the checkpoints are judged by code that shares nothing with the package: all that were
committed are whole, the newest whole one is what a start chooses and goes on from, and no more is
lost than the save under way. A run that has come to its end has to show the losses of one that
nobody killed. Two thirds of the kills are of runs on a disk, one third of runs in OpenStack Swift;
beside them kills of DeepSpeed's own save.

Prints Markdown tables; ends with 1 where anything of that does not hold. Each kill is recorded in a
file: the same command goes on where it was ended, and begins anew where that file is removed.
"""

import argparse
import logging
import os
import random
import secrets
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import count
from pathlib import Path

from tqdm import tqdm

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # works from a bare checkout

from benchmarks.deepspeed_kills import deepspeed_table
from benchmarks.kill_points import ON_MAIN, POINTS, Kill
from benchmarks.kill_tally import Tally
from benchmarks.kill_trials import WORLDS, Place, Series, World
from data_tools import sample_data, shard
from mixer_dist.metrics import Line
from mixer_dist.storage import Storage
from tests.ranks import Ranks
from tests.swift import serve_swift

NUM_KILLS = 300
NUM_DEEPSPEED_KILLS = 10
LONGEST_DELAY_S = 10.0  # until a random moment
LAST_SAVE = 3  # of a trial at which it is killed, so that a run takes some ten kills
RECORD = Path("runs/save_kills.jsonl")
LAST_WORLD = ("single", 1)  # that brings a run to its end when all kills are done
KEY = "test:key"


def main() -> int:
    """Kill and judge; the exit code."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--kills", type=int, default=NUM_KILLS)
    parser.add_argument("--deepspeed-kills", type=int, default=NUM_DEEPSPEED_KILLS)
    parser.add_argument(
        "--record", type=Path, default=RECORD, help=f"what is done already (default: {RECORD})"
    )
    arguments = parser.parse_args()
    logging.disable()  # of each checkpoint that is passed over
    arguments.record.parent.mkdir(parents=True, exist_ok=True)
    ranks, tally = Ranks(), Tally(arguments.record)
    with tempfile.TemporaryDirectory() as folder, places(Path(folder)) as (disk, swift):
        expected = untouched(disk, ranks)
        on_swift = arguments.kills // 3
        kill_runs(disk, ranks, arguments.kills - on_swift, expected, tally)
        kill_runs(swift, ranks, on_swift, expected, tally)
        print(f"\n{tally.table()}\n")
        print(deepspeed_table(ranks, Path(folder), arguments.deepspeed_kills))
    return int(bool(tally.problems))


@contextmanager
def places(folder: Path) -> Iterator[tuple[Place, Place]]:
    """A disk and a bucket, with the digits to train on."""
    secret = secrets.token_hex(16)
    os.environ |= {
        "AWS_ACCESS_KEY_ID": KEY, "AWS_SECRET_ACCESS_KEY": secret, "AWS_CONFIG_FILE": os.devnull,
        "AWS_SHARED_CREDENTIALS_FILE": os.devnull, "AWS_EC2_METADATA_DISABLED": "true",
    }  # fmt: skip
    manifest = make_shards(folder)
    (folder / "swift").mkdir()
    with serve_swift(folder / "swift", key=KEY, secret=secret) as swift:
        options = {"s3://": swift.options()}
        yield (
            disk_place(folder, manifest),
            Place("Swift", swift.new_bucket(), options, swift.storage(), manifest, folder),
        )


def make_shards(folder: Path) -> Path:
    """The digits in shards; their manifest."""
    sample_data.write_digits(folder / "images", size_px=32)
    shard.main([str(folder / "images" / "train"), str(folder / "shards"), "--shard-mb", "0.5"])
    return folder / "shards" / "manifest.json"


def disk_place(folder: Path, manifest: Path) -> Place:
    """Runs in a folder."""
    return Place("disk", str(folder / "runs"), {}, Storage(), manifest, folder)


def untouched(place: Place, ranks: Ranks) -> list[Line]:
    """Metrics of a run that nobody killed."""
    series = Series(place, "untouched")
    trial = series.train(ranks, LAST_WORLD)
    if trial.problems:
        raise SystemExit("\n".join(trial.problems))
    return series.lines()


def kill_runs(
    place: Place, ranks: Ranks, num_kills: int, expected: Sequence[Line], tally: Tally
) -> None:
    """Kill one run after the other, each until it has come to its end."""
    done = tally.num_kills(place)
    planned = list(plan(num_kills))[done:]
    progress = tqdm(total=num_kills, initial=done, desc=f"kills, {place.name}", mininterval=1)
    for number in count(1):
        if not planned:
            break
        series, is_over = Series(place, f"run-{number}"), False
        while planned and not is_over:
            world, kill = planned[0]
            trial = series.train(ranks, world, kill)
            tally.add(place, world, trial)
            is_over = not trial.was_killed
            if trial.was_killed or trial.problems:
                planned.pop(0)
                progress.update()
        if not is_over:
            tally.add(place, LAST_WORLD, series.train(ranks, LAST_WORLD))
        tally.compare(place, series.lines(), expected)
    progress.close()


def plan(num_kills: int) -> Iterator[tuple[World, Kill]]:
    """Points and engines in rotation, all else by a seed."""
    rng = random.Random(0)
    for number in range(num_kills):
        turn, place = divmod(number, len(POINTS))
        world = WORLDS[(place + turn) % len(WORLDS)]  # another one for each point in each turn
        point = POINTS[place]
        yield (
            world,
            Kill(
                point,
                rank=0 if point in ON_MAIN else rng.randrange(world[1]),
                save=rng.randint(1, LAST_SAVE),
                delay_s=rng.uniform(0, LONGEST_DELAY_S),
                is_of_all=rng.random() < 0.5,
            ),
        )


if __name__ == "__main__":
    sys.exit(main())
