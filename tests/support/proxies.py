"""Proxies that break what passes through them, in front of real servers."""

from __future__ import annotations

import json
import re
import socket
import socketserver
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

Change = Callable[[bytes], bytes]


class _Handler(socketserver.BaseRequestHandler):
    """Passes one request and its answer through; both sides then close the connection."""

    def handle(self) -> None:
        server: Any = self.server
        with suppress(OSError), server.connect() as upstream:
            head, body = _read_message(self.request)
            upstream.sendall(server.change_request(head, body))
            thread = threading.Thread(target=_pump, args=(self.request, upstream), daemon=True)
            thread.start()
            answer, rest = _read_message(upstream)
            self.request.sendall(server.change_answer(answer) + rest)
            _pump(upstream, self.request)
            self.request.shutdown(socket.SHUT_RDWR)
            thread.join(5)


def _read_message(peer: socket.socket) -> tuple[bytes, bytes]:
    """Return the head of a message, and what came of its body with it; all of the body, if its length is announced."""
    data = b""
    while b"\r\n\r\n" not in data and (piece := peer.recv(65536)):
        data += piece
    head, _, body = data.partition(b"\r\n\r\n")
    announced = re.search(rb"(?i)^POST .*\r\ncontent-length: (\d+)", head, re.DOTALL)
    while announced and len(body) < int(announced[1]):
        body += peer.recv(65536)
    return head + b"\r\n\r\n", body


def _pump(source: socket.socket, target: socket.socket) -> None:
    with suppress(OSError):
        while piece := source.recv(65536):
            target.sendall(piece)


@contextmanager
def engine_proxy(path: Path, url: str, change: Callable[[dict[str, Any]], None]) -> Iterator[str]:
    """
    Listen on a Unix socket in front of a container engine; gives the URL.

    Args:
        path: Of the socket; a short one.
        url: Of the engine.
        change: Changes the body of each request that creates a container.
    """

    def change_request(head: bytes, body: bytes) -> bytes:
        if b"/containers/create" in head.partition(b"\r\n")[0]:
            document = json.loads(body)
            change(document)
            body = json.dumps(document).encode()
            head = re.sub(rb"(?i)(content-length: )\d+", rb"\g<1>%d" % len(body), head)
        return _closing(head) + body

    with _serving(
        socketserver.ThreadingUnixStreamServer(str(path), _Handler),
        lambda: _connect(url),
        change_request,
        lambda head: head,
    ):
        yield f"unix://{path}"


def _connect(url: str) -> socket.socket:
    parts = urlsplit(url)
    if parts.scheme != "unix":
        return socket.create_connection((parts.hostname or "", parts.port or 2375))
    peer = socket.socket(socket.AF_UNIX)
    peer.connect(parts.path)
    return peer


class Outage:
    """A proxy in front of a container engine that can be as if it were stopped, or hung."""

    def __init__(self, path: Path, url: str) -> None:
        self.url = f"unix://{path}"
        self._upstream = url
        self._is_there = threading.Event()
        self._is_there.set()
        self._hangs = False
        self._open: set[socket.socket] = set()

    @contextmanager
    def out(self, *, hangs: bool = False) -> Iterator[None]:
        """Break all connections and take no others for the time of the block; or let nothing through any more."""
        self._hangs = hangs
        self._is_there.clear()
        if not hangs:
            self._break()
        try:
            yield
        finally:
            self._break()  # nothing that was sent before the end comes through after it
            self._is_there.set()

    def serve(self, client: socket.socket) -> None:
        """Pass one connection through."""
        if not self._is_there.is_set() and not self._hangs:
            return
        self._is_there.wait()
        with suppress(OSError), _connect(self._upstream) as upstream:
            self._open |= {client, upstream}
            thread = threading.Thread(target=self._pump, args=(client, upstream), daemon=True)
            thread.start()
            self._pump(upstream, client)
            thread.join(5)
            self._open -= {client, upstream}

    def _pump(self, source: socket.socket, target: socket.socket) -> None:
        with suppress(OSError):
            while piece := source.recv(65536):
                self._is_there.wait()
                target.sendall(piece)
        with suppress(OSError):
            target.shutdown(socket.SHUT_WR)

    def _break(self) -> None:
        for peer in list(self._open):
            with suppress(OSError):
                peer.shutdown(socket.SHUT_RDWR)


@contextmanager
def engine_outage(folder: Path, url: str) -> Iterator[Outage]:
    """Listen on a Unix socket in front of a container engine, which can then be out."""
    outage = Outage(folder / "engine.sock", url)

    class Handler(socketserver.BaseRequestHandler):
        def handle(self) -> None:
            outage.serve(self.request)

    server = socketserver.ThreadingUnixStreamServer(str(folder / "engine.sock"), Handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
    thread.start()
    try:
        yield outage
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


@contextmanager
def shifted_clock(endpoint: str, shift: timedelta) -> Iterator[str]:
    """Listen in front of an HTTP server and shift the time that it tells; gives ``host:port``."""
    host, _, port = endpoint.partition(":")

    def change_answer(head: bytes) -> bytes:
        date = format_datetime(datetime.now(UTC) + shift, usegmt=True).encode()
        return re.sub(rb"(?i)(\r\ndate: )[^\r]*", rb"\g<1>" + date, head)

    server = socketserver.ThreadingTCPServer(("127.0.0.1", 0), _Handler)
    with _serving(
        server,
        lambda: socket.create_connection((host, int(port))),
        lambda head, body: _closing(head) + body,
        change_answer,
    ):
        yield f"127.0.0.1:{server.server_address[1]}"


def _closing(head: bytes) -> bytes:
    head = re.sub(rb"(?i)\r\nconnection: [^\r]*", b"", head)
    return head.replace(b"\r\n", b"\r\nConnection: close\r\n", 1)


@contextmanager
def _serving(
    server: socketserver.BaseServer,
    connect: Callable[[], socket.socket],
    change_request: Callable[[bytes, bytes], bytes],
    change_answer: Change,
) -> Iterator[None]:
    vars(server).update(
        connect=connect, change_request=change_request, change_answer=change_answer, daemon_threads=True
    )
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
    thread.start()
    try:
        yield
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
