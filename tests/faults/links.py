"""The connections between clients and servers, each through a proxy of its own that can break them."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import socket
import struct
import threading
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, TypeVar

from tests.support.servers import PATIENCE_S

#: From the client to the server, and back.
Direction = Literal["up", "down"]
_PIECE = 1 << 16
_T = TypeVar("_T")


@dataclass
class Cut:
    """
    Resets a connection in the middle.

    Args:
        direction: Which bytes are counted; the rest of them is never sent.
        after: How many pass.
        when: What the client must have sent in one piece for the counting to begin, such as ``b"PUT /"``.
        times: How many connections.
    """

    direction: Direction
    after: int = 0
    when: bytes = b""
    times: int = 1


@dataclass
class Link:
    """
    A proxy in front of a server.

    Args:
        address: ``host:port`` or the path of a Unix socket, where it listens.
        target: The same of the server; may be changed at any time, for new connections.
    """

    address: str
    target: str
    #: Cuts to come.
    cuts: list[Cut] = field(default_factory=list)
    #: Seconds that each piece takes.
    delay_s: float = 0.0
    #: Bytes per second of each connection, 0 for no limit.
    rate: int = 0
    #: An answer that clients get instead of the server's: to all that they ask, or to what has this in it.
    answer: bytes = b""
    answer_to: bytes = b""
    #: Whether connections are reset as soon as they are made.
    refusing: bool = False
    #: What clients sent, in pieces, is searched for this; `seen` is then set.
    watched: bytes = b""
    seen: threading.Event = field(default_factory=threading.Event)
    _wires: set[_Wire] = field(default_factory=set)
    _flowing: asyncio.Event | None = None
    _loop: asyncio.AbstractEventLoop | None = None

    @property
    def connections(self) -> int:
        """How many connections there are."""
        return len(self._wires)

    def reset(self) -> None:
        """Reset all connections that there are."""

        def abort() -> None:
            for wire in list(self._wires):
                wire.abort()

        self._call(abort)

    def hold(self) -> None:
        """Let nothing through, as a network that is cut: what is sent arrives when `heal` is called."""
        self._call(self._gate.clear)

    def heal(self) -> None:
        """Be an ordinary network again."""
        self.cuts.clear()
        self.delay_s, self.rate, self.refusing = 0.0, 0, False
        self.answer, self.answer_to, self.watched = b"", b"", b""
        self.seen.clear()
        self._call(self._gate.set)

    def watch(self, piece: bytes) -> threading.Event:
        """Return an event that is set when a client has sent this in one piece."""
        self.seen.clear()
        self.watched = piece
        return self.seen

    @contextlib.contextmanager
    def held(self) -> Iterator[None]:
        """Let nothing through during the block; then all of it."""
        self.hold()
        try:
            yield
        finally:
            self.heal()

    @contextlib.contextmanager
    def down(self) -> Iterator[None]:
        """Reset all connections, and every new one during the block."""
        self.refusing = True
        self.reset()
        try:
            yield
        finally:
            self.heal()

    @property
    def _gate(self) -> asyncio.Event:
        assert self._flowing is not None
        return self._flowing

    def _call(self, action: Callable[[], object]) -> None:
        assert self._loop is not None
        done = threading.Event()
        self._loop.call_soon_threadsafe(action)
        self._loop.call_soon_threadsafe(done.set)
        assert done.wait(PATIENCE_S)

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Pass one connection through."""
        wire = _Wire(self, reader, writer)
        self._wires.add(wire)
        try:
            await wire.run()
        except (OSError, asyncio.CancelledError, asyncio.IncompleteReadError):
            wire.abort()
        finally:
            self._wires.discard(wire)


