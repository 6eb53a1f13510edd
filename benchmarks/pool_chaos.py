"""python benchmarks/pool_chaos.py: two evaluation pools whose processes are killed at random.

A small run with several checkpoints and tasks is looked after by two pools at once. At moments
drawn from a seed a worker or a pool gets SIGKILL, or a worker is frozen for longer than its claim
lasts; a pool that was killed is started anew. Where all results are there before all kills are
done, the same begins again on a copy of the run. Results are compared with those of a pool that
nobody disturbed, and files are watched: one that is written twice is a duplicate.

Prints a Markdown table; ends with 1 where a result is missing, duplicated or another one.
"""

import argparse
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import psutil
import yaml
from tqdm import tqdm

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # works from a bare checkout

from data_tools import sample_data, shard
from mixer_dist import cli
from mixer_dist.config import load_config
from mixer_dist.eval.pool.pool import Pool
from mixer_dist.eval.pool.run_watch import RunWatch
from mixer_dist.run_dir import RunDir
from mixer_dist.stop_requests import StopRequests
from mixer_dist.storage import Storage
from tests.eval.forked_workers import ForkedExecutor
from tests.ranks import Ranks

ROOT = Path(__file__).resolve().parents[1]
NUM_KILLS = 30
STEPS, EVERY = 5, 1
SHOTS = (1, 5, 10)
LEASE_S = 10.0
FROZEN_S = 3 * LEASE_S
LONGEST_PAUSE_S = 10.0  # between two kills
TARGETS = {"worker killed": 0.6, "pool killed": 0.25, "worker frozen": 0.15}
TICK_S = 0.1


