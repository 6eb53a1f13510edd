"""Workers of a pool that have all imports, forked from a warm process: seconds less for each."""

import signal
from collections.abc import Sequence

from mixer_dist import cli
from mixer_dist.eval.pool.executors import Jobs
from tests.ranks import Ranks


class ForkedExecutor:
    """Runs each worker's real command line in a process of its own."""

    def __init__(self, ranks: Ranks) -> None:
        self._ranks = ranks
        self.processes: dict[str, tuple] = {}
        self.num_started = 0

    def start(self, name: str, command: Sequence[str]) -> None:
        arguments = list(command[command.index("mixer_dist") + 1 :])
        self.processes[name] = self._ranks.start(1, 0, 0, cli.main, arguments)
        self.num_started += 1

    def look(self) -> Jobs:
        over = [name for name, (process, _) in self.processes.items() if not process.is_alive()]
        return Jobs(frozenset(self.processes) - {*over}, {name: self._code(name) for name in over})

    def has_news(self) -> bool:
        return any(not process.is_alive() for process, _ in self.processes.values())

    def stop(self) -> dict[str, int | None]:
        self.signal_all(signal.SIGTERM)
        for process, _ in self.processes.values():
            process.join()
        return self.look().ended

    def signal_all(self, number: signal.Signals) -> None:
        for process, _ in self.processes.values():
            process.kill() if number == signal.SIGKILL else process.terminate()

    def _code(self, name: str) -> int:
        """What the command line gave; the process's own where a signal ended it."""
        process, pipe = self.processes.pop(name)
        try:
            return pipe.recv()[1]
        except EOFError:
            return process.exitcode
