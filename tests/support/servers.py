"""Servers and processes that tests kill, stop and start again, at the same address and with the same data."""

from __future__ import annotations

import contextlib
import json
import os
import random
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import psutil
import psycopg
import requests

from tests.support.services import S3Server, postgres_bin, redis_binary, weed_binary

#: A message that is lost costs a minute (`morpheo.sweeper.REPUBLISH_S`), and what comes then takes its time.
PATIENCE_S = 90
#: Pause between two looks, in seconds: what looks all the time takes the processors from what it waits for.
_POLL_S = 0.1
#: Not the one that pytest-randomly seeds: another rig on this machine would get the same ports.
_random = random.SystemRandom()
_given: set[int] = set()


def wait_until(condition: Callable[[], bool], *, timeout_s: float = PATIENCE_S, what: str = "the condition") -> None:
    """Poll until a condition holds, or fail the test."""
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, f"{what} did not hold within {timeout_s} s"
        time.sleep(_POLL_S)


def lasting_port() -> int:
    """
    Return a port that nothing listens on, nor on the one 10,000 above (SeaweedFS takes it for gRPC).

    No connection gets it as its own, so it is still free when a server that was killed is started again. Those of two
    calls do not meet, nor those of two processes of a run with pytest-xdist.
    """
    first = int(Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()[0])
    highest = min(first, 32_000) - 10_000
    process = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw"))
    while True:
        port = _random.randrange(highest - 10_000 + process % 10, highest, 10)
        with socket.socket() as one, socket.socket() as other, contextlib.suppress(OSError):
            one.bind(("127.0.0.1", port))
            other.bind(("127.0.0.1", port + 10_000))
            if port not in _given:
                _given.add(port)
                return port


class Server:
    """
    A program in a process group of its own.

    Args:
        name: For its log and for messages.
        command: What runs.
        folder: Its current folder, with its log.
        ready: Whether it can be used.
        environment: Its environment, this process's own if None.
        as_user: Arguments of `subprocess.Popen` that say who runs it.
    """

    def __init__(
        self,
        name: str,
        command: list[str],
        folder: Path,
        ready: Callable[[], bool],
        *,
        environment: Mapping[str, str] | None = None,
        as_user: Mapping[str, Any] | None = None,
    ) -> None:
        self.name = name
        self.command = command
        self.folder = folder
        self.environment = environment
        self.log = folder / f"{name}.log"
        self._ready = ready
        self._as_user = as_user or {}
        self._process: subprocess.Popen[bytes] | None = None
        #: Where the log of the present process begins.
        self.log_start = 0

    @property
    def pid(self) -> int:
        """Id of the process and of its group."""
        assert self._process is not None
        return self._process.pid

    @property
    def is_running(self) -> bool:
        """Whether the process is there, stopped or not."""
        return self._process is not None and self._process.poll() is None

    def children(self) -> list[psutil.Process]:
        """Return the processes that it has started."""
        with contextlib.suppress(psutil.NoSuchProcess, AssertionError):
            return psutil.Process(self.pid).children()
        return []

    def start(self, *, wait: bool = True, environment: Mapping[str, str] | None = None) -> None:
        """Start it if it does not run, and wait until it can be used."""
        if not self.is_running:
            # Of one that died, children may be left that hold its address.
            self._signal_group(signal.SIGKILL)
            self.log_start = self.log.stat().st_size if self.log.exists() else 0
            with self.log.open("ab") as output:
                self._process = subprocess.Popen(
                    self.command,
                    stdout=output,
                    stderr=output,
                    cwd=self.folder,
                    env=environment or self.environment,
                    start_new_session=True,
                    **self._as_user,
                )
        if wait:
            self.wait_ready()

    def wait_ready(self) -> None:
        """Wait until it can be used."""

        def ready() -> bool:
            assert self.is_running, f"{self.name} has ended: {self.new_log()[-3000:]}"
            return self._ready()

        wait_until(ready, timeout_s=PATIENCE_S, what=self.name)

    def new_log(self) -> str:
        """Return what the present process has logged."""
        with self.log.open(errors="replace") as file:
            file.seek(self.log_start)
            return file.read()

    def kill(self) -> None:
        """Kill it with all its children."""
        self._signal_group(signal.SIGKILL)
        if self._process is not None:
            self._process.wait(PATIENCE_S)

    def stop(self, number: signal.Signals = signal.SIGTERM, *, timeout_s: float = PATIENCE_S) -> int:
        """End it by a signal, and return its exit status."""
        if self._process is None:
            return 0
        self.resume()
        if self.is_running:
            self._process.send_signal(number)
        return self.wait_ended(timeout_s=timeout_s)

    def wait_ended(self, *, timeout_s: float = PATIENCE_S) -> int:
        """Wait until it has ended, and return its exit status."""
        return 0 if self._process is None else self._process.wait(timeout_s)

    def send(self, number: signal.Signals) -> None:
        """Send a signal to the process alone."""
        assert self._process is not None
        self._process.send_signal(number)

    def pause(self) -> None:
        """Stop it and its children for a while."""
        self._signal_group(signal.SIGSTOP)

    def resume(self) -> None:
        """Let it go on after `pause`."""
        self._signal_group(signal.SIGCONT)

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """Stop it and its children during a block."""
        self.pause()
        try:
            yield
        finally:
            self.resume()

    def _signal_group(self, number: signal.Signals) -> None:
        if self._process is not None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._process.pid, number)

    def heal(self) -> None:
        """Make it run and answer, whatever was done to it."""
        self.resume()  # a failpoint may have stopped it, too
        self.start(wait=False)


