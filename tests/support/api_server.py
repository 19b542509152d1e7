"""The real APIs as child processes, and raw sockets to speak with them."""

from __future__ import annotations

import os
import re
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import requests

from morpheo.client import StorageClient
from morpheo.config import Settings
from morpheo.storage.database import Database
from morpheo.storage.migrate import upgrade
from tests.support.services import child, free_port, wait_until


@dataclass(frozen=True)
class Server:
    """A running service."""

    url: str
    port: int
    process: subprocess.Popen[bytes]
    data_dir: Path

    @property
    def storage(self) -> StorageClient:
        """A new client of a storage API."""
        return StorageClient(self.url, user="u", password="p")

    def pids(self) -> list[int]:
        """Return the ids of the server's processes."""
        children = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children").read_text().split()
        return [self.process.pid, *map(int, children)]

    def connect(self) -> socket.socket:
        """Open a connection."""
        return socket.create_connection(("127.0.0.1", self.port), timeout=20)

    def blobs(self) -> list[Path]:
        """Return all files of a storage API's blob store, finished or not."""
        folders = (self.data_dir / "blobs", self.data_dir / "incoming")
        return sorted(path for folder in folders for path in folder.rglob("*") if path.is_file())


def environment(data_dir: Path, **settings: str) -> dict[str, str]:
    """Return an environment with these settings and no others."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("MORPHEO_")}
    return {
        **kept,
        "MORPHEO_DATA_DIR": str(data_dir),
        "MORPHEO_USER": "u",
        "MORPHEO_PASSWORD": "p",
        **{f"MORPHEO_{name.upper()}": text for name, text in settings.items()},
    }


def morpheo(*arguments: str) -> list[str]:
    """Return the command line of a command of the project."""
    return [sys.executable, "-m", "morpheo", *arguments]


def migrate(data_dir: Path) -> None:
    """Make the tables."""
    database = Database(Settings(data_dir=data_dir).database)
    upgrade(database)
    database.close()


@contextmanager
def serving(command: str, data_dir: Path, **settings: str) -> Iterator[Server]:
    """Run an API on the tables and blobs of a folder."""
    port = free_port()
    log = data_dir / f"{command}-{port}.log"
    with child(morpheo(command, "--port", str(port)), log, env=environment(data_dir, **settings)) as process:
        server = Server(f"http://127.0.0.1:{port}", port, process, data_dir)

        def answers() -> bool:
            assert process.poll() is None, log.read_text()[-2000:]
            try:
                return requests.get(server.url + "/health", timeout=5).status_code == 200
            except requests.ConnectionError:
                return False

        wait_until(answers, what=command)
        yield server


def head(path: str, *headers: str, method: str = "POST", password: str = "dTpw") -> bytes:
    """Return the head of a request."""
    lines = [f"{method} {path} HTTP/1.1", "Host: x", f"Authorization: Basic {password}", *headers]
    return "\r\n".join([*lines, "", ""]).encode()


def chunk(content: bytes) -> bytes:
    """Return one chunk of a chunked body."""
    return f"{len(content):x}\r\n".encode() + content + b"\r\n"


def receive(peer: socket.socket) -> tuple[int, bytes]:
    """Read to the end; return the status (0 is none) and all that was received."""
    received = b""
    try:
        while piece := peer.recv(1 << 16):
            received += piece
    except ConnectionResetError:
        pass
    match = re.match(rb"HTTP/1\.1 (\d{3}) ", received)
    return int(match[1]) if match else 0, received


def talk(server: Server, content: bytes, *, half_close: bool = True) -> tuple[int, bytes]:
    """Send bytes, and return the status (0 is none) and the whole answer."""
    with server.connect() as peer:
        peer.sendall(content)
        if half_close:
            peer.shutdown(socket.SHUT_WR)
        return receive(peer)
