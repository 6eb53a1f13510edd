"""python benchmarks/failure_cost.py: what it costs a step to be watched.

Two ranks (gloo) train a small Mixer on drawn data, in blocks of steps that are in turn bare and
with all that looks after a run: the vote on signals, the watchdog, the connection between ranks,
the timer of stragglers, metrics with a report each 10 steps, z-scores and the guard of updates.
Counted: CPU time of all threads of rank 0, which has most to do, and calls of collectives.

Prints a Markdown table; ends with 1 where a bar is missed.
"""

import argparse
import math
import statistics
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # works from a bare checkout

from benchmarks.drawn_state import begin_attempt
from mixer_dist import distributed
from mixer_dist.config import RunConfig
from mixer_dist.data.batch import Batch
from mixer_dist.liveness import peers_watched
from mixer_dist.run_dir import RunDir
from mixer_dist.storage import Storage
from mixer_dist.train.description import NOTHING_DONE
from mixer_dist.train.engine import Engine, not_finite
from mixer_dist.train.pretrain import guard_updates
from mixer_dist.train.progress import Progress
from mixer_dist.train.start import Run
from mixer_dist.train.stragglers import ForwardTimer
from mixer_dist.train.watchdog import Watchdog
from tests import ranks
from tests.tiny import tiny_batch, tiny_config, tiny_engine

STEP_MS = 200.0
BAR_MS = STEP_MS / 100
REPORT_STEPS = 10
TIMEOUT_S = 900.0
COLLECTIVES = ("all_reduce", "all_gather_object", "broadcast_object_list", "broadcast")


def main() -> int:
    """Measure and print; 1 where a bar is missed."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=200, help="pairs of blocks")
    parser.add_argument("--steps", type=int, default=10, help="of a block")
    parser.add_argument("--engine", default="ddp")
    given = parser.parse_args()
    ranks.TIMEOUT_S = TIMEOUT_S
    with tempfile.TemporaryDirectory() as folder:
        watched, bare, calls = ranks.Ranks().run(
            2, costs, given.engine, given.rounds, given.steps, folder
        )[0]
    extra = [a - b for a, b in zip(watched, bare, strict=True)]
    print("| block | CPU ms a step, median | least | most |\n|---|---|---|---|")
    for name, values in (("bare", bare), ("watched", watched), ("difference", extra)):
        print(
            f"| {name} | {statistics.median(values):.2f} | {min(values):.2f} | {max(values):.2f} |"
        )
    cost, error = statistics.median(extra), median_error(extra)
    print(
        f"\n- {cost:.2f} ± {error:.2f} ms a step, {cost / STEP_MS:.2%} of {STEP_MS:g} ms "
        f"(bar: {BAR_MS:g} ms)"
    )
    for kind, count in sorted(calls.items()):
        print(f"- {kind}: {count:.2f} calls a step")
    return int(cost > BAR_MS or calls.get("all_reduce, asynchronous", 0) > 1)


def median_error(values: list[float]) -> float:
    """Standard error of the median, from the quartiles, as of a normal distribution."""
    first, _, third = statistics.quantiles(values, n=4)
    return 1.253 * (third - first) / 1.349 / math.sqrt(len(values))


def costs(
    engine_name: str, rounds: int, num_steps: int, folder: str
) -> tuple[list[float], list[float], dict[str, float]]:
    """CPU ms a step of watched and of bare blocks, and the collectives that watching adds."""
    torch.set_num_threads(1)
    config = tiny_config(
        engine_name, run_dir=folder, total_steps=10**6, micro_batch_size=10,
        logging={"every_steps": REPORT_STEPS}, numerics={"spike_z": 1e6, "on_spike": "skip"},
    )  # fmt: skip
    watched, bare = [], []
    with distributed.connected(60), peers_watched() as peers, Watchdog(peers, config) as watchdog:
        engine, batch = tiny_engine(config), tiny_batch(config, 0)
        run = begun_run(config, folder)
        timer = ForwardTimer(engine)
        with closing(Progress(run, timer)) as progress:
            steps = WatchedSteps(run, engine, watchdog, progress)
            cpu_ms(lambda: bare_steps(engine, batch, num_steps), num_steps)  # warm up
            blocks = [
                lambda: watched.append(cpu_ms(lambda: steps.take(batch, num_steps), num_steps)),
                lambda: bare.append(
                    cpu_ms(lambda: bare_steps(engine, batch, num_steps), num_steps)
                ),
            ]
            for _ in range(rounds):
                for block in blocks:
                    block()
                blocks.reverse()  # so that what drifts bears on both
            counts = counted(lambda: steps.take(batch, num_steps))
            counts.subtract(counted(lambda: bare_steps(engine, batch, num_steps)))
    return watched, bare, {kind: n / num_steps for kind, n in counts.items() if n}


def begun_run(config: RunConfig, folder: str) -> Run:
    """A run without data."""
    storage, run_dir = Storage(), RunDir(folder)
    attempt = begin_attempt(storage, run_dir, config)
    nothing: Any = None
    return Run(
        config, storage, run_dir, nothing, attempt, None, NOTHING_DONE, distributed.hosts(),
    )  # fmt: skip


def bare_steps(engine: Engine, batch: Batch, num_steps: int) -> None:
    """Steps and nothing else."""
    engine.guard = not_finite
    for _ in range(num_steps):
        engine.train_step(batch, 1e-3)


class WatchedSteps:
    """Steps as the trainer takes them, but for data and checkpoints."""

    def __init__(self, run: Run, engine: Engine, watchdog: Watchdog, progress: Progress) -> None:
        self._run, self._engine = run, engine
        self._watchdog, self._progress = watchdog, progress
        self._vote = distributed.Vote()

    def take(self, batch: Batch, num_steps: int) -> None:
        """A block of them."""
        guard_updates(self._run, self._engine, [])
        for step in range(1, num_steps + 1):
            self._watchdog.enter("data", step)
            self._watchdog.enter("step")
            self._progress.add(batch, self._engine.train_step(batch, 1e-3), 1e-3)
            if step % REPORT_STEPS == 0:
                self._watchdog.enter("report")
                self._progress.report()
            self._vote.ask(False)
        self._vote.last()


def cpu_ms(action: Callable[[], None], num_steps: int) -> float:
    """CPU time of this process, all threads, a step."""
    began = time.process_time()
    action()
    return 1000 * (time.process_time() - began) / num_steps


def counted(action: Callable[[], None]) -> Counter[str]:
    """How often collectives are called meanwhile."""
    counts: Counter[str] = Counter()
    originals = {name: getattr(dist, name) for name in COLLECTIVES}

    def counting(name: str) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            counts[f"{name}, {'asynchronous' if kwargs.get('async_op') else 'synchronous'}"] += 1
            return originals[name](*args, **kwargs)

        return call

    for name in COLLECTIVES:
        setattr(dist, name, counting(name))
    action()
    for name, original in originals.items():
        setattr(dist, name, original)
    return counts


if __name__ == "__main__":
    sys.exit(main())
