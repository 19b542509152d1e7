"""
The only way out of an image build: a proxy that reaches package mirrors and nothing else, and logs every request.

It listens on a Unix socket, so that nobody reaches it but who is given its folder. `morpheo.runtime.relay` brings
the requests of one build to it, and says first which job they are of. Each connection carries one request: GET or HEAD
of an ``http`` URL, or CONNECT (RFC 9110, 9.3.6) to port 443, of a host in the list. A host is looked up once, must
have public addresses only, and is connected to by these addresses, whatever its name means a moment later.
"""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import logging
import os
import re
import signal
import socket
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path

logger = logging.getLogger(__name__)

#: Finds the addresses of a host and port.
Resolve = Callable[[str, int], Awaitable[list[str]]]

#: Connections at once, of all builds and of one job.
MAX_CONNECTIONS = 256
MAX_OF_ONE_JOB = 32
#: Longest head of a request, in bytes.
MAX_HEAD = 16 << 10
#: How long a request may take to arrive, a host to be found, and a connection to be made, each, in seconds.
PATIENCE_S = 15.0
#: How long nothing may be sent in one direction, in seconds.
IDLE_S = 600.0
_CHUNK = 64 << 10
_HELLO = re.compile(rb"BUILD ([0-9a-f-]{36}) ([0-9]{1,9})\r\n")
_REQUEST = re.compile(rb"([A-Z]{1,20}) ([!-~]{1,4096}) HTTP/1\.[01]")
_HEADER = re.compile(rb"([!#$%&'*+.^_`|~0-9A-Za-z-]+):[ \t]*([\x20-\x7e\x80-\xff\t]*)")
_HOST = re.compile(r"[a-z0-9]([a-z0-9.-]{0,251}[a-z0-9])?")
_URL = re.compile(r"http://([^/?#:@]+)(?::80)?(/[^#]*)?", re.IGNORECASE)
_AUTHORITY = re.compile(r"([^/?#:@]+):443")
#: What is between this connection and the next one only, or would let a request have a body.
_DROPPED = re.compile(rb"host|connection|keep-alive|te|trailer|upgrade|proxy-.*|content-length", re.IGNORECASE)
_PHRASES = {400: "Bad Request", 403: "Forbidden", 502: "Bad Gateway", 503: "Service Unavailable"}
#: Public by their numbers only: addresses that stand for others, which may be private (6to4, Teredo, NAT64, IPv4 in
#: IPv6), and those at which clouds serve metadata to their machines (Oracle's, and all of IETF's; Azure's).
_NOT_THE_WORLD = tuple(
    ipaddress.ip_network(text)
    for text in (
        "2002::/16",
        "2001::/32",
        "64:ff9b::/96",
        "64:ff9b:1::/48",
        "::/96",
        "::ffff:0:0/96",
        "192.88.99.0/24",
        "192.0.0.0/24",
        "168.63.129.16/32",
    )
)


class RefusedError(Exception):
    """
    A request that is not carried out.

    Attributes:
        status: HTTP status code of the answer.
    """

    def __init__(self, status: int, reason: str) -> None:
        super().__init__(reason)
        self.status = status


@dataclass(frozen=True, kw_only=True)
class Request:
    """What a build asks for."""

    method: str
    host: str
    port: int
    #: What the mirror is sent; none for CONNECT.
    head: bytes = b""
    #: Path and query, to be logged; empty for CONNECT.
    path: str = ""


@dataclass
class Exchange:
    """One request and what became of it, for the log."""

    job: str
    attempt: int
    method: str = ""
    host: str = ""
    port: int = 0
    path: str = ""
    status: int = 0
    reason: str = ""
    #: Bytes to and from the mirror.
    sent: int = 0
    received: int = 0


def is_public(address: str) -> bool:
    """Whether an IP address is one of the world's: not private, loopback, link-local, a cloud's, or for another."""
    parsed = ipaddress.ip_address(address)
    return parsed.is_global and not parsed.is_multicast and not any(parsed in net for net in _NOT_THE_WORLD)


