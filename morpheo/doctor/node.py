"""This machine: its data folder, disk, ports and passwords."""

from __future__ import annotations

import errno
import os
import shutil
import socket
import stat
import tempfile
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from urllib.parse import urlsplit

import psutil
import requests
from sqlalchemy import make_url

from morpheo.config import DEV_PASSWORD, Settings
from morpheo.doctor.findings import Check, Finding, fail, is_local, ok, warn
from morpheo.resources import disk_marks
from morpheo.spool import FILE_NAME, Spool

#: Where the services listen, and what shows that it is them.
PORTS = {"compute-api": 8081, "storage-api": 8082, "orchestrator-api": 8083, "flower": 8085}
#: How long a service may take to answer, in seconds.
TIMEOUT_S = 3.0

_HEALTH = {**dict.fromkeys(PORTS, "/health"), "flower": "/healthcheck"}


def checks(settings: Settings, *, ports: Mapping[str, int] = PORTS) -> list[Check]:
    """Return the checks of this machine."""
    return [
        Check(name="node.data", run=partial(_check_data, settings)),
        Check(name="node.spool", run=partial(_check_spool, settings), needs=("node.data",)),
        Check(name="node.disk", run=partial(_check_disk, settings), needs=("node.data",)),
        *(Check(name=f"node.port-{port}", run=partial(_check_port, name, port)) for name, port in ports.items()),
        Check(name="node.passwords", run=partial(_check_passwords, settings)),
    ]


def _check_data(settings: Settings) -> Finding:
    folder = settings.data_dir
    try:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        with tempfile.TemporaryFile(dir=folder) as file:
            file.write(b"ok")
    except OSError as exc:
        fix = f"`mkdir -p {folder} && chown $(id -u) {folder} && chmod 700 {folder}`, or set MORPHEO_DATA_DIR"
        return fail(f"{folder} cannot be written: {exc.strerror}", _room(folder) if exc.errno == errno.ENOSPC else fix)
    mode = stat.S_IMODE(folder.stat().st_mode)
    if mode & stat.S_IRWXO:
        return fail(
            f"every user of this machine can enter {folder} (mode {mode:o}), where targets are kept",
            f"`chmod 700 {folder}`",
        )
    return ok(f"{folder}, mode {mode:o}")


def _check_spool(settings: Settings) -> Finding:
    waiting = len(Spool(settings.data_dir / FILE_NAME).waiting())
    if waiting:
        fix = "nothing, if the database answers and a worker runs on this machine: it writes them within seconds"
        return warn(f"{waiting} ends of jobs wait on this machine until the database takes them", fix)
    return ok("no end of a job waits for the database")


def _check_disk(settings: Settings) -> Finding:
    """
    Compare the free room with what jobs may need.

    An attempt unpacks a build context, and leaves a model and a prediction, each with its own limit; the model is there
    twice for a moment.
    """
    folder = settings.data_dir
    usage = shutil.disk_usage(folder)
    kept = disk_marks(settings).high_free(usage.total)
    free = max(0, usage.free - kept)
    one = settings.context_bytes + 2 * settings.model_bytes + settings.prediction_bytes
    every = one * settings.jobs_at_once
    fix = _room(folder)
    said = f"{free >> 20} MiB are free in {folder} above the {kept >> 20} MiB of MORPHEO_DISK_HIGH"
    if free < one:
        return fail(f"{said}; one job at the limits of its settings takes {one >> 20} MiB", fix)
    if free < every:
        return warn(f"{said}; {settings.jobs_at_once} jobs at their limits take {every >> 20} MiB", fix)
    inodes = os.statvfs(folder)
    if inodes.f_files and inodes.f_favail < settings.context_entries:
        return fail(f"only {inodes.f_favail} more files fit into {folder}", "remove small files: `df -i`")
    return ok(f"{said}, one job takes at most {one >> 20} MiB")


def _room(folder: Path) -> str:
    return f"make room (`du -xh {folder} | sort -h | tail`), or set MORPHEO_DATA_DIR to a larger disk"


def _check_port(name: str, port: int) -> Finding:
    try:
        socket.create_connection(("127.0.0.1", port), timeout=TIMEOUT_S).close()
    except OSError:
        return ok(f"free for {name}")
    try:
        answer = requests.get(f"http://127.0.0.1:{port}{_HEALTH[name]}", timeout=TIMEOUT_S)
        if "database" in answer.text or answer.text == "OK":
            return ok(f"{name} answers")
    except requests.RequestException:
        pass
    return fail(
        f"port {port}, where {name} listens, is taken by {_listener(port)}",
        f"stop it, or start {name} with another `--port` (`morpheo dev --{name.removesuffix('-api')}-port`)",
    )


def _listener(port: int) -> str:
    for connection in psutil.net_connections(kind="tcp"):
        # The port is the second of the address, which psutil's types do not say.
        if connection.status == psutil.CONN_LISTEN and connection.laddr[1:] == (port,) and connection.pid:
            return f"{psutil.Process(connection.pid).name()} (process {connection.pid})"
    return f"a process of another user (`ss -ltnp sport = :{port}` as root shows it)"


def _check_passwords(settings: Settings) -> Finding:
    if settings.password.get_secret_value() not in (DEV_PASSWORD, "password", settings.user):
        return ok("that of the settings' user is no word that everybody knows")
    cause = f"the APIs let in user {settings.user} as an admin with a password that everybody knows"
    fix = "MORPHEO_USER=NAME and MORPHEO_PASSWORD=$(openssl rand -base64 24), the same for every service"
    # A stack that is all on this machine may be somebody's laptop; its APIs listen on loopback unless told otherwise.
    return warn(cause, fix) if _is_alone(settings) else fail(cause, fix)


def _is_alone(settings: Settings) -> bool:
    database = make_url(settings.database)
    host = database.host or str(database.query.get("host", ""))
    return all(map(is_local, (urlsplit(settings.broker).hostname, host, settings.s3_endpoint.partition(":")[0])))
