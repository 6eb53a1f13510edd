"""python benchmarks/save_kills.py: runs that are killed again and again while they save.

Ranks train a small Mixer until one gets SIGKILL, or all do, at a named point of a save or at a
random moment; then the run is started anew under another engine and number of ranks. After each
kill the checkpoints are judged by code that shares nothing with the package: all that were
committed are whole, the newest whole one is what a start chooses and goes on from, and no more is
lost than the save under way. A run that has come to its end has to show the losses of one that
nobody killed. Two thirds of the kills are of runs on a disk, one third of runs in OpenStack Swift;
beside them kills of DeepSpeed's own save.

Prints Markdown tables; ends with 1 where anything of that does not hold.
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
from pathlib import Path

from tqdm import tqdm

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # works from a bare checkout

from benchmarks.deepspeed_kills import deepspeed_table
from benchmarks.kill_points import ON_MAIN, POINTS, Kill
from benchmarks.kill_trials import LEFT, TOTAL_STEPS, WORLDS, Place, Series, Trial, World
from data_tools import sample_data, shard
from mixer_dist.metrics import Line
from mixer_dist.storage import Storage
from tests.ranks import Ranks
from tests.swift import serve_swift

NUM_KILLS = 300
NUM_DEEPSPEED_KILLS = 10
LONGEST_DELAY_S = 4.0  # until a random moment
LAST_SAVE = 3  # of a trial at which it is killed, so that a run takes some ten kills
BAR = 1e-5  # relative, of a loss
KEY = "test:key"


class Tally:
    """What all trials came to."""

    def __init__(self) -> None:
        self.trials: list[tuple[str, Trial]] = []
        """With the name of the place."""
        self.problems: list[str] = []
        self.num_runs = 0
        self.largest_difference = 0.0

    def add(self, place: Place, trial: Trial) -> None:
        """Count a start, and say at once what is wrong with it."""
        if trial.was_killed:
            self.trials.append((place.name, trial))
        self._tell(f"{place.name}, {trial.kill}", trial.problems)

    def compare(self, place: Place, lines: Sequence[Line], expected: Sequence[Line]) -> None:
        """Judge a run that has come to its end."""
        self.num_runs += 1
        if [line["step"] for line in lines] != list(range(1, TOTAL_STEPS + 1)):
            self._tell(place.name, ["the metrics do not hold each step once"])
            return
        pairs = list(zip(lines, expected, strict=True))
        difference = max(abs(a["loss"] - b["loss"]) / b["loss"] for a, b in pairs)
        self.largest_difference = max(self.largest_difference, difference)
        if difference > BAR or any(a["batch_digest"] != b["batch_digest"] for a, b in pairs):
            self._tell(place.name, [f"another run: losses differ by {difference:.1e}"])

    def _tell(self, where: str, problems: Sequence[str]) -> None:
        for problem in problems:
            self.problems.append(f"{where}: {problem}")
            tqdm.write(self.problems[-1], file=sys.stderr)


def main() -> int:
    """Kill and judge; the exit code."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--kills", type=int, default=NUM_KILLS)
    parser.add_argument("--deepspeed-kills", type=int, default=NUM_DEEPSPEED_KILLS)
    arguments = parser.parse_args()
    logging.disable()  # of each checkpoint that is passed over
    ranks, tally = Ranks(), Tally()
    with tempfile.TemporaryDirectory() as folder, places(Path(folder)) as (disk, swift):
        expected = untouched(disk, ranks)
        on_swift = arguments.kills // 3
        kill_runs(disk, ranks, arguments.kills - on_swift, expected, tally)
        kill_runs(swift, ranks, on_swift, expected, tally)
        print_results(tally)
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
    trial = series.train(ranks, ("single", 1))
    if trial.problems:
        raise SystemExit("\n".join(trial.problems))
    return series.lines()


def kill_runs(
    place: Place, ranks: Ranks, num_kills: int, expected: Sequence[Line], tally: Tally
) -> None:
    """Kill one run after the other, each until it has come to its end."""
    planned = list(plan(num_kills))
    progress = tqdm(total=num_kills, desc=f"kills, {place.name}", mininterval=1)
    while planned:
        series, is_over = Series(place, f"run-{tally.num_runs}"), False
        while planned and not is_over:
            trial = series.train(ranks, *planned[0])
            tally.add(place, trial)
            is_over = not trial.was_killed
            if trial.was_killed or trial.problems:
                planned.pop(0)
                progress.update()
        if not is_over:
            tally.add(place, series.train(ranks, ("single", 1)))
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


def print_results(tally: Tally) -> None:
    """The tables of our own saves."""
    print(f"\n| point | kept on | kills | of all ranks | {' | '.join(LEFT)} "
          "| wrong one chosen | saves lost, at most | steps done again, at most |")  # fmt: skip
    print("|---|---" + "|---" * (5 + len(LEFT)) + "|")
    names = list(dict.fromkeys(name for name, _ in tally.trials))
    for point in POINTS:
        for name in names:
            trials = [t for where, t in tally.trials if where == name and t.kill.point == point]
            print_row(point, name, trials)
    print_row("all", "both", [trial for _, trial in tally.trials])
    print(f"\n{tally.num_runs} runs came to their end. Largest relative difference of a loss: "
          f"{tally.largest_difference:.1e} (bar: {BAR:.0e}). "
          f"Problems: {'; '.join(tally.problems) or 'none'}.\n")  # fmt: skip


def print_row(point: str, name: str, trials: Sequence[Trial]) -> None:
    """What some kills came to."""
    num_all = sum(trial.kill is not None and trial.kill.is_of_all for trial in trials)
    left = [sum(trial.last_save == state for trial in trials) for state in LEFT]
    wrong = sum(trial.wrong_choices for trial in trials)
    lost = max((trial.lost_saves for trial in trials), default=0)
    again = max((trial.steps_again for trial in trials), default=0)
    cells = [point, name, len(trials), num_all, *left, wrong, lost, again]
    print(f"| {' | '.join(map(str, cells))} |")


if __name__ == "__main__":
    sys.exit(main())