def is_listed(host: str, hosts: tuple[str, ...]) -> bool:
    """Whether a host is in a list; ``*.example`` stands for all names that end in ``.example``."""
    return any(host.endswith(item[1:]) if item.startswith("*.") else host == item for item in map(str.lower, hosts))


def parse_request(head: bytes) -> Request:
    """
    Read a request as a proxy is sent it.

    Args:
        head: All up to the empty line, without it.

    Raises:
        RefusedError: it is none, or not one that is carried out.
    """
    first, *rest = head.split(b"\r\n")
    match = _REQUEST.fullmatch(first)
    if match is None:
        raise RefusedError(400, "not a request of HTTP/1.1")
    method, target = match[1].decode(), match[2].decode()
    headers = []
    for line in rest:
        header = _HEADER.fullmatch(line)
        if header is None:
            raise RefusedError(400, "a header that is none")
        headers.append((header[1], header[2].strip()))
    if method == "CONNECT":
        return Request(method=method, host=_host(_AUTHORITY, target, "CONNECT goes to port 443 of a host"), port=443)
    if method not in ("GET", "HEAD"):
        raise RefusedError(403, f"{method} is not carried out: only GET, HEAD and CONNECT")
    host = _host(_URL, target, "only http://HOST/PATH on port 80 is fetched")
    path = target[target.index("/", len("http://")) :] if target.count("/") > 2 else "/"  # noqa: PLR2004
    return Request(method=method, host=host, port=80, path=path, head=_forwarded(method, host, path, headers))


def _host(form: re.Pattern[str], target: str, sentence: str) -> str:
    match = form.fullmatch(target)
    host = match[1].lower().removesuffix(".") if match else ""
    if not _HOST.fullmatch(host):
        raise RefusedError(403, sentence)
    return host


def _forwarded(method: str, host: str, path: str, headers: list[tuple[bytes, bytes]]) -> bytes:
    for name, value in headers:
        if name.lower() == b"transfer-encoding" or (name.lower() == b"content-length" and value != b"0"):
            raise RefusedError(403, f"{method} has no body here")
    lines = [f"{method} {path} HTTP/1.1".encode(), b"Host: " + host.encode(), b"Connection: close"]
    lines += [name + b": " + value for name, value in headers if not _DROPPED.fullmatch(name)]
    return b"\r\n".join(lines) + b"\r\n\r\n"


async def look_up(host: str, port: int) -> list[str]:
    """Return the addresses of a host."""
    found = await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_STREAM)
    return list(dict.fromkeys(str(address[4][0]) for address in found))


