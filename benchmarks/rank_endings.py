"""How the ranks of a trial ended: with a result, killed, or not at all."""

import signal
from collections.abc import Callable
from multiprocessing.connection import wait
from typing import Any

from tests.ranks import Ranks, free_port

HANG_S = 100.0
KILLED = "killed"
HUNG = "hung"


def endings_of(
    ranks: Ranks,
    world_size: int,
    pulls_down: int | None,
    function: Callable[..., str],
    *args: Any,
) -> list[str]:
    """function(*args) on every rank of a new world: what each gave, or how else it ended.

    The end of the rank that pulls down the others is a SIGKILL for all of them.
    """
    port = free_port()
    started = [ranks.start(world_size, rank, port, function, *args) for rank in range(world_size)]
    processes = [process for process, _ in started]
    wait([process.sentinel for process in processes], HANG_S)
    if pulls_down is not None and processes[pulls_down].exitcode == -signal.SIGKILL:
        for process in processes:
            process.kill()
    return [ending(process, pipe) for process, pipe in started]


def ending(process: Any, pipe: Any) -> str:
    """How a rank ended, or that it did not."""
    process.join(HANG_S)
    if process.is_alive():
        process.kill()
        process.join()
        return HUNG
    if process.exitcode == -signal.SIGKILL:
        return KILLED
    try:
        return str(pipe.recv()[1]) if pipe.poll() else f"exit code {process.exitcode}"
    except EOFError:
        return f"exit code {process.exitcode}"
