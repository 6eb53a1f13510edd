"""python benchmarks/bf16_resume.py: how far bf16 curves go that were resumed on other ranks.

bf16 sums in another order give another rounding, so that two runs at two world sizes part, resumed
or not. How far is a matter of chance: one pair of curves says little. Here a tiny Mixer trains 6
steps under ddp at 1 to 4 ranks, from 16 seeds, saves, and trains 20 more; each checkpoint goes on
at every other world size. For each pair of world sizes the root mean square, over the seeds, of the
largest relative difference of a loss: between the resumed run and the one that was not interrupted,
and between the two uninterrupted runs at these world sizes. The bar is twice the latter.

Prints a Markdown table; ends with 1 where a bar is missed.
"""

import argparse
import statistics
import sys
import tempfile
from itertools import permutations
from pathlib import Path

from tqdm import tqdm

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # works from a bare checkout

from benchmarks.resume_matrix import END, distance
from tests.checkpoint import resume_cases
from tests.ranks import Ranks

WORLD_SIZES = (1, 2, 3, 4)
BAR = 2.0

Pair = tuple[int, int]
"""(ranks that saved, ranks that went on)."""


def main() -> int:
    """Print the table; 1 where a bar is missed."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--seeds", type=int, default=16)
    resumed: dict[Pair, list[float]] = {pair: [] for pair in permutations(WORLD_SIZES, 2)}
    uninterrupted: dict[Pair, list[float]] = {pair: [] for pair in resumed}
    for seed in tqdm(range(parser.parse_args().seeds), "seeds"):
        compare(seed, resumed, uninterrupted)
    print(
        "| ranks that saved | ranks that went on | resumed | uninterrupted | ratio |\n"
        "|---|---|---|---|---|"
    )
    worst = 0.0
    for (saved, went_on), distances in resumed.items():
        found, expected = rms(distances), rms(uninterrupted[saved, went_on])
        worst = max(worst, found / expected)
        print(f"| {saved} | {went_on} | {found:.1e} | {expected:.1e} | {found / expected:.2f} |")
    print(f"\nHighest ratio: {worst:.2f} (bar: {BAR:g}).")
    return int(worst > BAR)


def compare(
    seed: int, resumed: dict[Pair, list[float]], uninterrupted: dict[Pair, list[float]]
) -> None:
    """Add one seed's distances."""
    ranks = Ranks()
    with tempfile.TemporaryDirectory() as folder:
        urls = {size: f"{folder}/{size}" for size in WORLD_SIZES}
        losses = {
            size: ranks.run(
                size, resume_cases.train_and_save, urls[size], "ddp", "bf16", END, {"seed": seed}
            )[0]
            for size in WORLD_SIZES
        }
        for went_on in WORLD_SIZES:
            others = [size for size in WORLD_SIZES if size != went_on]
            outcomes = ranks.run(
                went_on, resume_cases.restore_and_train, [urls[size] for size in others], "ddp",
                "bf16", END, {"seed": seed},
            )[0]  # fmt: skip
            for saved, outcome in zip(others, outcomes, strict=True):
                assert outcome.is_bitwise, "a restored state that is not the saved one"
                resumed[saved, went_on].append(distance(outcome.losses, losses[saved]))
                apart = distance(losses[went_on], losses[saved])
                uninterrupted[saved, went_on].append(apart)


def rms(values: list[float]) -> float:
    """Root mean square."""
    return statistics.fmean(value**2 for value in values) ** 0.5


if __name__ == "__main__":
    sys.exit(main())
