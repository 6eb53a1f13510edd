"""python benchmarks/soak.py (or: make soak): a run under Slurm to which something always happens.

A small Mixer trains on a development cluster, data and run_dir in a bucket. Ranks and nodes are
killed, frozen and cut off, the store is silent or full, checkpoints are damaged, all by a seed that
is printed; nobody helps. In the end every step's batch_digest has to be what the audit computes,
and each segment between incidents, trained again by one process from its checkpoint, has to give
the losses on record: within 1e-5, bitwise where it ran on one rank.

Needs root on Debian, for Slurm and its networks, and about three minutes an incident. Ended by
Ctrl-C or whatever else, the same command goes on; `umount build/soak/disk; rm -r build/soak` begins
anew.
"""

import argparse
import json
import random
import shutil
import statistics
import sys
import time
from collections import defaultdict
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # works from a bare checkout

from benchmarks.soak_incidents import KINDS, draw_kinds
from benchmarks.soak_replay import Replay, replay, segments
from benchmarks.soak_site import RANK_NODES, Site
from mixer_dist.errors import MixerError
from mixer_dist.operations.data_audit import audit
from mixer_dist.run_dir import read_attempt

STEPS_BETWEEN = 24  # about: after one incident, before the next
BAR = 1e-5  # relative, of a loss


def main() -> int:
    """Go on with the incidents, then judge; 1 where anything does not hold."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--incidents", type=int, default=44)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--folder", type=Path, default=Path("build/soak"))
    arguments = parser.parse_args()
    folder, count = arguments.folder.resolve(), arguments.incidents
    print(f"seed {arguments.seed}", file=sys.stderr)
    try:
        with Site(folder, total_steps=(count + 2) * 3 * STEPS_BETWEEN) as site:
            record = Record(folder / "incidents.jsonl", arguments.seed)
            happen(site, record, draw_kinds(count, random.Random(arguments.seed)))
            finish(site)
            code = judge(site, record)
        if code == 0:  # else it is to be looked at
            site.discard()
        return code
    except MixerError as error:
        print(f"soak.py: {error}", file=sys.stderr)
        return 1


class Record:
    """What has happened so far, in a file."""

    def __init__(self, path: Path, seed: int) -> None:
        self._path = path
        self.seed = seed
        lines = path.read_text().splitlines() if path.exists() else []
        self.incidents: list[dict[str, Any]] = [json.loads(line) for line in lines]

    def add(self, **incident: Any) -> None:
        """Write one down."""
        self.incidents.append(incident)
        with self._path.open("a") as file:
            file.write(json.dumps(incident) + "\n")
        print(json.dumps(incident), file=sys.stderr, flush=True)


def happen(site: Site, record: Record, kinds: list[str]) -> None:
    """One incident after the other, each once the run has gone on after the one before."""
    site.slow.touch()
    site.submit(RANK_NODES)
    for number in range(len(record.incidents), len(kinds)):
        draw = random.Random(f"{record.seed}-{number}")
        step = max(site.steps(), default=0)
        before = site.wait_for_step(after=step + draw.randrange(4, STEPS_BETWEEN))
        time.sleep(draw.random())
        kind, attempt, began = KINDS[kinds[number]], site.newest_attempt, time.monotonic()
        end = kind.happen(site, draw)
        if kind.restarts:
            site.wait_for_attempt(after=attempt)
        site.wait_for_step(after=max(site.steps()))
        seconds = time.monotonic() - began
        end()
        lost = steps_lost(site, attempt, before)
        record.add(kind=kinds[number], after_step=before, seconds=seconds, lost=lost)


def steps_lost(site: Site, attempt: int, step: int) -> int:
    """Done before an incident, and again after it."""
    newest = site.newest_attempt
    if newest == attempt:
        return 0
    return max(0, step - read_attempt(site.storage, site.run_dir, newest).resumed_from)


def finish(site: Site) -> None:
    """Let the run come to its end, at full speed."""
    site.slow.unlink(missing_ok=True)
    while not site.is_over:
        time.sleep(1)


def judge(site: Site, record: Record) -> int:
    """Print tables and what does not hold; the exit code."""
    found = audit(site.run_dir)
    total_steps = found.total_steps
    shutil.rmtree(site.folder / "replays", ignore_errors=True)
    replays = replay(site, list(segments(site.storage, site.run_dir, total_steps)))
    print_incidents(record.incidents)
    print_replays(replays)
    problems = [
        *([str(found.difference)] if found.difference else []),
        *([f"{found.num_steps} of {total_steps} steps"] * (found.num_steps != total_steps)),
        *(f"{r.segment}: {r.distance:.1e}" for r in replays if r.distance > BAR),
        *(f"{r.segment}: not bitwise" for r in replays if r.segment.world_size == 1 and r.distance),
        *(f"orphan: {process.pid}" for process in site.ranks()),
    ]
    print(f"\nSteps whose digest is the audit's: {found.num_steps} of {total_steps}. "
          f"Problems: {'; '.join(problems) or 'none'}.")  # fmt: skip
    return int(bool(problems))


def print_incidents(incidents: list[dict[str, Any]]) -> None:
    """Seconds until a step beyond the last one before, and steps that were lost, by kind."""
    by_kind = defaultdict(list)
    for incident in incidents:
        by_kind[incident["kind"]].append(incident)
    print("| incident | count | seconds to the next new step, median | max | steps lost, max |")
    print("|---|---|---|---|---|")
    for kind, found in [*sorted(by_kind.items()), ("all", incidents)]:
        seconds = [incident["seconds"] for incident in found]
        lost = max(incident["lost"] for incident in found)
        print(f"| {kind} | {len(found)} | {statistics.median(seconds):.0f} | {max(seconds):.0f} "
              f"| {lost} |")  # fmt: skip


def print_replays(replays: list[Replay]) -> None:
    """How far the segments were from what one process gives."""
    print("\n| ranks | segments | steps | farthest loss |\n|---|---|---|---|")
    for world_size in sorted({r.segment.world_size for r in replays}):
        found = [r for r in replays if r.segment.world_size == world_size]
        num_steps = sum(r.segment.last - r.segment.first for r in found)
        farthest = max(r.distance for r in found)
        print(f"| {world_size} | {len(found)} | {num_steps} | {farthest:.1e} |")


if __name__ == "__main__":
    sys.exit(main())
