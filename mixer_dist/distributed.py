"""Ranks, their process groups and small collectives; the only reader of the environment."""

import json
import os
import resource
import socket
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, NoReturn

import torch
import torch.distributed as dist
from numpy.typing import NDArray

from mixer_dist.errors import MixerError, PeerError, PreemptedError, RefusedError


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
        names = ("SLURM_PROCID", "SLURM_STEP_NUM_TASKS", "SLURM_LOCALID", "SLURM_NTASKS_PER_NODE")
    else:
        return Placement(0, 1, 0, 1)
    rank, world_size, local_rank = (int(environ[name]) for name in names[:3])
    return Placement(rank, world_size, local_rank, int(environ.get(names[3], world_size)))


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


@contextmanager
def connected(timeout_s: float) -> Iterator[None]:
    """Join the process group of this run, leave it at the end. All ranks must call this."""
    place = placement()
    _allow_open_files()
    backend = "gloo"
    if device().type == "cuda":
        torch.cuda.set_device(device())
        backend = "cpu:gloo,cuda:nccl"
    if place.world_size == 1:  # needs no port
        store = torch.distributed.HashStore()  # type: ignore[attr-defined]
        dist.init_process_group(backend, store=store, rank=0, world_size=1)
    else:
        _join(place, backend, timeout_s)
    try:
        yield
    except BaseException as error:
        # NCCL's end waits for the other ranks, which may never come, and this process ends anyway.
        is_agreed = getattr(error, "exit_code", None) == PreemptedError.exit_code
        if is_agreed or place.world_size == 1 or device().type == "cpu":
            dist.destroy_process_group()
        raise
    dist.destroy_process_group()


def _allow_open_files() -> None:
    """As many as may be: rank 0 of 256 holds over 1,000 connections, the usual limit."""
    most = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))


def _join(place: Placement, backend: str, timeout_s: float) -> None:
    """Wait for the other ranks; RefusedError, MixerError where they do not come."""
    _check_address(place)
    timeout = timedelta(seconds=timeout_s)
    try:
        dist.init_process_group(
            backend, rank=place.rank, world_size=place.world_size, timeout=timeout
        )
    except (dist.DistError, RuntimeError) as error:  # of the store, or of gloo
        address = f"{os.environ['MASTER_ADDR']}:{os.environ['MASTER_PORT']}"
        raise MixerError(
            f"rank {place.rank} could not join the other {place.world_size - 1} at {address} "
            f"within {timeout_s:g} s: see that every rank was started, and that this address can "
            f"be reached ({str(error).splitlines()[0]})"
        ) from error


def _check_address(place: Placement) -> None:
    if missing := [name for name in ("MASTER_ADDR", "MASTER_PORT") if name not in os.environ]:
        raise RefusedError(
            f"rank {place.rank} of {place.world_size} needs {' and '.join(missing)}: "
            "start with torchrun, or export them before srun as launchers/ do"
        )


def main_address(environ: Mapping[str, str] = os.environ) -> str:
    """The host of rank 0, as the other ranks reach it."""
    return environ["MASTER_ADDR"]


def rank() -> int:
    """This process's rank; 0 when it is alone."""
    return dist.get_rank() if dist.is_initialized() else placement().rank


def world_size() -> int:
    """How many ranks train together."""
    return dist.get_world_size() if dist.is_initialized() else placement().world_size


def is_main() -> bool:
    """Whether this is rank 0, which alone prints and writes what all share."""
    return rank() == 0


def background_group(timeout_s: float) -> dist.ProcessGroup | None:
    """A group of all ranks for a thread of its own, through gloo. All ranks must call this."""
    if world_size() == 1:
        return None
    group: dist.ProcessGroup = dist.new_group(backend="gloo", timeout=timedelta(seconds=timeout_s))
    return group


def share(value: Any, group: dist.ProcessGroup | None = None) -> Any:
    """Rank 0's value (anything JSON holds), on every rank. All ranks must call this."""
    texts = [json.dumps(value) if is_main() else None]
    if world_size() > 1:
        dist.broadcast_object_list(texts, src=0, group=group, device=torch.device("cpu"))
    return json.loads(texts[0] or "null")


def on_main(action: Callable[[], Any], group: dist.ProcessGroup | None = None) -> Any:
    """Run an action on rank 0 and give its result (anything JSON holds) or its error to all.

    The other ranks raise PeerError where rank 0 raised. All ranks must call this.
    """
    outcome, failure = _outcome(action) if is_main() else ({}, None)
    outcome = share(outcome, group)
    if failure:
        raise failure
    return _value(outcome)


def on_all(action: Callable[[], Any], group: dist.ProcessGroup | None = None) -> list[Any]:
    """Run an action on every rank and give all results (anything JSON holds), in rank order.

    Where any rank raised, all do: those that did not, PeerError. All ranks must call this.
    """
    outcome, failure = _outcome(action)
    outcomes = gather(outcome, group)
    if failure:
        raise failure
    return [_value(outcome) for outcome in outcomes]