class Redis(Server):
    """Redis, which keeps its data as the deployment does: an append-only file, written every second."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir()
        binary = redis_binary()
        assert binary is not None
        self.port = lasting_port()
        self.data = folder / "data"
        self.data.mkdir()
        command = [binary, "--port", str(self.port), "--bind", "127.0.0.1", "--dir", str(self.data)]
        command += ["--save", "", "--appendonly", "yes", "--maxmemory-policy", "noeviction"]
        super().__init__("redis", command, folder, self._answers)

    @property
    def address(self) -> str:
        """Where it listens."""
        return f"127.0.0.1:{self.port}"

    def ask(self, *words: str) -> bytes:
        """Send one command on a connection of its own; return the answer as it comes, which must be short."""
        request = f"*{len(words)}\r\n" + "".join(f"${len(word.encode())}\r\n{word}\r\n" for word in words)
        with socket.create_connection(("127.0.0.1", self.port), timeout=PATIENCE_S) as peer:
            peer.sendall(request.encode())
            return peer.recv(1 << 16)

    def count(self, *words: str) -> int:
        """Return the answer of a command that counts, such as ``LLEN learn``."""
        answer = self.ask(*words)
        assert answer.startswith(b":"), answer
        return int(answer[1:])

    def forget(self) -> None:
        """Kill it, and lose all that it kept."""
        self.kill()
        shutil.rmtree(self.data)
        self.data.mkdir()

    def _answers(self) -> bool:
        try:
            return self.ask("PING").startswith(b"+PONG")
        except OSError:
            return False


def _works(process: psutil.Process) -> bool:
    """Return whether a process is there and has not ended, reaped or not."""
    with contextlib.suppress(psutil.NoSuchProcess):
        return bool(process.status() != psutil.STATUS_ZOMBIE)
    return False


class Postgres(Server):
    """PostgreSQL that writes to disk what it commits."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir()
        binaries = postgres_bin()
        assert binaries is not None
        self.port = lasting_port()
        as_user: dict[str, Any] = {}
        if os.getuid() == 0:  # PostgreSQL refuses to run as root; its package made a user
            shutil.chown(folder, "postgres", "postgres")
            as_user = {"user": "postgres", "group": "postgres", "extra_groups": []}
        data = folder / "data"
        make = [str(binaries / "initdb"), "-D", str(data), "-U", "postgres", "--auth=trust", "--no-sync"]
        subprocess.run(make, check=True, capture_output=True, cwd=folder, **as_user)
        options = {
            "unix_socket_directories": str(folder),
            "listen_addresses": "127.0.0.1",
            "port": str(self.port),
            "fsync": "on",
            "max_connections": "60",
        }
        command = [str(binaries / "postgres"), "-D", str(data)]
        command += [argument for name, value in options.items() for argument in ("-c", f"{name}={value}")]
        super().__init__("postgres", command, folder, self._answers, as_user=as_user)

    @property
    def address(self) -> str:
        """Where it listens."""
        return f"127.0.0.1:{self.port}"

    @property
    def url(self) -> str:
        """Its address for SQLAlchemy, without a proxy."""
        return f"postgresql+psycopg://postgres@{self.address}/postgres"

    def connect(self) -> psycopg.Connection[tuple[Any, ...]]:
        """Return a connection that commits each statement."""
        return psycopg.connect(
            host="127.0.0.1", port=self.port, user="postgres", dbname="postgres", autocommit=True, connect_timeout=60
        )

    def query(self, statement: str, *values: Any) -> list[tuple[Any, ...]]:
        """Return the rows of a query, on a connection of its own."""
        with self.connect() as connection:
            return connection.execute(statement, values).fetchall()

    def kill(self) -> None:
        """Kill it with all its children, and wait for these too: they hold the memory that a new one would share."""
        children = self.children()
        super().kill()
        wait_until(lambda: not any(map(_works, children)), what="the end of its children")

    def _signal_group(self, number: signal.Signals) -> None:
        # Its children make groups of their own.
        for process in self.children():
            with contextlib.suppress(psutil.NoSuchProcess):
                process.send_signal(number)
        super()._signal_group(number)

    def _answers(self) -> bool:
        try:
            self.connect().close()
        except psycopg.OperationalError:
            return False
        return True


class S3(Server):
    """An S3 server."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir()
        binary = weed_binary()
        assert binary is not None
        ports = {name: lasting_port() for name in ("master", "volume", "filer", "s3")}
        self.port = ports["s3"]
        identity = {
            "name": "tests",
            "credentials": [{"accessKey": S3Server.access_key, "secretKey": S3Server.secret_key}],
            "actions": ["Admin", "Read", "Write", "List", "Tagging"],
        }
        (folder / "s3.json").write_text(json.dumps({"identities": [identity]}))
        (folder / "data").mkdir()
        command = [str(binary), "server", f"-dir={folder / 'data'}", "-ip=127.0.0.1", "-s3"]
        command += [f"-s3.config={folder / 's3.json'}", "-master.volumeSizeLimitMB=64", "-volume.max=100"]
        command += [f"-{name}.port={port}" for name, port in ports.items()]
        command += ["-s3.port.iceberg=0", "-s3.port.lance=0"]
        super().__init__("s3", command, folder, self._answers)

    @property
    def address(self) -> str:
        """Where it listens."""
        return f"127.0.0.1:{self.port}"

    def _answers(self) -> bool:
        try:
            return requests.get(f"http://{self.address}/", timeout=2).status_code in (200, 403)
        except requests.RequestException:
            return False
