"""
A gunicorn worker whose threads wait for nobody.

Each request takes a thread while it is answered, so that a few clients who send or read slowly on purpose could take
them all. Here a connection gets a thread when its head, and a small body, have arrived: until then the loop of the
process keeps it, which costs a socket. Larger bodies and downloads take threads while they last. So that some always
are left for the rest, only so many go on at once, the others wait, and who falls below a rate is cut off. Of large
answers to anybody, without a login, one goes on at a time.

With TLS, gunicorn's own way is kept, since handshakes take a thread: put a proxy that ends TLS before services that
strangers can reach.
"""

from __future__ import annotations

import enum
import errno
import re
import selectors
import socket
import time
from collections import Counter, deque
from contextlib import suppress
from functools import partial
from typing import Any

from gunicorn.workers.gthread import TConn, ThreadWorker

from morpheo.config import SHORT_THREADS

#: How long a client may take for the head of a request and a small body, in seconds.
HEAD_S = 15.0
#: Bodies that are waited for without a thread, and read at once.
SMALL_BODY = 64 << 10
#: The largest head, and the longest first line.
MAX_HEAD = 64 << 10
MAX_LINE = 8 << 10
#: How long a request may wait for one of the threads for long ones, in seconds.
TURN_S = 30.0
#: How long a client may do nothing while a thread waits for it, in seconds, beside what it has sent at the least rate.
PATIENCE_S = 20.0
#: The least rate of a client that a thread waits for, in bytes a second.
LEAST_RATE = 2048
#: What must be taken within that patience by a client that reads.
SLICE = 64 << 10
#: How long a client may take to close its side after an answer, in seconds.
LINGER_S = 2.0
#: How long a thread reads what is left of a body that nobody wanted, in seconds: what has come already.
LEFTOVER_S = 0.05
#: Pause when the process or the machine has no file descriptor or memory for another connection, in seconds.
FULL_S = 0.05

_BUSY = b"503 Service Unavailable\r\nRetry-After: 10"
_LENGTHS = re.compile(rb"^content-length:(.*)$", re.IGNORECASE | re.MULTILINE)
_LENGTH = re.compile(rb"\s*0*(\d{1,18})\s*")
_EXPECTS = re.compile(rb"^(expect|transfer-encoding|upgrade):", re.IGNORECASE | re.MULTILINE)
_DOWNLOAD = re.compile(rb"GET [^ ?#]*/(blob|logs)/*[?# ]")
#: Large answers for who has not logged in; and what hides a path, which no client of ours does.
_PUBLIC = re.compile(rb"\w+ [^ ?#]*(/docs|/openapi\.json|%)")


class Kind(enum.Enum):
    """How long a request may keep a thread."""

    SHORT = enum.auto()
    #: A large body, a download, a log that is followed.
    LONG = enum.auto()
    #: A large answer to anybody.
    PUBLIC = enum.auto()


class _Refused(Exception):
    """What cannot become a request; its argument is the beginning of the answer."""


class _Incoming:
    """What has arrived of a request, looked at once."""

    def __init__(self) -> None:
        self.content = bytearray()
        self.kind = Kind.SHORT
        self._enough = 0

    def add(self, piece: bytes) -> bool:
        """
        Take what has arrived; return whether a thread can go on with it.

        Raises:
            _Refused: it is none, however it goes on.
        """
        searched = max(len(self.content) - 3, 0)
        self.content += piece
        if not self._enough:
            if self.content.startswith(b"\r\n"):  # one empty line is nothing (RFC 9112, section 2.2)
                del self.content[:2]
            end = self.content.find(b"\r\n\r\n", searched)
            if end < 0:
                self._check_head(searched)
                return False
            self._look_at(bytes(self.content[: end + 2]), end + 4)
        return self.kind is Kind.LONG or len(self.content) >= self._enough

    def _check_head(self, searched: int) -> None:
        if len(self.content) < 2 and not self.content.strip(b"\r"):  # noqa: PLR2004 - half an empty line
            return
        if not self.content[:1].isalpha() or self.content.find(b"\n\n", searched) >= 0:
            raise _Refused(b"400 Bad Request")
        if len(self.content) > MAX_LINE and self.content.find(b"\n", 0, MAX_LINE) < 0:
            raise _Refused(b"414 Request-URI Too Long")
        if len(self.content) > MAX_HEAD:
            raise _Refused(b"431 Request Header Fields Too Large")

    def _look_at(self, head: bytes, start: int) -> None:
        # What it says is for gunicorn's parser to believe or refuse; here it decides who waits.
        lengths = [_LENGTH.fullmatch(found) for found in _LENGTHS.findall(head)]
        length = max((int(found[1]) for found in lengths if found), default=0)
        self._enough = start + min(length, SMALL_BODY)
        if _EXPECTS.search(head) or _DOWNLOAD.match(head) or length > SMALL_BODY or None in lengths:
            self.kind = Kind.LONG
        elif _PUBLIC.match(head):
            self.kind = Kind.PUBLIC


