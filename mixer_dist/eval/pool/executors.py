"""Where workers run: processes of this machine; jobs of Slurm are in slurm_jobs."""

import logging
import os
import signal
import subprocess
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from mixer_dist import distributed
from mixer_dist.config import PoolConfig

STOP_S = 30.0  # that a worker has for its end when it is asked to stop

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Jobs:
    """What has become of workers."""

    under_way: frozenset[str]
    """Names, those of other pools too where they can be seen."""
    ended: dict[str, int | None]
    """Exit codes by name, of this pool's since it last asked; None where nobody knows."""


class Executor(Protocol):
    """Starts workers under names, and tells what becomes of them."""

    def start(self, name: str, command: Sequence[str]) -> None:
        """MixerError where it cannot be started."""

    def look(self) -> Jobs:
        """Each end is told once."""

    def has_news(self) -> bool:
        """Whether a look would tell of an end, as far as that is known without asking anybody."""

    def stop(self) -> dict[str, int | None]:
        """End what ends with the pool; exit codes by name."""


@dataclass
class LocalWorker:
    """The ranks of a worker, as processes of their own session: Ctrl-C is for the pool."""

    ranks: list[subprocess.Popen[bytes]]
    slot: int
    began: float = field(default_factory=time.monotonic)

    def exit_code(self) -> int | None:
        """Of rank 0; None while any rank runs."""
        codes = [rank.poll() for rank in self.ranks]
        return None if None in codes else codes[0]

    def send(self, number: signal.Signals) -> None:
        for rank in self.ranks:
            rank.send_signal(number)


class LocalExecutor:
    """Workers as processes of this machine."""

    def __init__(self, rules: PoolConfig) -> None:
        self._rules = rules
        self._workers: dict[str, LocalWorker] = {}

    def start(self, name: str, command: Sequence[str]) -> None:
        """Its lines go to the end of log_dir/NAME.log."""
        log = Path(self._rules.log_dir, f"{name}.log")
        log.parent.mkdir(parents=True, exist_ok=True)
        port, slot = distributed.free_port(), self._free_slot()
        with log.open("ab") as lines:
            ranks = [
                subprocess.Popen(
                    command,
                    env=self._environment(rank, port, slot),
                    stdin=subprocess.DEVNULL,
                    stdout=lines,
                    stderr=subprocess.STDOUT,
                    start_new_session=True,
                )
                for rank in range(self._rules.ranks)
            ]
        self._workers[name] = LocalWorker(ranks, slot)

    def look(self) -> Jobs:
        """Workers past their time are ended."""
        for name, worker in self._workers.items():
            if time.monotonic() - worker.began > self._rules.time_limit_s:
                logger.warning("%s takes more than %g s: ended", name, self._rules.time_limit_s)
                worker.send(signal.SIGKILL)
        codes = {name: worker.exit_code() for name, worker in self._workers.items()}
        ended = {name: code for name, code in codes.items() if code is not None}
        for name in ended:
            del self._workers[name]
        return Jobs(frozenset(self._workers), dict(ended))

    def has_news(self) -> bool:
        return any(worker.exit_code() is not None for worker in self._workers.values())

    def stop(self) -> dict[str, int | None]:
        """They are asked, so that they give up their claims."""
        for worker in self._workers.values():
            worker.send(signal.SIGTERM)
        deadline = time.monotonic() + STOP_S
        for rank in [rank for worker in self._workers.values() for rank in worker.ranks]:
            try:
                rank.wait(max(0.0, deadline - time.monotonic()))
            except subprocess.TimeoutExpired:
                rank.kill()
                rank.wait()
        return self.look().ended

    def _free_slot(self) -> int:
        """The lowest place that no worker has, which decides its GPUs."""
        taken = {worker.slot for worker in self._workers.values()}
        return next(slot for slot in range(len(taken) + 1) if slot not in taken)

    def _environment(self, rank: int, port: int, slot: int) -> dict[str, str]:
        """What is not given is shared by all workers that there may be."""
        rules = self._rules
        variables = distributed.launch_variables(rank, rules.ranks, port)
        cores = rules.cores or (os.cpu_count() or 1) // (rules.ranks * rules.max_workers)
        variables["OMP_NUM_THREADS"] = str(max(1, cores))
        if rules.gpus:
            variables["CUDA_VISIBLE_DEVICES"] = ",".join(_gpus(slot, rules.gpus))
        return variables


def _gpus(slot: int, count: int) -> list[str]:
    """Those of a place, among those that the pool may use."""
    places = range(slot * count, (slot + 1) * count)
    visible = distributed.variable("CUDA_VISIBLE_DEVICES")
    names = visible.split(",") if visible else [str(place) for place in range(places.stop)]
    return [names[place] for place in places if place < len(names)]
