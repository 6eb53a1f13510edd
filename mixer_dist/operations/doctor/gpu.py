"""The GPUs of a node, as nvidia-smi sees them: in use by others, or with errors of memory."""

import csv
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass

import torch

from mixer_dist import distributed
from mixer_dist.config import RunConfig
from mixer_dist.operations.doctor.finding import Finding, trouble, well

FIELDS = ("index", "name", "memory.used", "memory.total", "ecc.errors.uncorrected.volatile.total")
OTHERS_MIB = 2048  # in use before training; a rank's own context is well below that
TIMEOUT_S = 30.0


@dataclass(frozen=True)
class Gpu:
    """One GPU of this node."""

    index: str
    name: str
    used_mib: int
    total_mib: int
    num_ecc_errors: int
    """Not corrected, since the driver was loaded."""


def gpus(_: RunConfig | None) -> Iterator[Finding]:
    """Asked by one rank of each node."""
    place = distributed.placement()
    if place.local_rank or not shutil.which("nvidia-smi"):
        return
    try:
        found = parse_gpus(_ask_nvidia_smi())
    except (OSError, subprocess.SubprocessError, ValueError) as error:
        mend = "run nvidia-smi on the node: the driver may be missing or have lost a GPU"
        yield trouble("GPUs", f"nvidia-smi fails: {' '.join(str(error).split())}", mend)
        return
    yield from judge_gpus(found, torch.cuda.device_count(), place.local_world_size)


def judge_gpus(found: list[Gpu], num_visible: int, num_ranks: int) -> Iterator[Finding]:
    """What is wrong with a node's GPUs, of which PyTorch sees some."""
    if num_visible < min(num_ranks, len(found)) or (found and not num_visible):
        yield trouble(
            "GPUs",
            f"the node has {len(found)}, PyTorch sees {num_visible}, and {num_ranks} ranks run",
            "ask for --gpus-per-node, look at CUDA_VISIBLE_DEVICES, and install a CUDA torch",
        )
    for gpu in found:
        if gpu.used_mib > OTHERS_MIB:
            text = f"GPU {gpu.index} has {gpu.used_mib:,} of {gpu.total_mib:,} MiB in use already"
            mend = "nvidia-smi on the node names the process: end it, or exclude the node"
            yield trouble("GPU memory", text, mend)
        if gpu.num_ecc_errors:
            text = f"GPU {gpu.index} had {gpu.num_ecc_errors} memory errors that ECC cannot correct"
            yield trouble("GPU memory", text, "exclude the node and have the GPU reset")
    if found and num_visible:
        yield well("GPUs", f"{num_visible} of {len(found)} are visible: {found[0].name}")


def parse_gpus(text: str) -> list[Gpu]:
    """nvidia-smi's answer to FIELDS as CSV; ValueError."""
    rows = csv.reader(text.splitlines(), skipinitialspace=True)
    return [Gpu(index, name, *map(_number, numbers)) for index, name, *numbers in rows]


def _number(text: str) -> int:
    """0 where a GPU does not count, as one without ECC."""
    return 0 if text.startswith(("[N/A", "N/A", "[Not")) else int(text)


def _ask_nvidia_smi() -> str:
    command = ["nvidia-smi", f"--query-gpu={','.join(FIELDS)}", "--format=csv,noheader,nounits"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT_S, check=True)
    return done.stdout
