"""python benchmarks/resume_matrix.py: every engine at 1 to 4 ranks goes on from every other.

A tiny Mixer trains 6 steps, saves and trains 20 more. From that checkpoint each engine at each
world size restores: parameters and moments have to be the stored ones to the bit, in fp32 and bf16.
Its next 20 losses are compared with those of the run that was not interrupted: bitwise on the same
engine and ranks, within 1e-5 elsewhere in fp32. In bf16 they may be no farther from it than twice
as far as an uninterrupted run of the new engine and ranks is.

Prints a Markdown table; ends with 1 where a bar is missed.
"""

import argparse
import sys
import tempfile
from dataclasses import dataclass, field
from itertools import product
from pathlib import Path

from tqdm import tqdm

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # works from a bare checkout

from tests import ranks as rank_processes
from tests.checkpoint import resume_cases
from tests.ranks import Ranks

ENGINES = ("single", "ddp", "fsdp", "hsdp", "zero1", "zero2", "zero3")
PLACES = [
    (engine, world_size)
    for engine, world_size in product(ENGINES, (1, 2, 3, 4))
    if engine != "single" or world_size == 1
]
END = resume_cases.SAVED_AT + 20
FP32_BAR = 1e-5
TIMEOUT_S = 3600.0  # of all restores under one engine

Place = tuple[str, int]


@dataclass
class Result:
    """What all restores of one precision came to."""

    num_cells: int = 0
    num_wrong_states: int = 0
    num_unequal_diagonals: int = 0
    farthest: float = 0.0
    """Largest relative difference of a loss from the uninterrupted run's."""
    farthest_uninterrupted: float = 0.0
    """The same between uninterrupted runs."""
    misses: list[str] = field(default_factory=list)


def main() -> int:
    """Print the table; 1 where a bar is missed."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.parse_args()
    rank_processes.TIMEOUT_S = TIMEOUT_S
    results = {precision: compare(precision) for precision in ("fp32", "bf16")}
    print(
        "| precision | restores | wrong states | unequal on the diagonal | farthest loss | "
        "farthest between uninterrupted runs | misses |\n|---|---|---|---|---|---|---|"
    )
    for precision, result in results.items():
        print(
            f"| {precision} | {result.num_cells} | {result.num_wrong_states} | "
            f"{result.num_unequal_diagonals} | {result.farthest:.1e} | "
            f"{result.farthest_uninterrupted:.1e} | {len(result.misses)} |"
        )
    misses = [miss for result in results.values() for miss in result.misses]
    print("\nMisses: " + ("; ".join(misses) or "none") + ".")
    return int(bool(misses))


def compare(precision: str) -> Result:
    """Restore every checkpoint under every engine and world size."""
    ranks, result = Ranks(), Result()
    with tempfile.TemporaryDirectory() as folder:
        run_dirs = {place: f"{folder}/{place[0]}-{place[1]}" for place in PLACES}
        losses = {
            place: ranks.run(
                place[1], resume_cases.train_and_save, run_dirs[place], place[0], precision, END
            )[0]
            for place in tqdm(PLACES, f"{precision} saves")
        }
        for reader in tqdm(PLACES, f"{precision} restores"):
            outcomes = ranks.run(
                reader[1], resume_cases.restore_and_train, list(run_dirs.values()), reader[0],
                precision, END,
            )  # fmt: skip
            for number, writer in enumerate(PLACES):
                of_ranks = [of_rank[number] for of_rank in outcomes]
                _judge(result, precision, writer, reader, of_ranks, losses)
    return result


def _judge(
    result: Result,
    precision: str,
    writer: Place,
    reader: Place,
    of_ranks: list[resume_cases.Resumed],
    losses: dict[Place, list[float]],
) -> None:
    cell = f"{precision} {writer[0]}@{writer[1]} to {reader[0]}@{reader[1]}"
    found = distance(of_ranks[0].losses, losses[writer])
    uninterrupted = distance(losses[reader], losses[writer])
    result.num_cells += 1
    result.farthest = max(result.farthest, found)
    result.farthest_uninterrupted = max(result.farthest_uninterrupted, uninterrupted)
    if not all(r.is_bitwise and r.num_updates == resume_cases.SAVED_AT for r in of_ranks):
        result.num_wrong_states += 1
        result.misses.append(f"{cell}: another state")
    if writer == reader and found > 0:
        result.num_unequal_diagonals += 1
        result.misses.append(f"{cell}: {found:.1e} on the diagonal")
    bar = FP32_BAR if precision == "fp32" else 2 * uninterrupted
    if found > bar:
        result.misses.append(f"{cell}: {found:.1e} from the uninterrupted run, bar {bar:.1e}")


def distance(losses: list[float], expected: list[float]) -> float:
    """Largest relative difference of two curves."""
    return max(abs(a - b) / b for a, b in zip(losses, expected, strict=True))


if __name__ == "__main__":
    sys.exit(main())
