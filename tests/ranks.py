"""Runs functions on several ranks at once, each rank a fresh process that has all imports.

Importing torch and DeepSpeed costs 6 to 20 s a process. A fork server imports them once a session;
every case then forks its ranks from it in milliseconds, with no state left from the case before.
"""

import multiprocessing
import os
import socket
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
PRELOADED = [
    "torch", "torch.distributed.fsdp", "numpy", "webdataset", "mixer_dist.cli",
    "mixer_dist.train.pretrain", "mixer_dist.eval.evaluate", "tests.preload",
]  # fmt: skip
TIMEOUT_S = 120.0


class RanksFailed(AssertionError):
    """One or more ranks raised; the message holds their tracebacks."""


class Ranks:
    """A session's fork server."""

    def __init__(self) -> None:
        # Else a mere question for GPUs, while the server imports, keeps them from all its ranks.
        os.environ["PYTORCH_NVML_BASED_CUDA_CHECK"] = "1"
        self._context = multiprocessing.get_context("forkserver")
        self._context.set_forkserver_preload(PRELOADED)

    def run(self, world_size: int, function: Callable[..., Any], *args: Any) -> list[Any]:
        """function(*args) on every rank of a new world; their results in rank order."""
        started = [self.start(world_size, rank, port, function, *args)
                   for port in [free_port()] for rank in range(world_size)]  # fmt: skip
        outcomes = [outcome for process, pipe in started for outcome in [receive(process, pipe)]]
        if failures := [text for kind, text in outcomes if kind == "error"]:
            raise RanksFailed("\n".join(failures))
        return [value for _, value in outcomes]

    def start(
        self, world_size: int, rank: int, port: int, function: Callable[..., Any], *args: Any
    ) -> tuple[Any, Any]:
        """One rank of a world, running; (process, pipe for its outcome)."""
        mine, theirs = self._context.Pipe(duplex=False)
        environment = {
            "RANK": str(rank), "WORLD_SIZE": str(world_size), "LOCAL_RANK": str(rank),
            "LOCAL_WORLD_SIZE": str(world_size), "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": str(port),
        }  # fmt: skip
        aws = {name: value for name, value in os.environ.items() if name.startswith("AWS_")}
        target = (theirs, environment | aws, function, args)
        process = self._context.Process(target=_run_rank, args=target)
        process.start()
        theirs.close()
        return process, mine


def receive(process: Any, pipe: Any) -> tuple[str, Any]:
    """A rank's ("value", …) or ("error", traceback)."""
    try:
        if pipe.poll(TIMEOUT_S):
            return pipe.recv()
        return "error", f"rank {process.name} gave nothing in {TIMEOUT_S} s"
    except EOFError:
        return "error", f"rank {process.name} died with exit code {process.exitcode}"
    finally:
        process.join(5)
        if process.is_alive():
            process.kill()


def _run_rank(
    pipe: Any, environment: dict[str, str], function: Callable[..., Any], args: tuple[Any, ...]
) -> None:
    import torch

    os.environ.update(environment)
    os.chdir(ROOT)
    torch.set_num_threads(1)
    try:
        pipe.send(("value", function(*args)))
    except BaseException:  # noqa: BLE001, shown by the test
        pipe.send(("error", traceback.format_exc()))
    sys.stdout.flush()


def free_port() -> int:
    """A port that nothing listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
