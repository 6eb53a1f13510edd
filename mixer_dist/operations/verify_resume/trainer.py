"""The ranks of a trainer as processes of this machine: started, watched, killed."""

import re
import signal
import subprocess
import sys
from collections import deque
from collections.abc import Iterator, Sequence
from pathlib import Path

from mixer_dist import distributed
from mixer_dist.errors import MixerError
from mixer_dist.operations.verify_resume.plan import Start

STEP_LINE = re.compile(r"step (\d+)/\d+ ")
LAST_LINES = 5  # of the log, told where a trainer fails


class Trainer:
    """`mixer-dist pretrain` on the ranks of a start; use it in a `with`."""

    def __init__(self, start: Start, arguments: Sequence[str], log: Path) -> None:
        """Every line that a rank prints goes to the end of `log`."""
        self._log = log.open("a")
        self._last_lines: deque[str] = deque(maxlen=LAST_LINES)
        self.last_step = 0
        """Of those that rank 0 says are done; 0 before it says anything."""
        command = [sys.executable, "-u", "-m", "mixer_dist", "pretrain", *arguments]
        port = distributed.free_port()
        self._ranks = [
            subprocess.Popen(
                command,
                env=distributed.launch_variables(rank, start.num_ranks, port),
                stdout=self._log if rank else subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
            )
            for rank in range(start.num_ranks)
        ]

    def __enter__(self) -> "Trainer":
        return self

    def __exit__(self, *_: object) -> None:
        """Nothing of it is left, whatever happened."""
        self.kill()
        self._log.close()

    def steps(self) -> Iterator[int]:
        """The steps that rank 0 says are done, until it ends."""
        assert self._ranks[0].stdout is not None
        for line in self._ranks[0].stdout:
            self._log.write(line)
            self._last_lines.append(line.rstrip())
            if match := STEP_LINE.search(line):
                self.last_step = int(match[1])
                yield self.last_step

    def wait(self) -> list[int]:
        """The exit codes of all ranks, once they have ended."""
        for _ in self.steps():
            pass
        return [process.wait() for process in self._ranks]

    def check(self, expected: Sequence[int]) -> None:
        """Wait for the end; MixerError where an exit code is none of these."""
        codes = self.wait()
        if not set(codes) <= set(expected):
            said = "\n  ".join(self._last_lines)
            raise MixerError(
                f"a trainer ended with {max(codes)}; the end of {self._log.name}:\n  {said}"
            )

    def kill(self) -> None:
        """SIGKILL to all ranks, as a node that loses power does."""
        for process in self._ranks:
            process.kill()
        self.wait()

    def kill_rank(self, rank: int) -> None:
        """SIGKILL to one rank alone, as the kernel does where memory ends."""
        self._ranks[rank].kill()

    def preempt(self) -> None:
        """SIGUSR2 to all ranks, as launchers pass it on when a job has to make way."""
        for process in self._ranks:
            process.send_signal(signal.SIGUSR2)
