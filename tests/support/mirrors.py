"""A piece of the Internet: a network namespace with public addresses, mirrors at them, and what must not be reached."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from uuid import UUID

from tests.support.networks import Namespace, make_namespace
from tests.support.services import wait_until

#: Names and addresses; nothing of this is seen outside of the namespace.
HOSTS = {
    "mirror.example": "151.101.0.223",
    "other.example": "151.101.0.224",
    "inside.example": "10.99.0.1",
    "metadata.example": "169.254.169.254",
    "here.example": "127.0.0.1",
}
#: Answers each request with a line that says what was asked for, in plain text at both ports, and counts what arrives.
_SERVER = """
import socketserver, sys, threading
class Handler(socketserver.StreamRequestHandler):
    def handle(self):
        line = self.rfile.readline().strip()
        with open(sys.argv[1], "ab") as hits:
            hits.write(b"%s:%d %s\\n" % (self.server.host, self.server.server_address[1], line))
        while self.rfile.readline().strip():
            pass
        body = b"from %s: %s\\n" % (self.server.host, line)
        self.wfile.write(b"HTTP/1.1 200 OK\\r\\nContent-Length: %d\\r\\n" % len(body))
        self.wfile.write(b"Connection: close\\r\\n\\r\\n" + body)
class Server(socketserver.ThreadingTCPServer):
    daemon_threads = allow_reuse_address = True
for host, address in zip(sys.argv[2::2], sys.argv[3::2]):
    for port in (80, 443, 6379):
        server = Server((address, port), Handler)
        server.host = host.encode()
        threading.Thread(target=server.serve_forever).start()
print("ready", flush=True)
"""


@dataclass(frozen=True)
class Mirrors:
    """Servers that tell what arrived, and the proxy that reaches them."""

    folder: Path
    proxy_log: Path

    def requests(self, job_id: UUID, *, least: int = 1) -> list[dict[str, Any]]:
        """Return what the proxy has logged of a job, when it has logged enough."""

        def logged() -> list[dict[str, Any]]:
            lines = map(json.loads, self.proxy_log.read_text().splitlines())
            return [line for line in lines if line.get("job") == str(job_id)]

        wait_until(lambda: len(logged()) >= least, what="the proxy's log")
        return logged()

    @property
    def socket(self) -> Path:
        """The proxy's."""
        return self.folder / "proxy" / "proxy.sock"

    def hits(self) -> list[str]:
        """Return what arrived: ``HOST:PORT FIRST-LINE``."""
        path = self.folder / "hits"
        return path.read_text().splitlines() if path.exists() else []


@contextlib.contextmanager
def make_mirrors(folder: Path) -> Iterator[Mirrors]:
    """
    Give mirrors and a `morpheo build-proxy` beside them, in whose list all of `HOSTS` are but ``other.example``.

    Args:
        folder: Empty, with a short path, and open to containers.
    """
    mirrors = Mirrors(folder, folder / "proxy.log")
    (folder / "hosts").write_text("".join(f"{address} {host}\n" for host, address in HOSTS.items()))
    listed = ",".join(host for host in HOSTS if host != "other.example")
    with make_namespace(f"morpheo-{uuid.uuid4().hex[:8]}-world") as world, contextlib.ExitStack() as stack:
        for address in HOSTS.values():
            if address != "127.0.0.1":
                subprocess.run(["ip", "-n", world.name, "address", "add", f"{address}/32", "dev", "lo"], check=True)
        flat = [word for pair in HOSTS.items() for word in pair]
        server = stack.enter_context(
            _running(world, [sys.executable, "-c", _SERVER, str(folder / "hits"), *flat], stdout=subprocess.PIPE)
        )
        assert server.stdout is not None
        assert server.stdout.readline() == b"ready\n"
        command = [sys.executable, "-m", "morpheo", "build-proxy", "--socket", str(mirrors.socket)]
        environment = {**os.environ, "MORPHEO_BUILD_HOSTS": listed, "MORPHEO_LOG": "json"}
        with mirrors.proxy_log.open("wb") as log:
            # In a mount namespace of its own, in which names are looked up in that file.
            hidden = ["unshare", "--mount", "sh", "-c", f'mount --bind {folder}/hosts /etc/hosts && exec "$@"', "sh"]
            stack.enter_context(_running(world, [*hidden, *command], stderr=log, env=environment))
            # Its socket is there before it is listened on.
            wait_until(lambda: b"listening" in mirrors.proxy_log.read_bytes(), what="the proxy")
            yield mirrors


@contextlib.contextmanager
def _running(world: Namespace, command: list[str], **options: object) -> Iterator[subprocess.Popen[bytes]]:
    process = subprocess.Popen([*world.wrapper, *command], **options)  # type: ignore[call-overload]
    try:
        yield process
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait()
        if process.stdout is not None:
            process.stdout.close()
