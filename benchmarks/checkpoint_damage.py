"""python benchmarks/checkpoint_damage.py: 1,000 kinds of damage to a checkpoint, each one restored.

A seed decides which file of a ZeRO-2 checkpoint of 3 ranks is damaged and how: a bit flipped, the
end cut off, the file removed, renamed, emptied, longer or exchanged with another. It is then
restored as a start does it, and the damaged file has to be named before a value is read. Damage
that comes between that check and the reading is for the CRCs of the pieces. Beside it the same
tensors as torch.distributed.checkpoint (DCP) keeps them. Prints a Markdown table for each; ends
with 1 where damage before the check is not named, or other values come of pieces read whole.
"""

import argparse
import logging
import random
import sys
import tempfile
from collections import Counter
from collections.abc import Collection, Iterable
from pathlib import Path

from tqdm import tqdm

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # works from a bare checkout

from benchmarks.checkpoint_restores import (
    NAMED,
    OUTCOMES,
    SAME,
    UNNAMED,
    Subject,
    dcp_subject,
    our_subjects,
    outcome_of,
    stored_values,
)
from benchmarks.file_damage import DAMAGES, damaged
from tests.checkpoint import resume_cases
from tests.ranks import Ranks

NUM_DAMAGES = 1_000
BEFORE, WHOLE, IN_PART, DCP = (
    "before the check", "after the check, pieces read whole",
    "after the check, pieces read in part", "DCP",
)  # fmt: skip
ALLOWED = {BEFORE: {NAMED}, WHOLE: {NAMED, UNNAMED, SAME}}
"""What damage may come to; the others are shown as they are."""

Counts = Counter[tuple[str, str]]
"""How often each (damage, outcome) came up."""


def main() -> int:
    """Damage and restore; the exit code."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--number", type=int, default=NUM_DAMAGES, help="of kinds of damage")
    logging.getLogger("torch").setLevel(logging.CRITICAL)  # DCP shows tracebacks of its own
    seeds = range(parser.parse_args().number)
    with tempfile.TemporaryDirectory() as folder:
        counts = {
            name: damage_and_restore(subject, tqdm(seeds, name, mininterval=1), ALLOWED.get(name))
            for name, subject in all_subjects(Path(folder), Ranks()).items()
        }
    for name, found in counts.items():
        print(f"\n## {name}\n\n{table(found)}")
    return int(any(missed(name, found) for name, found in counts.items()))


def all_subjects(folder: Path, ranks: Ranks) -> dict[str, Subject]:
    """A checkpoint of three files, restored in each way, and DCP's of the same tensors."""
    run_dir, step = str(folder / "run"), resume_cases.SAVED_AT
    ranks.run(3, resume_cases.train_and_save, run_dir, "zero2", "fp32", step)
    start, read_whole, read_in_part = our_subjects(run_dir, step)
    dcp = dcp_subject(folder / "dcp", stored_values(run_dir, step))
    return {BEFORE: start, WHOLE: read_whole, IN_PART: read_in_part, DCP: dcp}


def damage_and_restore(
    subject: Subject, seeds: Iterable[int], allowed: Collection[str] | None = None
) -> Counts:
    """What each kind of damage came to; details of what is not allowed go to stderr."""
    counts: Counts = Counter()
    for seed in seeds:
        kind, files = damaged(subject.files, random.Random(seed))
        outcome, said = outcome_of(subject, files)
        if outcome not in (allowed or OUTCOMES):
            tqdm.write(f"seed {seed}, {kind}: {outcome}: {said}", file=sys.stderr)
        counts[kind, outcome] += 1
    return counts


def missed(name: str, counts: Counts) -> bool:
    """Whether an outcome came up that must not."""
    return any(outcome not in ALLOWED.get(name, OUTCOMES) for _, outcome in counts)


def table(counts: Counts) -> str:
    """Markdown: a row for each kind of damage."""
    lines = [f"| damage | {' | '.join(OUTCOMES)} |", "|---" * (1 + len(OUTCOMES)) + "|"]
    for kind in DAMAGES:
        row = " | ".join(f"{counts[kind, outcome]:,}" for outcome in OUTCOMES)
        lines.append(f"| {kind} | {row} |")
    totals = (sum(counts[kind, outcome] for kind in DAMAGES) for outcome in OUTCOMES)
    return "\n".join([*lines, f"| all | {' | '.join(f'{total:,}' for total in totals)} |"])


if __name__ == "__main__":
    sys.exit(main())
