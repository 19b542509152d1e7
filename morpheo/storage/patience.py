"""
HTTP connections that a server cannot hold for ever.

A timeout of a socket begins anew with each byte: a server, or a network, that lets one byte through every second is
never noticed. Here whole requests and answers have deadlines, which allow for a slow line.
"""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from collections.abc import Iterator
from typing import Any

import urllib3
from urllib3.connection import HTTPConnection, HTTPSConnection
from urllib3.connectionpool import HTTPConnectionPool, HTTPSConnectionPool
from urllib3.exceptions import ProtocolError

#: How long a server may take for anything, in seconds.
GRACE_S = 60.0
#: And for each byte that is moved: at least so many in a second.
MIN_RATE = 64 << 10


class TooSlow(Exception):
    """A server sends too slowly to be waited for."""


class Patience:
    """Adds up the time that was waited for a server, and ends the waiting when it was too long for what came."""

    def __init__(self, grace_s: float = GRACE_S) -> None:
        self._grace_s = grace_s
        self._waited_s = 0.0
        self._count = 0

    def read(self, response: urllib3.BaseHTTPResponse, size: int) -> bytes:
        """
        Return at most `size` bytes, what is there first; none at the end.

        Raises:
            TooSlow: on the average, less than `MIN_RATE` came.
        """
        began = time.monotonic()
        piece = response.read1(size)
        self._waited_s += time.monotonic() - began
        self._count += len(piece)
        if self._waited_s > self._grace_s + self._count / MIN_RATE:
            raise TooSlow(f"{self._count} bytes in {self._waited_s:.0f} s")
        return piece


class _Impatient:
    """Hangs up when sending a request, or the head of its answer and a body that is read with it, takes too long."""

    grace_s: float
    sock: Any

    def request(self, method: str, url: str, body: Any = None, *args: Any, **kwargs: Any) -> None:
        size = len(body) if isinstance(body, bytes) else 0
        if self.sock is None:
            self.connect()  # type: ignore[attr-defined]  # by its own timeout
        # That timeout is still the socket's, and would be the limit of sending it all.
        self.sock.settimeout(self.grace_s + size / MIN_RATE)
        with self._deadline(self.grace_s + size / MIN_RATE):
            super().request(method, url, body, *args, **kwargs)  # type: ignore[misc]

    def getresponse(self) -> Any:
        with self._deadline(self.grace_s):
            return super().getresponse()  # type: ignore[misc]

    @contextlib.contextmanager
    def _deadline(self, seconds: float) -> Iterator[None]:
        passed = threading.Event()
        timer = threading.Timer(seconds, self._hang_up, (self.sock, passed))
        timer.daemon = True
        timer.start()
        error: Exception | None = None
        try:
            yield
        except Exception as exc:
            error = exc
            raise
        finally:
            timer.cancel()
            # Even without an error: headers that end in the middle are taken for all there are.
            if passed.is_set():
                raise ProtocolError(f"the server took longer than {seconds:g} s") from error

    @staticmethod
    def _hang_up(peer: socket.socket, passed: threading.Event) -> None:
        passed.set()
        with contextlib.suppress(OSError):
            peer.shutdown(socket.SHUT_RDWR)


def impatient_pool(grace_s: float = GRACE_S) -> urllib3.PoolManager:
    """
    Return connections whose requests and answers have deadlines.

    What fails is tried again a few times at once: the body of every request is in memory. Whoever calls retries later.
    """
    manager = urllib3.PoolManager(
        maxsize=32,
        timeout=urllib3.Timeout(connect=5, read=grace_s),
        retries=urllib3.Retry(total=3, backoff_factor=0.2, status_forcelist=(500, 502, 503, 504)),
    )
    manager.pool_classes_by_scheme = {
        scheme: type("Pool", (pool,), {"ConnectionCls": type("Connection", (_Impatient, plain), {"grace_s": grace_s})})
        for scheme, pool, plain in (
            ("http", HTTPConnectionPool, HTTPConnection),
            ("https", HTTPSConnectionPool, HTTPSConnection),
        )
    }
    return manager