def main() -> int:
    """Kill and count; the exit code."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--kills", type=int, default=NUM_KILLS)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        config, expected = prepared(Path(folder))
        chaos = Chaos(config, expected, arguments.kills, random.Random(arguments.seed))
        chaos.run()
    print(f"\nSeed {arguments.seed}.\n\n{chaos.table()}")
    return int(chaos.is_wrong)


def prepared(folder: Path) -> tuple[Path, dict[str, float]]:
    """The configuration of a run that is trained, and the results of an undisturbed pool."""
    sample_data.write_digits(folder / "images", size_px=32)
    shard.main([str(folder / "images" / "test"), str(folder / "shards"), "--shard-mb", "0.5"])
    manifest, config = str(folder / "shards" / "manifest.json"), folder / "config.yaml"
    config.write_text(yaml.safe_dump(run_tree(str(folder / "run"), manifest)))
    ranks = Ranks()
    if ranks.run(1, cli.main, ["pretrain", str(config)]) != [0]:
        raise SystemExit("the run could not be trained")
    shutil.copytree(folder / "run", folder / "untouched")
    words = [f"run_dir={folder / 'untouched'}"]
    rules = load_config(config, words)
    run_dir, arguments = RunDir(rules.run_dir), [str(config), *words]
    watch = RunWatch(Storage(), run_dir, rules.evals, rules.pool, arguments)
    Pool([watch], ForkedExecutor(ranks), rules.pool).run(StopRequests())
    return config, results(folder / "untouched")


def run_tree(run_dir: str, manifest: str) -> dict[str, object]:
    """A small Mixer on the digits, with a few-shot task for each number of shots."""
    task = {"kind": "fewshot", "resize": 32, "train": manifest, "test": manifest}
    return {
        "run_dir": run_dir, "total_steps": STEPS, "global_batch_size": 8, "micro_batch_size": 8,
        "model": {"patch_size": 16, "hidden_dim": 8, "num_blocks": 1, "tokens_mlp_dim": 4,
                  "channels_mlp_dim": 4, "image_size": 32, "num_classes": 10},
        "data": {"train": [{"manifest": manifest}]},
        "optimizer": {"learning_rate": 0.001},
        "engine": {"name": "single", "precision": "fp32"},
        "checkpoint": {"every_steps": EVERY},
        "evals": [{**task, "name": f"shots-{shots}", "shots": shots} for shots in SHOTS],
        "pool": {"poll_s": 1, "lease_s": LEASE_S, "max_losses": 10**6},
    }  # fmt: skip


def results(run_dir: Path) -> dict[str, float]:
    """Accuracies by file."""
    found = (run_dir / "evals").glob("*/step-*.json")
    return {
        str(path.relative_to(run_dir)): json.loads(path.read_text())["accuracy"] for path in found
    }


class Chaos:
    """Runs that are judged one after the other, until so many were killed."""

    def __init__(
        self, config: Path, expected: dict[str, float], num_kills: int, rng: random.Random
    ) -> None:
        self._config = config
        self._expected = expected
        self._num_kills = num_kills
        self._rng = rng
        self._versions: dict[Path, set[tuple[int, int]]] = {}
        self._thaws: dict[psutil.Process, float] = {}
        self.counts: Counter[str] = Counter()

    @property
    def is_wrong(self) -> bool:
        return any(self.counts[name] for name in ("missing", "duplicated", "different"))

    def num_killed(self) -> int:
        return self.counts["worker killed"] + self.counts["pool killed"]

    def run(self) -> None:
        """Go on until the last run that was begun has ended."""
        with tqdm(total=self._num_kills, desc="kills") as progress:
            while self.num_killed() < self._num_kills:
                self.counts["runs"] += 1
                self._judge_one(self._config.with_name(f"run-{self.counts['runs']}"), progress)

    def _judge_one(self, run_dir: Path, progress: tqdm) -> None:
        shutil.copytree(self._config.with_name("run"), run_dir)
        next_kill = self._next_moment()
        with two_pools(self._config, run_dir) as pools:
            while any(process.poll() is None for process in pools.values()):
                self._observe(run_dir)
                if time.monotonic() > next_kill and self.num_killed() < self._num_kills:
                    next_kill = self._next_moment()
                    self._strike(run_dir, pools)
                    progress.update(self.num_killed() - progress.n)
                for name, process in pools.items():
                    if process.poll() not in (None, 0):
                        pools[name] = start_pool(self._config, run_dir, name)
                time.sleep(TICK_S)
            while self._thaws or workers(run_dir):  # whoever comes late must do no harm
                self._observe(run_dir)
                time.sleep(TICK_S)
        self._count(run_dir)

    def _next_moment(self) -> float:
        return time.monotonic() + self._rng.uniform(0, LONGEST_PAUSE_S)

    def _strike(self, run_dir: Path, pools: dict[str, subprocess.Popen[bytes]]) -> None:
        """One target of the kind that is drawn, where there is one."""
        [kind] = self._rng.choices(list(TARGETS), list(TARGETS.values()))
        alive = [process for process in workers(run_dir) if process not in self._thaws]
        if kind == "pool killed":
            self._rng.choice(list(pools.values())).kill()
        elif alive:
            target = self._rng.choice(alive)
            with suppress(psutil.NoSuchProcess):
                target.send_signal(signal.SIGKILL if kind == "worker killed" else signal.SIGSTOP)
            if kind == "worker frozen":
                self._thaws[target] = time.monotonic() + FROZEN_S
        else:
            return
        self.counts[kind] += 1

    def _observe(self, run_dir: Path) -> None:
        """Note each version of each result; let go on who was frozen long enough."""
        for path in (run_dir / "evals").glob("*/step-*.json"):
            about = path.stat()
            self._versions.setdefault(path, set()).add((about.st_ino, about.st_mtime_ns))
        for process, moment in list(self._thaws.items()):
            if time.monotonic() > moment or not process.is_running():
                with suppress(psutil.NoSuchProcess):
                    process.resume()
                del self._thaws[process]

    def _count(self, run_dir: Path) -> None:
        found = results(run_dir)
        versions = [seen for path, seen in self._versions.items() if run_dir in path.parents]
        self.counts["expected"] += len(self._expected)
        self.counts["found"] += len(found)
        self.counts["missing"] += len(self._expected.keys() - found.keys())
        self.counts["duplicated"] += sum(len(seen) - 1 for seen in versions)
        self.counts["different"] += sum(found[name] != self._expected[name] for name in found)
        self.counts["lost and done again"] += len(list(run_dir.glob("evals/*/failures/*-lost-*")))
        self.counts["failed"] += len(list(run_dir.glob("evals/*/failures/*-failed-*")))
        self.counts["claims left"] += len(list(run_dir.glob("evals/*/claims/*/*.json")))

    def table(self) -> str:
        """Markdown: all counts."""
        names = [
            "runs", *TARGETS, "expected", "found", "missing", "duplicated", "different",
            "lost and done again", "failed", "claims left",
        ]  # fmt: skip
        cells = [str(self.counts[name]) for name in names]
        return "\n".join(f"| {' | '.join(row)} |" for row in (names, ["---"] * len(names), cells))


@contextmanager
def two_pools(config: Path, run_dir: Path) -> Iterator[dict[str, subprocess.Popen[bytes]]]:
    """Both at once; nothing of them is left."""
    pools = {name: start_pool(config, run_dir, name) for name in ("first", "second")}
    try:
        yield pools
    finally:
        for process in pools.values():
            process.kill()
            process.wait()
        for process in workers(run_dir):
            process.kill()


def start_pool(config: Path, run_dir: Path, name: str) -> subprocess.Popen[bytes]:
    """A pool that ends when all is done, as the trained run is finished."""
    command = [
        sys.executable, "-m", "mixer_dist", "pool", str(config), f"run_dir={run_dir}",
        f"pool.log_dir={run_dir}-logs-{name}",
    ]  # fmt: skip
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.Popen(command, cwd=ROOT, env=environment, stdout=subprocess.DEVNULL)


def workers(run_dir: Path) -> list[psutil.Process]:
    """Processes that evaluate a checkpoint of this run, also those of a pool that is dead."""
    found = []
    for process in psutil.process_iter():
        with suppress(psutil.Error):
            words = process.cmdline()
            if "--claim" in words and f"run_dir={run_dir}" in words:
                found.append(process)
    return found


if __name__ == "__main__":
    sys.exit(main())
