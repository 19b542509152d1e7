"""Where a submission would send what it has read: everything that arrives is counted."""

from __future__ import annotations

import contextlib
import selectors
import socket
import threading
from typing import Self

import psutil

#: Where programs ask for names.
DNS_PORT = 53


class Sink:
    """
    Listens for TCP and UDP on all addresses of this machine, and for DNS where nobody else does; a context manager.

    The container engine runs on this machine, so its addresses are among them.
    """

    def __init__(self) -> None:
        self._selector = selectors.DefaultSelector()
        self._closing = threading.Event()
        #: What arrived.
        self.hits: list[str] = []
        tcp = self._open(socket.SOCK_STREAM, "::", 0)
        self.port = int(tcp.getsockname()[1])
        self._open(socket.SOCK_DGRAM, "::", self.port)
        for address in self.addresses:
            with contextlib.suppress(OSError):  # a resolver listens there
                self._open(socket.SOCK_DGRAM, address, DNS_PORT)
        self._thread = threading.Thread(target=self._count, daemon=True, name="sink")

    @property
    def addresses(self) -> list[str]:
        """The IPv4 addresses of this machine."""
        found = [address for addresses in psutil.net_if_addrs().values() for address in addresses]
        return sorted({address.address for address in found if address.family == socket.AF_INET})

    def _open(self, kind: socket.SocketKind, address: str, port: int) -> socket.socket:
        opened = socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET, kind)
        try:
            if ":" in address:
                opened.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
            opened.bind((address, port))
        except OSError:
            opened.close()
            raise
        if kind is socket.SOCK_STREAM:
            opened.listen()
        self._selector.register(opened, selectors.EVENT_READ)
        return opened

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_exc: object) -> None:
        self._closing.set()
        self._thread.join()
        for key in list(self._selector.get_map().values()):
            key.fileobj.close()  # type: ignore[union-attr]
        self._selector.close()

    def _count(self) -> None:
        while not self._closing.is_set():
            for key, _ in self._selector.select(0.2):
                opened = key.fileobj
                assert isinstance(opened, socket.socket)
                if opened.type is socket.SOCK_STREAM:
                    peer, address = opened.accept()
                    peer.close()
                    self.hits.append(f"TCP from {address[0]}")
                else:
                    said, address = opened.recvfrom(2000)
                    self.hits.append(f"UDP from {address[0]}: {said[:60]!r}")
