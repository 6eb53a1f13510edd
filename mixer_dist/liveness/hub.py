"""What rank 0 runs for all: it hears every rank, and tells all others when one is gone or hangs."""

import asyncio
import contextlib
import hmac
import json
import socket
import threading
from collections.abc import Sequence
from typing import Any

from mixer_dist.liveness.standing import Ending, Standing, hang, rank_names

ANSWER_S = 5.0  # for a rank to say where it stands
LEAVE_S = 5.0  # for rank 0 to hear its own goodbye
IDLE_S, INTERVAL_S, NUM_PROBES = 10, 5, 3  # a cut cable shows after their product and sum


def keep_alive(connection: socket.socket) -> None:
    """Have the kernel notice that the other machine is no longer there."""
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for name, value in (
        ("TCP_KEEPIDLE", IDLE_S), ("TCP_KEEPINTVL", INTERVAL_S), ("TCP_KEEPCNT", NUM_PROBES),
        ("TCP_USER_TIMEOUT", 1000 * (IDLE_S + INTERVAL_S * NUM_PROBES)),
    ):  # fmt: skip
        if hasattr(socket, name):  # not all are everywhere
            connection.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)


class Hub:
    """A server in a thread of its own; a connection that ends without a goodbye is a dead rank."""

    def __init__(self, token: str, hosts: Sequence[str]) -> None:
        """`token` is what ranks of this run know, and nobody else."""
        self._token = token
        self._hosts = hosts
        self._writers: dict[int, asyncio.StreamWriter] = {}
        self._left: set[int] = set()
        self._main_left = asyncio.Event()
        self._ending: Ending | None = None
        self._hang_s: float | None = None
        """How long nothing has moved, once a rank has said so."""
        self._standings: dict[int, Standing] = {}
        """Of the ranks that have answered since."""
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="hub", daemon=True)
        self._thread.start()
        listening = asyncio.start_server(self._serve, sock=_free_port())
        self._server = asyncio.run_coroutine_threadsafe(listening, self._loop).result()

    @property
    def port(self) -> int:
        """Where it listens, on every interface."""
        return int(self._server.sockets[0].getsockname()[1])

    def close(self) -> None:
        """Tell all that nobody is watched any longer; after rank 0's own goodbye."""
        asyncio.run_coroutine_threadsafe(self._close(), self._loop).result()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    async def _close(self) -> None:
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._main_left.wait(), LEAVE_S)
        self._tell({"type": "closing"})
        self._server.close()
        for writer in self._writers.values():
            writer.close()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        rank = await self._greeted(reader)
        if rank is None:  # a stranger
            writer.close()
            return
        keep_alive(writer.get_extra_info("socket"))
        self._writers[rank] = writer
        with contextlib.suppress(OSError):  # reset, or unreachable
            async for line in reader:
                self._hear(rank, json.loads(line))
        del self._writers[rank]
        writer.close()
        if rank not in self._left:
            self._end(Ending(f"{rank_names([rank], self._hosts)} is gone", ranks=(rank,)))

    async def _greeted(self, reader: asyncio.StreamReader) -> int | None:
        """The rank that speaks, None where it does not know the token."""
        try:
            token, _, rank = (await reader.readline()).strip().partition(b" ")
            return int(rank) if hmac.compare_digest(token, self._token.encode()) else None
        except (OSError, ValueError):
            return None

    def _hear(self, rank: int, message: dict[str, Any]) -> None:
        match message:
            case {"type": "bye"}:
                self._leaves(rank)
            case {"type": "failed", "exit_code": exit_code}:
                self._leaves(rank)
                name = rank_names([rank], self._hosts)
                self._end(Ending(f"{name} failed", exit_code, (rank,), is_said=True))
            case {"type": "hang", "seconds": seconds} if self._hang_s is None:
                self._hang_s = seconds
                self._tell({"type": "ask"})
                self._loop.call_later(ANSWER_S, self._judge)
            case {"type": "standing", "step": step, "phase": phase}:
                self._standings[rank] = Standing(step, phase)
                if self._standings.keys() >= self._writers.keys():
                    self._judge()

    def _leaves(self, rank: int) -> None:
        self._left.add(rank)
        if rank == 0:
            self._main_left.set()

    def _judge(self) -> None:
        self._end(hang(self._hang_s or 0.0, self._standings, self._hosts))

    def _end(self, ending: Ending) -> None:
        """The first reason counts: the others follow from it."""
        if self._ending is None:
            self._ending = ending
            self._tell({"type": "end", **ending._asdict()})

    def _tell(self, message: dict[str, Any]) -> None:
        for rank, writer in self._writers.items():
            if rank not in self._left:
                writer.write(json.dumps(message).encode() + b"\n")


def _free_port() -> socket.socket:
    """Listening on all interfaces: which of them the other ranks come by is not known."""
    if socket.has_dualstack_ipv6():
        return socket.create_server(("", 0), family=socket.AF_INET6, dualstack_ipv6=True)
    return socket.create_server(("", 0))
