"""Where this process stands, as its launcher says; the only reader of the environment."""

import os
import re
import socket
from collections.abc import Mapping
from dataclasses import dataclass

import torch

from mixer_dist.errors import RefusedError

PORTS = range(10_000, 30_000)  # below those that the system hands out


@dataclass(frozen=True)
class Placement:
    """Where this process stands among the processes of a run."""

    rank: int
    world_size: int
    local_rank: int
    local_world_size: int


def placement(environ: Mapping[str, str] = os.environ) -> Placement:
    """This process's place as torchrun or srun states it; a plain python process is alone."""
    if "RANK" in environ:
        names = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE")
    elif "SLURM_STEP_NUM_TASKS" in environ:  # only inside srun: sbatch's own shell lacks it
        return _slurm_placement(environ)
    else:
        return Placement(0, 1, 0, 1)
    return Placement(*(int(environ[name]) for name in names))


def _slurm_placement(environ: Mapping[str, str]) -> Placement:
    names = ("SLURM_PROCID", "SLURM_STEP_NUM_TASKS", "SLURM_LOCALID")
    rank, world_size, local_rank = (int(environ[name]) for name in names)
    per_node = _tasks_per_node(environ.get("SLURM_STEP_TASKS_PER_NODE", str(world_size)))
    return Placement(rank, world_size, local_rank, per_node[int(environ.get("SLURM_NODEID", 0))])


def _tasks_per_node(text: str) -> list[int]:
    """Slurm's `2(x3),1` as [2, 2, 2, 1]."""
    found = re.findall(r"(\d+)(?:\(x(\d+)\))?", text)
    return [int(tasks) for tasks, times in found for _ in range(int(times or 1))]


def launch_variables(rank: int, world_size: int, port: int) -> dict[str, str]:
    """What a process is started with to take this place among ranks of this machine alone.

    Threads are set too: another number sums in another order.
    """
    place = {
        "RANK": rank, "WORLD_SIZE": world_size, "LOCAL_RANK": rank, "LOCAL_WORLD_SIZE": world_size,
        "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port,
        "OMP_NUM_THREADS": max(1, (os.cpu_count() or 1) // world_size),
    }  # fmt: skip
    return os.environ | {name: str(value) for name, value in place.items()}


def free_port() -> int:
    """One that nothing listens on, for ranks of this machine."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port: int = found.getsockname()[1]
        return port


def device() -> torch.device:
    """The GPU of this rank, or the CPU where there is none."""
    if not torch.cuda.is_available():
        return torch.device("cpu")
    visible = torch.cuda.device_count()
    return torch.device("cuda", placement().local_rank % visible)


def num_cores() -> int:
    """Cores this rank may use: those it is bound to, or its share of an unbound node."""
    bound = (
        len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    )
    is_shared = bound == os.cpu_count()
    return max(1, bound // placement().local_world_size) if is_shared else bound


def set_main_address() -> str:
    """Where rank 0 is, as HOST:PORT, set for PyTorch where the launcher has not; RefusedError.

    Under a plain srun it is the first node of the step, with a port that follows from its number.
    """
    if missing := [name for name in ("MASTER_ADDR", "MASTER_PORT") if name not in os.environ]:
        place = placement()
        if "SLURM_STEP_NODELIST" not in os.environ:
            raise RefusedError(
                f"rank {place.rank} of {place.world_size} needs {' and '.join(missing)}: "
                "start with torchrun or srun, or export them"
            )
        os.environ.setdefault("MASTER_ADDR", first_host(os.environ["SLURM_STEP_NODELIST"]))
        job, step = (int(os.environ[f"SLURM_{name}_ID"]) for name in ("JOB", "STEP"))
        os.environ.setdefault("MASTER_PORT", str(PORTS[(job + 7919 * step) % len(PORTS)]))
    return f"{os.environ['MASTER_ADDR']}:{os.environ['MASTER_PORT']}"


def first_host(nodes: str) -> str:
    """The first name in a list as Slurm writes it, such as `gpu[007-009,12]-ib,login1`."""
    match = re.match(r"([^\[,]*)(?:\[(\d+)[^\]]*\])?([^,]*)", nodes)
    assert match, nodes
    return "".join(part or "" for part in match.groups())


def main_address() -> str:
    """The host of rank 0, as the other ranks reach it."""
    return os.environ["MASTER_ADDR"]


def variable(name: str) -> str | None:
    """What others set for this process in the environment, such as TORCH_EXTENSIONS_DIR."""
    return os.environ.get(name)


def set_for_deepspeed() -> None:
    """Have DeepSpeed find what is here."""
    if device().type == "cpu":
        os.environ.setdefault("DS_ACCELERATOR", "cpu")
    os.environ.setdefault("DEEPSPEED_LOG_LEVEL", "warning")
    os.environ.setdefault("LOCAL_RANK", str(placement().local_rank))  # srun and python lack it
