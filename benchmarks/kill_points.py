"""Training that kills itself at a named point of a save: what runs on each rank of a trial.

The points are reached by the real code of a save; only what tells that it is there is put in. A
rank is forked for one trial, so that nothing has to be put back.
"""

import faulthandler
import logging
import os
import signal
import threading
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import s3fs
from aiohttp.http_writer import StreamWriter

from mixer_dist.checkpoint.layout import MANIFEST_NAME, TrainingState
from mixer_dist.checkpoint.save import Saved, Saver
from mixer_dist.checkpoint.snapshot import Snapshot
from mixer_dist.config import RunConfig
from mixer_dist.data.batch import Batch
from mixer_dist.errors import CheckpointError, MixerError
from mixer_dist.storage import Storage
from mixer_dist.train import pretrain
from mixer_dist.train.checkpoint_schedule import CheckpointSchedule

RANDOM = "random moment"
COMMITTED = "manifest written"
ON_ANY_RANK = (
    "snapshot begun", "snapshot copied", "piece file begun", "piece file half written",
    "piece file written", RANDOM,
)  # fmt: skip
ON_MAIN = (
    "metrics half written", "manifest begun", "manifest half written", COMMITTED,
    "hint half written",
)  # fmt: skip
POINTS = (*ON_ANY_RANK, *ON_MAIN)
PART_BYTES = 5 * 2**20  # of an upload in parts: the least that S3 takes
FINISHED = "finished"
STUCK_S = 90.0


class Kill(NamedTuple):
    """Who ends when."""

    point: str
    rank: int
    save: int
    """At which save of the trial, counted from 1."""
    delay_s: float
    """After the start, for a random moment."""
    is_of_all: bool
    """Whether the other ranks are killed too, or find out by themselves."""


def pretrain_until_killed(config: RunConfig, kill: Kill | None, journal: str) -> str:
    """Train to the end, or until the kill; else why it stopped. All ranks must call this."""
    logging.disable()
    quiet(f"{journal}.log")
    s3fs.S3FileSystem.default_block_size = PART_BYTES
    is_victim = kill is not None and os.environ["RANK"] == str(kill.rank)
    killer = Killer(kill if is_victim else None, Path(journal))
    watch_training(killer)
    watch_saves(killer)
    watch_writes(killer)
    watch_requests(killer)
    try:
        pretrain.pretrain(config)
    except MixerError as error:
        return f"stopped: {error}"
    return FINISHED


class Killer:
    """Knows what the process has reached, writes it down, and ends it where it has to end."""

    def __init__(self, kill: Kill | None, journal: Path) -> None:
        self._kill = kill
        self._journal = journal
        self._num_saves = 0
        self.is_sending_half = False
        self.has_lost_a_rank = False

    def began(self) -> None:
        """The run is about to start."""
        if self._kill and self._kill.point == RANDOM:
            timer = threading.Timer(self._kill.delay_s, die)
            timer.daemon = True
            timer.start()

    def began_save(self) -> None:
        """Another save is under way."""
        self._num_saves += 1
        self.reached("snapshot begun")

    def is_here(self, point: str) -> bool:
        """Whether the process has to end at this point."""
        kill = self._kill
        return kill is not None and (point, self._num_saves) == (kill.point, kill.save)

    def reached(self, point: str) -> None:
        """End the process if this is the point."""
        if self.is_here(point):
            die()

    def note(self, event: str, step: int) -> None:
        """Write down what outlives the process."""
        with self._journal.open("a") as file:
            file.write(f"{event} {step}\n")


def die() -> None:
    """SIGKILL to this process."""
    os.kill(os.getpid(), signal.SIGKILL)


def quiet(path: str) -> None:
    """What libraries print goes to a file, and where each thread stands if it takes too long."""
    file = os.open(path, os.O_CREAT | os.O_WRONLY | os.O_APPEND)
    os.dup2(file, 1)
    os.dup2(file, 2)
    faulthandler.dump_traceback_later(STUCK_S)


