"""python benchmarks/cluster_stops.py: what Slurm stops, and how a run gets over it.

On a development cluster, data and run_dir in a bucket: `sbatch launchers/pretrain_h14.sh` as it is,
on 4 nodes of 2 ranks; a rank that gets SIGKILL; preemption by a partition with a higher priority; a
time limit. For each: how long until all ranks have ended and until the next step that was not done
before, how many saves the stop has caused, and how many steps were lost.

Needs root on Debian, and a quarter of an hour. Ends with 1 where a stop by Slurm loses a step.
"""

import argparse
import os
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # works from a bare checkout

from benchmarks.soak_site import NODES, Site, call
from mixer_dist.errors import MixerError
from mixer_dist.metrics import read_events
from mixer_dist.run_dir import read_attempt

TOTAL_STEPS = 2000
WARM_STEPS = 25  # before a stop
WARNING_S = 60  # before the time limit; Slurm keeps it to half a minute


class Stop(NamedTuple):
    """What became of a run that was stopped."""

    name: str
    after_step: int
    ended_s: float
    """Seconds until all its ranks had ended."""
    goes_on_s: float
    """Seconds until a step that was not done before."""
    num_saves: int
    """Of the last step."""
    num_lost: int
    is_asked: bool
    """Whether Slurm asks before it stops: then no step may be lost."""


def main() -> int:
    """Run the cases; the exit code."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--folder", type=Path, default=Path("build/cluster_stops"))
    folder = parser.parse_args().folder.resolve()
    try:
        with Site(folder, TOTAL_STEPS) as site:
            site.slow.touch()
            submit_as_it_is(site)
            stops = [stopped(site, name, stop, is_asked) for name, stop, is_asked in CASES]
            call("scancel", site.job)
    except MixerError as error:
        print(f"cluster_stops.py: {error}", file=sys.stderr)
        return 1
    print_table(stops)
    site.discard()
    return int(any(stop.is_asked and (stop.num_lost or stop.num_saves != 1) for stop in stops))


def submit_as_it_is(site: Site) -> None:
    """The production script with a small configuration, all of it by the environment."""
    os.environ |= {"CONFIG": str(site.config), "DATA": "s3://soak/digits/manifest.json",
                   "RUN_DIR": site.run_dir.url}  # fmt: skip
    limit = f"--time={2 * WARNING_S // 60 + 2}"
    said = call(
        "sbatch", f"--nodes={len(NODES)}", "--ntasks-per-node=2", "--cpus-per-task=1", limit,
        f"--signal=B:USR2@{WARNING_S}", "--partition=low", f"--output={site.logs}/%j.out",
        "launchers/pretrain_h14.sh",
    )  # fmt: skip
    site.job = said.split()[-1]
    first = site.wait_for_step(after=0)
    print(f"sbatch launchers/pretrain_h14.sh: step {first} on {' '.join(site.nodes)}, "
          f"{len(site.ranks())} ranks", file=sys.stderr)  # fmt: skip


def stopped(site: Site, name: str, stop: Callable[[Site], None], is_asked: bool) -> Stop:
    """Have it happen to a run that has gone on for a while."""
    site.wait_for_step(after=max(site.steps(), default=0) + WARM_STEPS)
    attempt, pids = site.newest_attempt, {process.pid for process in site.ranks()}
    stop(site)
    began = time.monotonic()
    while pids & {process.pid for process in site.ranks()}:
        time.sleep(0.1)
    ended_s, last = time.monotonic() - began, max(site.steps())
    site.wait_for_step(after=last)
    goes_on_s = time.monotonic() - began
    return Stop(
        name, last, ended_s, goes_on_s, num_saves(site, attempt, last),
        last - resumed_from(site, attempt), is_asked,
    )  # fmt: skip


def num_saves(site: Site, attempt: int, step: int) -> int:
    """How often an attempt has committed its last step."""
    events = read_events(site.storage, site.run_dir, attempt)
    return sum(event["event"] == "save" and event["step"] == step for event in events)


def resumed_from(site: Site, stopped_attempt: int) -> int:
    return read_attempt(site.storage, site.run_dir, stopped_attempt + 1).resumed_from


def kill_one(site: Site) -> None:
    site.ranks()[-1].kill()


def preempt(site: Site) -> None:
    """By a job that wants every node for a while."""
    call("sbatch", "--partition=gpu", f"--nodes={len(NODES)}", "--exclusive", "--output=/dev/null",
         "--wrap=sleep 20")  # fmt: skip


def run_out_of_time(site: Site) -> None:
    """Waits until Slurm is about to send its warning; it may come half a minute before."""
    attempt = site.newest_attempt
    while seconds_left(site) > WARNING_S and not has_stopped(site, attempt):
        time.sleep(0.5)


def seconds_left(site: Site) -> int:
    minutes, seconds = call("squeue", "--noheader", f"--jobs={site.job}", "--format=%L").split(":")
    return 60 * int(minutes) + int(seconds)


def has_stopped(site: Site, attempt: int) -> bool:
    events = read_events(site.storage, site.run_dir, attempt)
    return any(event["event"] == "preempt" for event in events)


CASES: Sequence[tuple[str, Callable[[Site], None], bool]] = (
    ("SIGKILL of a rank", kill_one, False),
    ("preemption by a partition", preempt, True),
    ("time limit", run_out_of_time, True),
)


def print_table(stops: Sequence[Stop]) -> None:
    """A row a case."""
    print("| stop | after step | all ranks ended, s | next new step, s | saves | steps lost |")
    print("|---|---|---|---|---|---|")
    for stop in stops:
        print(f"| {stop.name} | {stop.after_step} | {stop.ended_s:.1f} | {stop.goes_on_s:.0f} | "
              f"{stop.num_saves} | {stop.num_lost} |")  # fmt: skip


if __name__ == "__main__":
    sys.exit(main())