class PacedSocket(socket.socket):
    """A connection that ends for a thread if the client lets it wait."""

    _waited_s = 0.0
    _received = 0

    def begin(self) -> None:
        """Count from here: another request."""
        self._waited_s, self._received = 0.0, 0

    def recv(self, size: int, flags: int = 0) -> bytes:
        """Receive; a client that is too slow has closed its side."""
        limit = self.gettimeout()
        if flags or limit == 0:
            return super().recv(size, flags)
        left = PATIENCE_S + self._received / LEAST_RATE - self._waited_s
        began = time.monotonic()
        try:
            self.settimeout(max(min(left, left if limit is None else limit), 0.001))
            piece = super().recv(size)
        except TimeoutError:
            if limit is not None and limit < left:
                raise
            return b""
        finally:
            self._waited_s += time.monotonic() - began
            self.settimeout(limit)
        self._received += len(piece)
        return piece

    def send(self, data: Any, flags: int = 0) -> int:
        """Send all, where a thread would wait for a client."""
        if self.gettimeout() == 0:
            return super().send(data, flags)
        self.sendall(data, flags)
        return len(data)

    def sendall(self, data: Any, flags: int = 0) -> None:
        """
        Send.

        Raises:
            ConnectionResetError: the client takes too little of it.
        """
        limit = self.gettimeout()
        left = memoryview(data)
        try:
            while left:
                left = left[self._send_slice(left, flags) :]
        except TimeoutError as exc:
            raise ConnectionResetError(errno.ECONNRESET, f"{SLICE} bytes were not taken in {PATIENCE_S:g} s") from exc
        finally:
            self.settimeout(limit)

    def _send_slice(self, data: memoryview, flags: int) -> int:
        # What the system takes at once may be much more.
        sent, give_up = 0, time.monotonic() + PATIENCE_S
        while sent < min(SLICE, len(data)):
            self.settimeout(max(give_up - time.monotonic(), 0.001))
            sent += super().send(data[sent:], flags)
        return sent


class _Connection(TConn):
    """One client. Before it has a thread, it belongs to the loop of its process."""

    sock: PacedSocket

    def __init__(self, worker: PatientWorker, sock: PacedSocket, client: Any, server: Any) -> None:
        super().__init__(worker.cfg, sock, client, server)
        self._worker = worker
        self.incoming = _Incoming()
        #: Of the request that has a thread.
        self.kind = Kind.SHORT
        self.deadline = 0.0

    def close(self, graceful: bool = False) -> None:
        if graceful:
            self._worker.linger(self.sock)
        else:
            super().close()


