"""A rank's own end of the connection to rank 0, and what it does when all have to end."""

import contextlib
import json
import os
import secrets
import socket
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch.distributed as dist

from mixer_dist import distributed
from mixer_dist.errors import MixerError, PeerError, PreemptedError
from mixer_dist.liveness.hub import ANSWER_S, Hub, keep_alive
from mixer_dist.liveness.standing import Ending, Standing, hang, rank_names

CONNECT_S = 30.0
GRACE_S = 2.0  # for the main thread to end by itself, before it is ended
CLOSING_S = 10.0  # the same, where another rank has closed what it had open and may not be alone


@contextlib.contextmanager
def peers_watched() -> Iterator["Peers"]:
    """End, all ranks together, once one of them is gone or fails. All ranks must call this.

    MixerError or PeerError where a collective fails; a main thread that hangs in one is ended with
    its process, and nothing is half-written: a save under way is not committed.
    """
    peers = _joined()
    failure: BaseException | None = None
    try:
        yield peers
    except RuntimeError as error:
        failure = peers.loss_behind(error) if _is_of_a_collective(error) else error
        if failure is error:
            raise
        raise failure from error
    except BaseException as error:
        failure = error
        raise
    finally:
        peers.leave(failure)


def _is_of_a_collective(error: RuntimeError) -> bool:
    return isinstance(error, dist.DistError) or "gloo" in str(error) or "NCCL" in str(error)


def _joined() -> "Peers":
    hosts = distributed.hosts()
    if len(hosts) == 1:
        return Peers(hosts)
    token = distributed.share(secrets.token_hex(16))
    hub = Hub(token, hosts) if distributed.is_main() else None
    port = distributed.share(hub.port if hub else None)
    address = "localhost" if hub else distributed.main_address()
    try:
        connection = socket.create_connection((address, port), CONNECT_S)
    except OSError as error:
        raise MixerError(
            f"rank {distributed.rank()} cannot reach rank 0 at {address}:{port} ({error}): open "
            "the ports between the nodes, as gloo and NCCL need them too"
        ) from error
    connection.settimeout(None)
    keep_alive(connection)
    connection.sendall(f"{token} {distributed.rank()}\n".encode())
    return Peers(hosts, connection, hub)


def _exit_later(exit_code: int) -> None:
    """End the process where NCCL would keep it: once what has failed is said and recorded."""
    timer = threading.Timer(CLOSING_S, os._exit, [exit_code])
    timer.daemon = True
    timer.start()


def _nothing_to_tell() -> Standing:
    return Standing(0, "start")


def _do_nothing(_: Ending) -> None:
    pass


class Peers:
    """The other ranks, as this one knows of them; alone, it has no connection."""

    def __init__(
        self, hosts: Sequence[str], connection: socket.socket | None = None, hub: Hub | None = None
    ) -> None:
        self.hosts = hosts
        """By rank."""
        self.testify: Callable[[], Standing] = _nothing_to_tell
        """Called when a rank asks where all stand, beside the main thread."""
        self.before_end: Callable[[Ending], None] = _do_nothing
        """Called beside the main thread, which has GRACE_S left."""
        self._connection = connection
        self._hub = hub
        self._ending: Ending | None = None
        self._is_ending = threading.Event()
        self._has_left = threading.Event()
        if connection:
            threading.Thread(target=self._listen, name="liveness", daemon=True).start()

    def report_hang(self, seconds: float) -> None:
        """Have all ranks ended, after it was said who waits for whom; not for the main thread."""
        if not self._connection:
            self._end(hang(seconds, {0: self.testify()}, self.hosts))
        self._send({"type": "hang", "seconds": seconds})
        if not self._is_ending.wait(3 * ANSWER_S):
            self.testify()
            where = f"{rank_names([0], self.hosts)} does not answer: frozen, or stuck"
            self._end(Ending(f"no step for {seconds:.0f} s: {where}", ranks=(0,)))

    def loss_behind(self, error: RuntimeError) -> MixerError:
        """What the failure of a collective is to be called."""
        if self._is_ending.wait(GRACE_S) and self._ending:
            return PeerError(self._ending.reason, self._ending.exit_code)
        rank, first_line = distributed.rank(), str(error).splitlines()[0]
        return MixerError(f"rank {rank} lost another rank, whose message says why: {first_line}")

    def leave(self, failure: BaseException | None) -> None:
        """Say goodbye; where this rank alone has failed, the others have to end too."""
        is_agreed = failure is None or isinstance(failure, PeerError | PreemptedError)
        exit_code = getattr(failure, "exit_code", 1)
        self._has_left.set()
        if self._connection and not is_agreed and distributed.device().type == "cuda":
            _exit_later(exit_code)
        self._send({"type": "bye"} if is_agreed else {"type": "failed", "exit_code": exit_code})
        if self._hub:
            self._hub.close()
        if self._connection:
            with contextlib.suppress(OSError):  # the other end was quicker
                self._connection.shutdown(socket.SHUT_RDWR)  # close() would wait for the listener

    def _send(self, message: dict[str, Any]) -> None:
        if not self._connection:
            return
        with contextlib.suppress(OSError):  # rank 0 is gone, as the listening thread learns too
            self._connection.sendall(json.dumps(message).encode() + b"\n")

    def _listen(self) -> None:
        """Until rank 0 says how it ends, or is gone without a word."""
        assert self._connection is not None
        ending = Ending(f"{rank_names([0], self.hosts)} is gone", ranks=(0,))
        with contextlib.suppress(OSError):  # reset, or unreachable
            for line in self._connection.makefile("rb"):
                message = json.loads(line)
                if message["type"] == "closing":
                    return
                if message["type"] == "ask":
                    self._send({"type": "standing", **self.testify()._asdict()})
                if message.pop("type") == "end":
                    ending = Ending(**message)
                    break
        self._end(ending)

    def _end(self, ending: Ending) -> None:
        """Let the main thread end within the grace time, else end the process."""
        if self._has_left.is_set() or self._is_ending.is_set():
            return
        self._ending = ending
        self._is_ending.set()
        try:
            if not ending.is_said and (distributed.is_main() or 0 in ending.ranks):
                print(f"mixer-dist: {ending.reason}", file=sys.stderr, flush=True)
            self.before_end(ending)
        finally:  # whatever cannot be said or written any more
            if not self._has_left.wait(CLOSING_S if ending.is_said else GRACE_S):
                os._exit(ending.exit_code)  # the main thread may never come back to Python