class BuildProxy:
    """
    Carries requests of builds to package mirrors.

    Args:
        hosts: Whom it may reach; ``*.example`` stands for all names that end in ``.example``.
        resolve: Finds addresses.
    """

    def __init__(self, hosts: tuple[str, ...], *, resolve: Resolve = look_up) -> None:
        self._hosts = hosts
        self._resolve = resolve
        self._open: Counter[str] = Counter()

    async def listen(self, path: Path) -> asyncio.Server:
        """Listen on a Unix socket that everyone may connect to who reaches its folder."""
        server = await asyncio.start_unix_server(self._serve, path, limit=MAX_HEAD)
        await asyncio.to_thread(os.chmod, path, 0o666)
        return server

    async def _serve(self, build: asyncio.StreamReader, answer: asyncio.StreamWriter) -> None:
        began = time.monotonic()
        exchange: Exchange | None = None
        try:
            async with asyncio.timeout(PATIENCE_S):
                hello = _HELLO.fullmatch(await build.readuntil(b"\n"))
                if hello is None:
                    return
                exchange = Exchange(job=hello[1].decode(), attempt=int(hello[2]))
                self._open[exchange.job] += 1
                head = (await build.readuntil(b"\r\n\r\n"))[:-4]
            await self._carry_out(head, exchange, build, answer)
        except RefusedError as exc:
            if exchange is not None:
                exchange.status, exchange.reason = exc.status, str(exc)
                await _refuse(answer, exc)
        except (OSError, TimeoutError, asyncio.IncompleteReadError, asyncio.LimitOverrunError) as exc:
            if exchange is not None:
                exchange.reason = type(exc).__name__
        finally:
            answer.close()
            if exchange is not None:
                self._open[exchange.job] -= 1
                self._open += Counter()  # forgets jobs that have none
                _log(exchange, time.monotonic() - began)

    async def _carry_out(
        self, head: bytes, exchange: Exchange, build: asyncio.StreamReader, answer: asyncio.StreamWriter
    ) -> None:
        request = parse_request(head)
        exchange.method, exchange.host, exchange.port = request.method, request.host, request.port
        exchange.path = request.path
        if self._open[exchange.job] > MAX_OF_ONE_JOB or self._open.total() > MAX_CONNECTIONS:
            raise RefusedError(503, "too many connections at once")
        mirror, to_mirror = await self._connect(request)
        try:
            exchange.status = 200
            if request.method == "CONNECT":
                answer.write(b"HTTP/1.1 200 Connection established\r\n\r\n")
                async with asyncio.TaskGroup() as both:
                    both.create_task(_copy(build, to_mirror, exchange, "sent"))
                    both.create_task(_copy(mirror, answer, exchange, "received"))
            else:
                to_mirror.write(request.head)
                exchange.sent = len(request.head)
                await _copy(mirror, answer, exchange, "received")
        except ExceptionGroup as exc:
            exchange.reason = type(exc.exceptions[0]).__name__
        finally:
            to_mirror.close()

    async def _connect(self, request: Request) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        if not is_listed(request.host, self._hosts):
            raise RefusedError(403, f"{request.host} is not a mirror that builds may reach: {', '.join(self._hosts)}")
        try:
            async with asyncio.timeout(PATIENCE_S):
                addresses = await self._resolve(request.host, request.port)
        except (OSError, TimeoutError, UnicodeError) as exc:
            raise RefusedError(502, f"{request.host} has no address") from exc
        if not addresses or not all(map(is_public, addresses)):
            raise RefusedError(403, f"{request.host} has an address that is not public")
        for address in addresses:
            with contextlib.suppress(OSError, TimeoutError):
                async with asyncio.timeout(PATIENCE_S):
                    return await asyncio.open_connection(address, request.port)
        raise RefusedError(502, f"{request.host} does not answer")


async def _refuse(answer: asyncio.StreamWriter, error: RefusedError) -> None:
    body = f"{error}\n".encode()
    head = f"HTTP/1.1 {error.status} {_PHRASES[error.status]}\r\nContent-Type: text/plain; charset=utf-8\r\n"
    answer.write(f"{head}Content-Length: {len(body)}\r\nConnection: close\r\n\r\n".encode() + body)
    with contextlib.suppress(OSError, TimeoutError):
        async with asyncio.timeout(PATIENCE_S):
            await answer.drain()


async def _copy(source: asyncio.StreamReader, target: asyncio.StreamWriter, exchange: Exchange, counted: str) -> None:
    while True:
        async with asyncio.timeout(IDLE_S):
            piece = await source.read(_CHUNK)
            if not piece:
                break
            target.write(piece)
            await target.drain()
        setattr(exchange, counted, getattr(exchange, counted) + len(piece))
    if target.can_write_eof():
        target.write_eof()


def _log(exchange: Exchange, seconds: float) -> None:
    words = {name: value for name, value in vars(exchange).items() if value not in ("", 0)}
    words["path"] = exchange.path[:200]
    refused = exchange.status != 200 or exchange.reason  # noqa: PLR2004
    logger.log(
        logging.WARNING if refused else logging.INFO,
        "a build's request was %s",
        "refused or cut off" if refused else "carried out",
        extra={**words, "seconds": round(seconds, 3)},
    )


async def serve(path: Path, hosts: tuple[str, ...]) -> None:
    """Listen on a Unix socket until the process is told to stop (SIGTERM, SIGINT)."""
    stopping = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stopping.set)
    server = await BuildProxy(hosts).listen(path)
    logger.info("listening for builds", extra={"socket": str(path), "hosts": ", ".join(hosts)})
    await stopping.wait()
    server.close()
    await asyncio.to_thread(path.unlink, missing_ok=True)
