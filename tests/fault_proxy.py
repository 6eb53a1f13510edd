"""A proxy between an HTTP client and a server that does to replies what networks and stores do.

It keeps the Host header, so that a client's signature for its address holds with the server too,
and serves many requests a connection. It holds a reply's body in memory, whole.
"""

import asyncio
import math
import socket
import struct
from collections.abc import AsyncIterator, Coroutine, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from threading import Thread
from typing import Any, Literal

import aiohttp
from aiohttp import web
from multidict import CIMultiDict
from yarl import URL

HOST = "127.0.0.1"
FLUSH_S = 0.005
STALL_S = 3600.0
HOP_BY_HOP = ("Connection", "Keep-Alive", "Transfer-Encoding", "Expect")
CODES = {403: "AccessDenied", 404: "NoSuchKey", 500: "InternalError", 503: "SlowDown"}

Kind = Literal[
    "refused",  # the server is not asked: the reply is S3's error of this status
    "reset",  # the connection breaks after after_bytes of the body
    "truncated",  # it is closed there in good order: less than Content-Length has come
    "short",  # the body ends there, and Content-Length agrees
    "stall",  # nothing more comes, on an open connection
    "slow",  # what follows comes at bytes_per_s
    "flipped",  # the byte there has one bit changed
    "replaced",  # another object of the same size: all bytes and the ETag are others
]


@dataclass(frozen=True)
class Fault:
    """What happens to the next `count` requests of these methods with `match` in their path."""

    kind: Kind
    match: str = ""
    count: float = math.inf
    after_bytes: int = 0
    status: int = 503
    """What a refused request is answered: one of CODES."""
    bytes_per_s: int = 1024
    methods: tuple[str, ...] = ("GET",)
    access_key: str = ""
    """Only requests that are signed with this one."""


@dataclass
class Exchange:
    """A request that came, and what it got."""

    method: str
    path: str
    range: str | None
    fault: Fault | None
    num_bytes: int = 0
    """Of the reply's body, as many as left for the client."""


@dataclass
class FaultProxy:
    """Faults to come and requests seen; a test reads and changes both while clients go on."""

    server_url: str
    url: str = ""
    exchanges: list[Exchange] = field(default_factory=list)
    faults: list[Fault] = field(default_factory=list)

    def fail(self, fault: Fault) -> None:
        """From now on; of several faults that fit a request, the first given is its."""
        self.faults.append(fault)

    def heal(self) -> None:
        """Let everything pass from now on."""
        self.faults.clear()

    def seen(self, match: str = "", method: str = "GET") -> list[Exchange]:
        """The requests of a method with `match` in their path, oldest first."""
        return [one for one in self.exchanges if one.method == method and match in one.path]

    async def answer(self, request: web.Request) -> web.StreamResponse:
        """Ask the server, and reply with what the request's fault makes of it."""
        fault = self._next_fault(request)
        exchange = Exchange(request.method, request.path, request.headers.get("Range"), fault)
        self.exchanges.append(exchange)
        if fault and fault.kind == "refused":
            return _refusal(fault.status)
        status, headers, body = await self._ask_server(request)
        if fault:
            headers, body = _changed(fault, headers, body)
        reply = web.StreamResponse(status=status, headers=headers)
        if fault and fault.kind == "stall" and request.method == "HEAD":  # all of it is headers
            await asyncio.sleep(STALL_S)
        await reply.prepare(request)
        async for piece in _pieces(fault, body):
            await _flush(request, reply, piece)
            exchange.num_bytes += len(piece)
        if fault and fault.kind in ("reset", "truncated"):
            _break(request, with_reset=fault.kind == "reset")
        return reply

    def _next_fault(self, request: web.Request) -> Fault | None:
        for fault in self.faults:
            fits = request.method in fault.methods and fault.match in request.path
            fits = fits and f"{fault.access_key}/" in _signed_by(request)
            if fits and sum(one.fault is fault for one in self.exchanges) < fault.count:
                return fault
        return None

    async def _ask_server(self, request: web.Request) -> tuple[int, CIMultiDict[str], bytes]:
        """Status, headers and whole body of the server's own reply."""
        async with (
            aiohttp.ClientSession(
                auto_decompress=False, skip_auto_headers=("Accept-Encoding", "Content-Type")
            ) as session,
            session.request(
                request.method,
                URL(self.server_url + request.raw_path, encoded=True),  # as it was signed
                headers=_end_to_end(request.headers),
                data=await request.read() or None,
                allow_redirects=False,
            ) as reply,
        ):
            return reply.status, _end_to_end(reply.headers), await reply.read()


