"""A development cluster for tests, and what they wait for."""

import os
import shutil
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = ROOT / "launchers" / "dev_cluster.sh"
PATH = f"{os.environ['PATH']}:/usr/sbin:/sbin"


def missing(*programs: str) -> list[str]:
    return [program for program in programs if shutil.which(program, path=PATH) is None]


ABSENT = missing("munged", "slurmctld", "slurmd", "srun")
needs_slurm = [
    pytest.mark.skipif(os.geteuid() != 0, reason="dev_cluster.sh needs root"),
    pytest.mark.skipif(bool(ABSENT), reason=f"no {', '.join(ABSENT)} here"),
]


@dataclass(frozen=True)
class Cluster:
    """A cluster that is up, or that could be, in a directory of its own."""

    directory: Path

    def call(self, *words: str) -> subprocess.CompletedProcess[str]:
        """Run dev_cluster.sh."""
        command = [str(SCRIPT), *words, f"--dir={self.directory}"]
        return subprocess.run(command, capture_output=True, text=True, timeout=60)

    def up(self, *options: str) -> None:
        result = self.call("up", f"--port={free_port()}", *options)
        assert result.returncode == 0, result.stderr

    def down(self) -> None:
        result = self.call("down", "--purge")
        assert (result.returncode, result.stdout, result.stderr) == (0, "", "")

    @property
    def environment(self) -> dict[str, str]:
        return {**os.environ, "SLURM_CONF": str(self.directory / "etc" / "slurm.conf")}

    def slurm(self, *words: str) -> str:
        """What one of Slurm's commands prints, errors included."""
        result = subprocess.run(
            words, env=self.environment, cwd=ROOT, timeout=60, text=True,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        )  # fmt: skip
        assert result.returncode == 0, result.stdout
        return result.stdout.strip()

    @contextmanager
    def started(self, *words: str) -> Iterator[subprocess.Popen[bytes]]:
        """A process of somebody who uses this cluster."""
        with subprocess.Popen(words, env=self.environment, stdout=subprocess.DEVNULL) as process:
            try:
                yield process
            finally:
                process.kill()

    def submit(self, command: str, *options: str) -> str:
        """The id of a job that is running."""
        output = f"--output={self.directory.parent}/%j.out"
        job = self.slurm("sbatch", "--parsable", output, *options, f"--wrap={command}")
        wait_for(lambda: self.state(job) == "RUNNING")
        return job

    def state(self, job: str) -> str:
        return self.slurm("squeue", "--noheader", "--format=%T", f"--jobs={job}")

    def node_of(self, job: str) -> str:
        return self.slurm("squeue", "--noheader", "--format=%N", f"--jobs={job}")


def free_port() -> int:
    """A port with 45 free ones above it, below those that the system hands out."""
    for port in range(11000 + os.getpid() % 150 * 50, 32000, 50):
        with ExitStack() as sockets:
            try:
                for offset in range(46):
                    sockets.enter_context(socket.socket()).bind(("127.0.0.1", port + offset))
            except OSError:
                continue
            return port
    raise AssertionError("no 46 free ports in a row")


def wait_for(condition: Callable[[], bool], timeout_s: float = 60) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, "timed out"
        time.sleep(0.1)
