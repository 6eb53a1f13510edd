"""What a machine gives to a rank: limits, memory, cores, room on disks, names."""

import os
import resource
import shutil
import socket
import tempfile
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import psutil
import torch
from torch.utils.cpp_extension import get_default_build_root

from mixer_dist import distributed
from mixer_dist.config import RunConfig
from mixer_dist.operations.doctor.finding import Finding, trouble, well
from mixer_dist.train.description import STATE_BYTES, num_parameters

OWN_FILES = 512  # beside connections to the other ranks
FILES_A_RANK = 4
SHARED_BYTES_A_RANK = 64 * 2**20
LOCKED_BYTES = 64 * 2**20
FREE_BYTES = 10**9
INFINIBAND = Path("/sys/class/infiniband")


def compile_locks(_: RunConfig | None) -> Iterator[Finding]:
    """A lock that a killed compilation left makes every later start wait for ever."""
    root = extensions_dir()
    locks = [lock.resolve() for lock in sorted(root.rglob("lock"))]
    held = _open_files() if locks else set()
    stale = [lock for lock in locks if str(lock) not in held]
    for lock in stale:
        yield trouble(
            "compile locks",
            f"{lock} is held by no process here, and every start that compiles waits for it",
            f"rm {lock}, unless another node is compiling there now",
        )
    if not stale:
        yield well("compile locks", f"none is left in {root}")


def extensions_dir() -> Path:
    """Where PyTorch compiles extensions, such as DeepSpeed's."""
    return Path(distributed.variable("TORCH_EXTENSIONS_DIR") or get_default_build_root())


def _open_files() -> set[str]:
    """Files that this user's processes have open."""
    found: set[str] = set()
    for process in psutil.process_iter():
        with suppress(psutil.Error):
            found |= {file.path for file in process.open_files()}
    return found


def open_files(_: RunConfig | None) -> Iterator[Finding]:
    """Connections to other ranks and to storage are files."""
    _soft, limit = resource.getrlimit(resource.RLIMIT_NOFILE)  # a trainer takes all that it may
    needed = OWN_FILES + FILES_A_RANK * distributed.world_size()
    text = f"{limit:,} may be open at once, a rank needs about {needed:,}"
    if limit >= needed:
        yield well("open files", text)
    else:
        mend = f"ulimit -Hn {max(needed, 65_536)}, by whoever may raise it: limits.conf, slurmd"
        yield trouble("open files", text, mend)


def locked_memory(_: RunConfig | None) -> Iterator[Finding]:
    """InfiniBand and EFA pin their buffers."""
    limit, _hard = resource.getrlimit(resource.RLIMIT_MEMLOCK)
    if not INFINIBAND.is_dir() or not any(INFINIBAND.iterdir()):
        yield well("locked memory", "nothing here needs it: no InfiniBand, no EFA")
    elif limit == resource.RLIM_INFINITY or limit >= LOCKED_BYTES:
        yield well("locked memory", "enough for RDMA")
    else:
        yield trouble(
            "locked memory",
            f"only {_megabytes(limit)} may be locked, RDMA needs at least "
            f"{_megabytes(LOCKED_BYTES)}",
            "ulimit -l unlimited; under Slurm, LimitMEMLOCK=infinity in slurmd's unit",
        )


def shared_memory(_: RunConfig | None) -> Iterator[Finding]:
    """NCCL's ranks on a node speak through it."""
    free = shutil.disk_usage("/dev/shm").free
    needed = SHARED_BYTES_A_RANK * distributed.placement().local_world_size
    text = f"/dev/shm has {_megabytes(free)} free, NCCL may need {_megabytes(needed)}"
    if free >= needed:
        yield well("shared memory", text)
    else:
        mend = "remove what is left in /dev/shm, or start the container with --shm-size=8g"
        yield trouble("shared memory", text, mend)


def free_disk(config: RunConfig | None) -> Iterator[Finding]:
    """Temporary files, compiled kernels, and the checkpoints of a run on a disk."""
    needed = {tempfile.gettempdir(): FREE_BYTES, str(extensions_dir()): FREE_BYTES}
    if config and "://" not in config.run_dir:
        needed[config.run_dir] = FREE_BYTES + 2 * STATE_BYTES * num_parameters(config)
    free = {place: shutil.disk_usage(existing_parent(place)).free for place in needed}
    short = [place for place in needed if free[place] < needed[place]]
    for place in short:
        yield trouble(
            "disk",
            f"{place} has {_megabytes(free[place])} free, {_megabytes(needed[place])} are needed",
            "make room there, or choose another place: TMPDIR, TORCH_EXTENSIONS_DIR, run_dir",
        )
    if not short:
        told = (f"{_megabytes(num_bytes)} in {place}" for place, num_bytes in free.items())
        yield well("disk", f"free: {', '.join(told)}")


def existing_parent(place: str) -> str:
    """The folder itself, or the nearest one above it that is there."""
    path = Path(place).absolute()
    return str(next(each for each in (path, *path.parents) if each.is_dir()))


def cores(_: RunConfig | None) -> Iterator[Finding]:
    """Data threads need more than one; compute threads of many ranks less than all."""
    num_ranks, there = distributed.placement().local_world_size, os.cpu_count() or 1
    bound, threads = len(os.sched_getaffinity(0)), torch.get_num_threads()
    if bound == 1 and there >= 2 * num_ranks:
        yield trouble(
            "cores",
            f"this rank is bound to 1 of {there} cores, which its data threads share",
            "before srun: export SRUN_CPUS_PER_TASK=$SLURM_CPUS_PER_TASK, as srun no longer takes "
            "it from sbatch; else look for taskset, a cpuset or --cpus",
        )
    elif num_ranks > 1 and threads * num_ranks > max(there, num_ranks):
        yield trouble(
            "cores",
            f"{num_ranks} ranks with {threads} threads each want {threads * num_ranks} of {there} "
            "cores",
            f"export OMP_NUM_THREADS={max(1, there // num_ranks)}",
        )
    else:
        yield well("cores", f"{bound} of {there} for this rank, {num_ranks} ranks a node")


def host_name(_: RunConfig | None) -> Iterator[Finding]:
    """The ranks find each other by name."""
    names = [socket.gethostname(), distributed.variable("MASTER_ADDR")]
    found = {name: _addresses(name) for name in names if name}
    place = distributed.placement()
    has_others = place.world_size > place.local_world_size
    unknown = [name for name, addresses in found.items() if not addresses]
    hidden = [name for name, addresses in found.items() if addresses and has_others
              and all(address.startswith(("127.", "::1")) for address in addresses)]  # fmt: skip
    for name in unknown:
        mend = f"add {name} to /etc/hosts or DNS, or set GLOO_SOCKET_IFNAME and MASTER_ADDR"
        yield trouble("host name", f"{name} does not resolve", mend)
    for name in hidden:
        told = f"{name} is {', '.join(found[name])} here, which no other node reaches"
        mend = f"give {name} its real address in /etc/hosts, or set GLOO_SOCKET_IFNAME"
        yield trouble("host name", told, mend)
    if not unknown and not hidden:
        told = "; ".join(f"{name} is {', '.join(each)}" for name, each in found.items())
        yield well("host name", told)


def _addresses(name: str) -> list[str]:
    """None where the name does not resolve."""
    try:
        return sorted({str(found[4][0]) for found in socket.getaddrinfo(name, None)})
    except OSError:
        return []


def _megabytes(num_bytes: float) -> str:
    return f"{num_bytes / 1e6:,.0f} MB"
