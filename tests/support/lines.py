"""A bad line between a client and a server: it breaks where a test says, or lets bytes through one by one."""

from __future__ import annotations

import contextlib
import socket
import socketserver
import struct
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

UP, DOWN = "up", "down"


@dataclass
class Cut:
    """Breaks a connection after so many bytes of a direction, so many times."""

    direction: str
    after: int
    times: int = 1
    #: Only while a request is under way whose first line holds this.
    request: bytes = b""


@dataclass
class Line:
    """What happens to connections; may be changed while they last."""

    endpoint: str = ""
    cuts: list[Cut] = field(default_factory=list)
    #: Pause before each byte that goes down, in seconds.
    drip_s: float = 0.0
    #: Bytes of an answer that come as fast as ever before it drips.
    drip_after: int = 0
    ended: threading.Event = field(default_factory=threading.Event)
    #: First lines of the requests that came.
    requests: list[bytes] = field(default_factory=list)


class _Handler(socketserver.BaseRequestHandler):
    def handle(self) -> None:
        server: Any = self.server
        self.line: Line = server.line
        self.under_way = b""
        self.counts = {UP: 0, DOWN: 0}
        with contextlib.suppress(OSError), socket.create_connection(server.upstream) as upstream:
            self.peers = self.request, upstream
            thread = threading.Thread(target=self._pump, args=(self.request, upstream, UP), daemon=True)
            thread.start()
            self._pump(upstream, self.request, DOWN)
            thread.join(5)

    def _pump(self, source: socket.socket, target: socket.socket, direction: str) -> None:
        with contextlib.suppress(OSError):
            while piece := source.recv(16384):
                if direction == UP and (first := piece.partition(b"\r\n")[0]).endswith(b" HTTP/1.1"):
                    self.under_way = first
                    self.counts = {UP: 0, DOWN: 0}
                    self.line.requests.append(first)
                keep = self._kept(direction, len(piece))
                if keep is not None:
                    target.sendall(piece[:keep])
                    self._reset()
                    return
                if direction == DOWN and self.line.drip_s and self.counts[DOWN] > self.line.drip_after:
                    self._drip(piece, target)
                else:
                    target.sendall(piece)
        for peer in self.peers:
            with contextlib.suppress(OSError):
                peer.shutdown(socket.SHUT_RDWR)

    def _kept(self, direction: str, size: int) -> int | None:
        """Return how many bytes still pass before the line breaks, None if it does not."""
        before = self.counts[direction]
        self.counts[direction] += size
        for cut in self.line.cuts:
            meant = cut.direction == direction and cut.request in self.under_way
            if meant and cut.times and self.counts[direction] > cut.after:
                cut.times -= 1
                return max(0, cut.after - before)
        return None

    def _drip(self, piece: bytes, target: socket.socket) -> None:
        for byte in piece:
            target.sendall(bytes([byte]))
            if self.line.ended.wait(self.line.drip_s):
                return

    def _reset(self) -> None:
        for peer in self.peers:
            with contextlib.suppress(OSError):
                peer.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                peer.shutdown(socket.SHUT_RD)
                peer.close()


@contextlib.contextmanager
def bad_line(endpoint: str) -> Iterator[Line]:
    """Listen in front of a server at ``host:port``."""
    host, _, port = endpoint.partition(":")
    server = socketserver.ThreadingTCPServer(("127.0.0.1", 0), _Handler)
    line = Line(endpoint=f"127.0.0.1:{server.server_address[1]}")
    vars(server).update(line=line, upstream=(host, int(port)), daemon_threads=True)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
    thread.start()
    try:
        yield line
    finally:
        line.ended.set()
        server.shutdown()
        server.server_close()
        thread.join()