class PatientWorker(ThreadWorker):
    """Gives a connection a thread when there is something to do for it."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        #: Connections whose requests are not complete; in the order of their deadlines, as the other two.
        self._incomplete: deque[_Connection] = deque()
        self._waiting: dict[Kind, deque[_Connection]] = {kind: deque() for kind in (Kind.LONG, Kind.PUBLIC)}
        self._lingering: deque[tuple[float, socket.socket]] = deque()
        #: How many of each kind have a thread, and how many may.
        self._running = Counter[Kind]()
        self._most = {Kind.LONG: max(1, self.cfg.threads - SHORT_THREADS), Kind.PUBLIC: 1}

    def accept(self, listener: Any) -> None:
        """Take a new connection."""
        if self.cfg.is_ssl:
            super().accept(listener)
            return
        try:
            accepted, client = listener.accept()
        except (BlockingIOError, ConnectionAbortedError, InterruptedError):
            return
        except OSError as exc:
            if exc.errno not in (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM):
                raise
            time.sleep(FULL_S)  # it is still to be accepted: without a pause, the loop would do nothing but try
            return
        self.nr_conns += 1
        sock = PacedSocket(fileno=accepted.detach())
        self._gather(_Connection(self, sock, client, listener.getsockname()))

    def on_client_socket_readable(self, conn: Any, client: Any) -> None:
        """Begin with the next request of a connection that was kept."""
        if not isinstance(conn, _Connection):
            super().on_client_socket_readable(conn, client)
            return
        self.poller.unregister(client)
        self.keepalived_conns.remove(conn)
        self._gather(conn)

    def finish_request(self, conn: Any, fs: Any) -> None:
        """Go on after an answer."""
        if isinstance(conn, _Connection):
            kind, conn.kind = conn.kind, Kind.SHORT
            if kind is not Kind.SHORT:
                self._running[kind] -= 1
                self._let_in(kind)
            if not fs.cancelled() and fs.exception() is None and fs.result() is True:
                ahead = conn.parser.unreader.take_buffered()
                if ahead:  # of the next request, perhaps only its beginning
                    self._gather(conn, ahead)
                    return
        super().finish_request(conn, fs)

    def murder_pending(self) -> None:
        """Close what took too long."""
        super().murder_pending()
        now = time.monotonic()
        for conn in list(self._incomplete):
            began = bool(conn.incoming.content)
            if conn.deadline < now and began:
                self._turn_away(conn, b"408 Request Timeout")
            elif conn.deadline < now or not (self.alive or began):
                self._drop(conn)
        for waiting in self._waiting.values():
            while waiting and waiting[0].deadline < now:
                self._refuse(waiting.popleft(), _BUSY)
        while self._lingering and self._lingering[0][0] < now:
            self._end(self._lingering[0][1])

    def linger(self, sock: socket.socket) -> None:
        """Close a connection so that its client can read all that was sent (RFC 9112, section 9.6)."""
        try:
            sock.shutdown(socket.SHUT_WR)
            sock.setblocking(False)
            self.poller.register(sock, selectors.EVENT_READ, self._on_leftover)
        except (OSError, ValueError):
            sock.close()
        else:
            self.nr_conns += 1  # it still has its socket
            self._lingering.append((time.monotonic() + LINGER_S, sock))

    def _on_leftover(self, sock: socket.socket) -> None:
        with suppress(OSError):
            if sock.recv(SLICE):
                return
        self._end(sock)

    def _end(self, sock: socket.socket) -> None:
        self._lingering = deque(item for item in self._lingering if item[1] is not sock)
        self._forget(sock)
        sock.close()
        self.nr_conns -= 1

    def _gather(self, conn: _Connection, ahead: bytes = b"") -> None:
        conn.deadline = time.monotonic() + HEAD_S
        conn.incoming = _Incoming()
        conn.sock.setblocking(False)
        self._incomplete.append(conn)
        self.poller.register(conn.sock, selectors.EVENT_READ, partial(self._on_readable, conn))
        if ahead:
            self._take(conn, ahead)

    def _on_readable(self, conn: _Connection, _sock: object) -> None:
        try:
            piece = conn.sock.recv(SLICE)
        except (BlockingIOError, InterruptedError):
            return
        except OSError:
            piece = b""
        if piece:
            self._take(conn, piece)
        elif conn.incoming.content:  # it says no more, but may listen: the parser knows what to answer
            self._admit(conn)
        else:
            self._drop(conn)

    def _take(self, conn: _Connection, piece: bytes) -> None:
        try:
            if conn.incoming.add(piece):
                self._admit(conn)
        except _Refused as exc:
            self._turn_away(conn, exc.args[0])

    def _turn_away(self, conn: _Connection, answer: bytes) -> None:
        self._incomplete.remove(conn)
        self._forget(conn.sock)
        self._refuse(conn, answer)

    def _drop(self, conn: _Connection) -> None:
        self._incomplete.remove(conn)
        self._forget(conn.sock)
        self.nr_conns -= 1
        conn.close()

    def _admit(self, conn: _Connection) -> None:
        self._incomplete.remove(conn)
        self._forget(conn.sock)
        conn.init()
        conn.data_ready = True
        conn.sock.begin()
        conn.parser.unreader.unread(bytes(conn.incoming.content))
        conn.incoming.content.clear()
        if conn.incoming.kind is Kind.SHORT:
            self.enqueue_req(conn)
        else:
            conn.deadline = time.monotonic() + TURN_S
            self._waiting[conn.incoming.kind].append(conn)
            self._let_in(conn.incoming.kind)

    def _refuse(self, conn: _Connection, answer: bytes) -> None:
        self.nr_conns -= 1
        with suppress(OSError):
            conn.sock.setblocking(False)
            conn.sock.send(b"HTTP/1.1 " + answer + b"\r\nConnection: close\r\nContent-Length: 0\r\n\r\n")
        self.linger(conn.sock)

    def _let_in(self, kind: Kind) -> None:
        while self._waiting[kind] and self._running[kind] < self._most[kind]:
            conn = self._waiting[kind].popleft()
            conn.kind = kind
            self._running[kind] += 1
            self.enqueue_req(conn)

    def _keepalive_after(self, conn: Any, keepalive: bool) -> bool:
        # What is left of a body that nobody wanted is not waited for: the connection ends, and its client is told so.
        if not isinstance(conn, _Connection):
            return bool(super()._keepalive_after(conn, keepalive))
        return keepalive and bool(conn.parser.finish_body(deadline=time.monotonic() + LEFTOVER_S))

    def _forget(self, sock: socket.socket) -> None:
        with suppress(OSError, KeyError, ValueError):
            self.poller.unregister(sock)