@contextmanager
def serve_faults(server_url: str) -> Iterator[FaultProxy]:
    """A proxy for a server, in a thread of its own; clients find it at its `url`."""
    proxy, loop = FaultProxy(server_url), asyncio.new_event_loop()

    def run(coroutine: Coroutine[Any, Any, Any]) -> None:
        asyncio.run_coroutine_threadsafe(coroutine, loop).result()

    runner = _runner(proxy)
    thread = Thread(target=loop.run_forever)
    thread.start()
    try:
        run(runner.setup())
        run(web.TCPSite(runner, HOST, 0).start())
        proxy.url = "http://{}:{}".format(*runner.addresses[0])
        yield proxy
    finally:
        run(runner.cleanup())
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()


def _runner(proxy: FaultProxy) -> web.AppRunner:
    app = web.Application(client_max_size=0)  # no limit
    app.router.add_route("*", "/{path:.*}", proxy.answer)
    # A stalled reply ends when its client goes or the proxy does.
    return web.AppRunner(app, handler_cancellation=True, shutdown_timeout=0, access_log=None)


def _end_to_end(headers: Any) -> CIMultiDict[str]:
    """Headers without those that are about one connection."""
    kept = CIMultiDict(headers)
    for name in HOP_BY_HOP:
        kept.popall(name, None)
    return kept


def _signed_by(request: web.Request) -> str:
    """Where a signature says its access key, with a slash behind it."""
    presigned = [request.query.get(name, "") for name in ("X-Amz-Credential", "AWSAccessKeyId")]
    return "/".join([request.headers.get("Authorization", ""), *presigned, ""])


def _refusal(status: int) -> web.Response:
    text = f"<Error><Code>{CODES[status]}</Code><Message>injected</Message></Error>"
    return web.Response(status=status, text=text, content_type="application/xml")


def _changed(
    fault: Fault, headers: CIMultiDict[str], body: bytes
) -> tuple[CIMultiDict[str], bytes]:
    """What the client is told instead, by the faults that are about content."""
    before, after = body[: fault.after_bytes], body[fault.after_bytes :]
    if fault.kind == "short":
        headers["Content-Length"] = str(len(before))
        return headers, before
    if fault.kind == "flipped":
        return headers, before + bytes(byte ^ 1 for byte in after[:1]) + after[1:]
    if fault.kind == "replaced":
        headers["ETag"] = '"00000000000000000000000000000000"'
        return headers, bytes(byte ^ 255 for byte in body)
    return headers, body


async def _pieces(fault: Fault | None, body: bytes) -> AsyncIterator[bytes]:
    """A body, as far and as fast as the faults that are about time let it through."""
    if fault is None or fault.kind not in ("reset", "truncated", "stall", "slow"):
        yield body
        return
    yield body[: fault.after_bytes]
    if fault.kind == "stall":
        await asyncio.sleep(STALL_S)
    elif fault.kind == "slow":
        size = max(1, fault.bytes_per_s // 10)
        for start in range(fault.after_bytes, len(body), size):
            await asyncio.sleep(size / fault.bytes_per_s)
            yield body[start : start + size]


async def _flush(request: web.Request, reply: web.StreamResponse, piece: bytes) -> None:
    """Hand bytes to the kernel: what waits in our own buffer would be lost with a connection."""
    await reply.write(piece)
    while request.transport is not None and request.transport.get_write_buffer_size():
        await asyncio.sleep(FLUSH_S)


def _break(request: web.Request, *, with_reset: bool) -> None:
    transport = request.transport
    if transport is not None and with_reset:
        at_once = struct.pack("ii", 1, 0)  # linger for 0 s, which the kernel does by RST
        connection = transport.get_extra_info("socket")
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, at_once)
    if transport is not None:
        transport.close()