def watch_training(killer: Killer) -> None:
    """Note the steps that are done."""
    start_run, step_done = pretrain.start_run, CheckpointSchedule.step_done

    def started(*args: Any) -> Any:
        killer.began()
        return start_run(*args)

    def done(self: CheckpointSchedule, batch: Batch) -> None:
        killer.note("trained", batch.step + 1)
        step_done(self, batch)

    pretrain.start_run = started
    CheckpointSchedule.step_done = done  # type: ignore[method-assign]


def watch_saves(killer: Killer) -> None:
    """Note the saves that are started."""
    start, wait, begin, copied = Saver.start, Saver.wait, Snapshot.begin, Snapshot.copied

    def started(self: Saver, pieces: Any, state: TrainingState) -> None:
        if not killer.has_lost_a_rank:  # else it has nobody to save with
            killer.note("started", state.step)
        start(self, pieces, state)

    def waited(self: Saver) -> Saved:
        try:
            return wait(self)
        except CheckpointError:
            killer.has_lost_a_rank = True
            raise

    def begun(self: Snapshot, pieces: Any) -> None:
        begin(self, pieces)
        killer.began_save()

    def finished(self: Snapshot) -> Any:
        pieces = copied(self)
        killer.reached("snapshot copied")
        return pieces

    Saver.start, Saver.wait = started, waited  # type: ignore[method-assign]
    Snapshot.begin, Snapshot.copied = begun, finished  # type: ignore[method-assign]


def watch_writes(killer: Killer) -> None:
    """Tell how far each file of a save is."""
    write_parts = Storage.write_parts

    def watched(self: Storage, url: str, parts: Callable[[], Iterable[Any]]) -> None:
        kind = kind_of(url)
        half = f"{kind} half written"
        killer.reached("manifest begun" if kind == "manifest" else "")
        killer.is_sending_half = url.startswith("s3://") and killer.is_here(half)

        def halves() -> Iterator[Any]:
            killer.reached("piece file begun" if kind == "piece file" else "")
            first, second = cut_in_half(parts())
            yield from first
            if not killer.is_sending_half:
                killer.reached(half)
            yield from second

        write_parts(self, url, halves)
        if kind == "manifest":
            killer.note("committed", int(url.split("/")[-2].removeprefix("step-")))
        killer.reached(f"{kind} written")

    Storage.write_parts = watched  # type: ignore[method-assign]


def watch_requests(killer: Killer) -> None:
    """End in the middle of a request's body, where a file goes to a bucket."""
    write, write_lines = StreamWriter._write, StreamWriter._writelines

    def send(self: StreamWriter, chunk: Any) -> None:
        if killer.is_sending_half and bytes(chunk[-4:]) != b"\r\n\r\n":  # no mere header
            write(self, bytes(chunk[: len(chunk) // 2]))
            die()
        write(self, chunk)

    def send_lines(self: StreamWriter, chunks: Iterable[Any]) -> None:
        if killer.is_sending_half:
            send(self, b"".join(chunks))
        else:
            write_lines(self, chunks)

    StreamWriter._write, StreamWriter._writelines = send, send_lines  # type: ignore[method-assign]


def kind_of(url: str) -> str:
    """What a file of a run is."""
    if url.endswith(".safetensors"):
        return "piece file"
    if url.endswith(f"/{MANIFEST_NAME}"):
        return "manifest"
    if url.endswith("/committed.json"):
        return "hint"
    return "metrics" if "/metrics/" in url else "other"


def cut_in_half(parts: Iterable[Any]) -> tuple[list[memoryview], list[memoryview]]:
    """The buffers of a file, before and after its middle."""
    buffers = [memoryview(part).cast("B") for part in parts]
    left = sum(map(len, buffers)) // 2
    first, second = [], []
    for buffer in buffers:
        first.append(buffer[:left])
        second.append(buffer[left:])
        left = max(0, left - len(buffer))
    return first, second