def fail_together(error: MixerError) -> NoReturn:
    """Raise an error that every rank knows of: PeerError off rank 0. All ranks must call this."""
    raise error if is_main() else PeerError(str(error), error.exit_code)


def hosts() -> list[str]:
    """The host name of each rank. All ranks must call this."""
    names: list[str] = gather(socket.gethostname())
    return names


def _outcome(action: Callable[[], Any]) -> tuple[dict[str, Any], MixerError | None]:
    """What an action gave, or its error, to be told to other ranks."""
    try:
        return {"value": action()}, None
    except MixerError as error:
        return {"error": f"rank {rank()}: {error}", "exit_code": error.exit_code}, error


def _value(outcome: dict[str, Any]) -> Any:
    if "error" in outcome:
        raise PeerError(outcome["error"], outcome["exit_code"])
    return outcome["value"]


def gather(value: Any, group: dist.ProcessGroup | None = None) -> list[Any]:
    """Every rank's value (anything JSON holds), in rank order. All ranks must call this."""
    texts: list[Any] = [None] * world_size()
    if world_size() == 1:
        return [json.loads(json.dumps(value))]
    dist.all_gather_object(texts, json.dumps(value), group=group)
    return [json.loads(text) for text in texts]


def gather_rows(rows: NDArray[Any]) -> NDArray[Any]:
    """Every rank's rows (n, ...), in rank order, for any n a rank. All ranks must call this."""
    counts = gather(len(rows))
    if world_size() == 1:
        return rows
    mine = torch.from_numpy(rows)
    padded = torch.zeros((max(counts), *mine.shape[1:]), dtype=mine.dtype)
    padded[: len(mine)] = mine
    found = [torch.empty_like(padded) for _ in counts]
    dist.all_gather(found, padded)
    return torch.cat([part[:n] for part, n in zip(found, counts, strict=True)]).numpy()


def broadcast(tensors: Iterable[torch.Tensor]) -> None:
    """Give CPU tensors rank 0's values on every rank, in place. All ranks must call this."""
    if world_size() > 1:
        for tensor in tensors:
            dist.broadcast(tensor.detach(), src=0)


def sum_over_ranks(values: Sequence[float]) -> list[float]:
    """Elementwise sums in float64. All ranks must call this."""
    return list(_reduced(torch.tensor(values, dtype=torch.float64)).tolist())


def sum_words(words: Sequence[int]) -> list[int]:
    """Elementwise sums of 64-bit words, modulo 2^64. All ranks must call this."""
    signed = [word - (1 << 64) if word >> 63 else word for word in words]
    return [
        total % (1 << 64) for total in _reduced(torch.tensor(signed, dtype=torch.int64)).tolist()
    ]


class Vote:
    """Whether any rank said yes: the answer comes with the next question, so that nobody waits."""

    def __init__(self) -> None:
        self._flag = torch.zeros(1, dtype=torch.int32)
        self._under_way: dist.Work | None = None

    def ask(self, mine: bool) -> bool:
        """The answer to the question before this one. All ranks must call this."""
        if world_size() == 1:
            return mine
        answer = self.last()
        self._flag.fill_(int(mine))
        self._under_way = dist.all_reduce(self._flag, dist.ReduceOp.MAX, async_op=True)
        return answer

    def last(self) -> bool:
        """The answer to the last question, waited for."""
        if self._under_way is not None:
            self._under_way.wait()
        self._under_way = None
        return bool(self._flag.item())


def barrier() -> None:
    """Wait for every rank. All ranks must call this."""
    _reduced(torch.zeros(1))


def _reduced(tensor: torch.Tensor) -> torch.Tensor:
    """The sum over ranks of a small CPU tensor, through gloo: it never waits for the GPU."""
    if world_size() > 1:
        dist.all_reduce(tensor)
    return tensor


def prepare_deepspeed() -> None:
    """Have DeepSpeed use what is here, and compile nothing that training never calls."""
    if device().type == "cpu":
        os.environ.setdefault("DS_ACCELERATOR", "cpu")
    os.environ.setdefault("DEEPSPEED_LOG_LEVEL", "warning")
    os.environ.setdefault(
        "LOCAL_RANK", str(placement().local_rank)
    )  # srun and plain python lack it
    warnings.filterwarnings("ignore", category=FutureWarning, module="torch.distributed")
    from deepspeed.ops import __compatible_ops__

    # init_distributed would build this operator for 100 s; a kill meanwhile leaves a lock on which
    # every later start hangs.
    __compatible_ops__["deepspeed_shm_comm"] = False


def variable(name: str) -> str | None:
    """What others set for this process in the environment, such as TORCH_EXTENSIONS_DIR."""
    return os.environ.get(name)
