"""Finds a run that hangs: which rank holds up the others, and where its threads stand."""

import faulthandler
import logging
import sys
import tempfile
import threading
from collections.abc import Callable

import torch

from mixer_dist import distributed
from mixer_dist.config import RunConfig
from mixer_dist.errors import MixerError
from mixer_dist.liveness import Ending, Peers, Standing
from mixer_dist.metrics import EventLog
from mixer_dist.run_dir import RunDir
from mixer_dist.storage import Storage

POLL_S = 0.5
EVIDENCE_S = 10.0  # for a store to take a rank's stacks, before the process ends

logger = logging.getLogger(__name__)


class Watchdog:
    """Ends the run once this rank has stood still for too long; use it in a `with`."""

    def __init__(self, peers: Peers, config: RunConfig) -> None:
        self._peers = peers
        self._start_s = config.engine.start_timeout_s
        self._hang_s = config.engine.hang_timeout_s
        saving = config.checkpoint
        self._save_s = max(self._hang_s, saving.timeout_s, saving.grace_s)
        self._standing = Standing(0, "start")
        self._is_starting = True
        self._stacks = ""
        self._evidence: threading.Thread | None = None
        self._keep: Callable[[str, bytes], None] = _keep_nowhere
        self._events: EventLog | None = None
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="watchdog", daemon=True)

    def __enter__(self) -> "Watchdog":
        self._peers.testify = self._testify
        self._peers.before_end = self._show_stacks
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stopped.set()

    def enter(self, phase: str, step: int | None = None) -> None:
        """Note where the main thread is from now on, in the same step if none is given."""
        if phase == "data" and self._standing.phase != "start":
            self._is_starting = False  # the first step is done
        self._standing = Standing(self._standing.step if step is None else step, phase)

    def keep_in(self, storage: Storage, run_dir: RunDir, attempt: int) -> None:
        """Have stacks written into the run's directory."""
        folder, name = run_dir.hangs_folder(attempt), f"rank-{distributed.rank():05d}"
        self._keep = lambda suffix, data: storage.write(f"{folder}/{name}{suffix}", data)

    def record_in(self, events: EventLog) -> None:
        """Have the end recorded as an event."""
        self._events = events

    def _limit_s(self) -> float:
        if self._is_starting:
            return self._start_s
        return self._save_s if self._standing.phase in ("save", "end") else self._hang_s

    def _watch(self) -> None:
        seen, still_s = self._standing, 0.0
        while not self._stopped.wait(POLL_S):
            if self._standing is not seen:
                seen, still_s = self._standing, 0.0
            still_s += POLL_S  # no clock: a process that was frozen has not stood still by itself
            if still_s > self._limit_s():
                self._peers.report_hang(still_s)
                return

    def _testify(self) -> Standing:
        """Where this rank stands; meanwhile its stacks are kept, however slow the store is."""
        self._stacks = _stacks()
        self._evidence = threading.Thread(target=self._keep_evidence, name="hang", daemon=True)
        self._evidence.start()
        return self._standing

    def _keep_evidence(self) -> None:
        try:
            self._keep(".txt", self._stacks.encode())
            if recorded := _flight_recorder():
                self._keep(".nccl.json", recorded)
        except MixerError as error:
            logger.warning("stacks not kept: %s", error)

    def _show_stacks(self, ending: Ending) -> None:
        """On stderr, of the ranks that hold up the others; of rank 0 where nobody knows them."""
        if self._stacks and distributed.rank() in (ending.ranks or [0]):
            print(self._stacks, file=sys.stderr, flush=True)
        if self._events and distributed.is_main():
            hosts = [self._peers.hosts[rank] for rank in ending.ranks]
            self._events.write("abort", reason=ending.reason, ranks=ending.ranks, hosts=hosts)
        if self._evidence:
            self._evidence.join(EVIDENCE_S)


def _keep_nowhere(_suffix: str, _data: bytes) -> None:
    """Before the run's directory is known."""


def _stacks() -> str:
    """The stack of every thread of this process."""
    with tempfile.TemporaryFile() as file:  # faulthandler wants one
        faulthandler.dump_traceback(file, all_threads=True)
        file.seek(0)
        return file.read().decode(errors="replace")


def _flight_recorder() -> bytes | None:
    """NCCL's record of the last collectives, where there is NCCL."""
    dump = getattr(torch._C, "_distributed_c10d", None)
    dump = getattr(dump, "_dump_nccl_trace_json", None)
    if dump is None or distributed.device().type != "cuda":
        return None
    recorded = dump(includeCollectives=True, onlyActive=False)
    return recorded if isinstance(recorded, bytes) else str(recorded).encode()