class _Wire:
    """One connection through a link."""

    def __init__(self, link: Link, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._link = link
        self._client = reader, writer
        self._server: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None
        self._cut: Cut | None = None
        self._left = 0
        self._answered = False

    async def run(self) -> None:
        link = self._link
        if link.refusing:
            self.abort()
            return
        await link._gate.wait()
        self._server = await open_stream(link.target)
        up = self._pump("up", self._client[0], self._server[1])
        down = self._pump("down", self._server[0], self._client[1])
        await asyncio.gather(up, down)
        for _, writer in (self._client, self._server):
            writer.close()

    async def _pump(self, direction: Direction, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while piece := await reader.read(_PIECE):
            if not await self._pass(direction, piece, writer):
                self.abort()
                return
        with contextlib.suppress(OSError):
            writer.write_eof()

    async def _pass(self, direction: Direction, piece: bytes, writer: asyncio.StreamWriter) -> bool:
        """Send a piece, or as much of it as may pass; return whether the connection goes on."""
        link = self._link
        await link._gate.wait()
        if direction == "up" and await self._is_answered(piece):
            return True
        kept = self._kept(direction, piece)
        step = max(1, link.rate // 10) if link.rate else _PIECE
        for start in range(0, len(kept), step):
            if link.delay_s or link.rate:
                await asyncio.sleep(link.delay_s or 0.1)
            writer.write(kept[start : start + step])
            await writer.drain()
        return len(kept) == len(piece)

    async def _is_answered(self, piece: bytes) -> bool:
        link = self._link
        if link.watched and link.watched in piece:
            link.seen.set()
        if self._answered:  # the rest of what was asked is of no interest
            return True
        if not link.answer or link.answer_to not in piece:
            return False
        self._answered = True
        self._client[1].write(link.answer)
        await self._client[1].drain()
        self._client[1].write_eof()
        return True

    def _kept(self, direction: Direction, piece: bytes) -> bytes:
        link = self._link
        if direction == "up" and self._cut is None:
            for cut in link.cuts:
                if cut.when in piece:
                    self._cut, self._left = cut, cut.after
                    cut.times -= 1
                    if cut.times <= 0:
                        link.cuts.remove(cut)
                    break
        if self._cut is None or self._cut.direction != direction:
            return piece
        kept = piece[: self._left]
        self._left -= len(kept)
        return kept

    def abort(self) -> None:
        """Reset both sides."""
        for stream in (self._client, self._server):
            if stream is not None:
                peer = stream[1].get_extra_info("socket")
                with contextlib.suppress(OSError, AttributeError):
                    peer.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                stream[1].transport.abort()


async def open_stream(address: str) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    """Connect to ``host:port`` or to a Unix socket."""
    if address.startswith("/"):
        return await asyncio.open_unix_connection(address)
    host, _, port = address.rpartition(":")
    return await asyncio.open_connection(host, int(port))


class Switchboard:
    """All links, served by one thread."""

    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="links", daemon=True)
        self._thread.start()
        self._servers: list[asyncio.AbstractServer] = []

    def add(self, target: str, *, socket_path: Path | None = None) -> Link:
        """Listen in front of a server: at a port of loopback, or at a Unix socket."""
        return self._run(functools.partial(self._listen, target, socket_path))

    async def _listen(self, target: str, path: Path | None) -> Link:
        link = Link("", target)
        link._loop, link._flowing = self._loop, asyncio.Event()
        link._flowing.set()
        if path is not None:
            server: asyncio.Server = await asyncio.start_unix_server(link.serve, path)
            link.address = str(path)
        else:
            server = await asyncio.start_server(link.serve, "127.0.0.1", 0, backlog=256)
            link.address = f"127.0.0.1:{server.sockets[0].getsockname()[1]}"
        self._servers.append(server)
        return link

    def close(self) -> None:
        """End all links."""
        self._run(self._end)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(10)
        self._loop.close()

    async def _end(self) -> None:
        for server in self._servers:
            server.close()
        others = asyncio.all_tasks() - {asyncio.current_task()}
        for task in others:
            task.cancel()
        await asyncio.gather(*others, return_exceptions=True)

    def _run(self, action: Callable[[], Awaitable[_T]]) -> _T:
        async def call() -> _T:
            return await action()

        return asyncio.run_coroutine_threadsafe(call(), self._loop).result(30)
