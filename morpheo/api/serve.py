"""Serves an API with gunicorn."""

from __future__ import annotations

import logging
import os
import resource
import ssl
import threading
from collections.abc import Callable, Mapping
from contextlib import closing
from datetime import timedelta
from typing import Any

from flask import Flask
from gunicorn.app.base import BaseApplication
from gunicorn.config import Config
from gunicorn.glogging import Logger

from morpheo import logs, metrics
from morpheo.accounts import Accounts
from morpheo.api.app import AT_START
from morpheo.api.connections import PatientWorker
from morpheo.api.following import STOPPING
from morpheo.config import Settings
from morpheo.errors import SettingsError
from morpheo.storage.database import Database

#: File descriptors of a process: more than the 1000 connections that gunicorn lets it have.
MAX_FILES = 4096
#: Asked again and again by machines: not worth a line each.
_PROBES = frozenset({"/health", "/metrics"})


class _Server(BaseApplication):
    def __init__(self, factory: Callable[[], Flask], options: dict[str, Any]) -> None:
        self._factory = factory
        self._options = options
        super().__init__()

    def load_config(self) -> None:
        for name, value in self._options.items():
            self.cfg.set(name, value)

    def load(self) -> Flask:
        return self._factory()


class _Logger(Logger):
    """gunicorn's log of errors and of requests, written as all the others."""

    def setup(self, cfg: Config) -> None:
        self.cfg = cfg
        self.error_log.propagate = self.access_log.propagate = True

    def access(self, resp: Any, _req: object, environ: Mapping[str, Any], request_time: timedelta) -> None:
        level = logging.DEBUG if environ.get("PATH_INFO") in _PROBES else logging.INFO
        status = str(resp.status).partition(" ")[0]
        extra = {"seconds": request_time.total_seconds(), "bytes": resp.sent, "remote": environ.get("REMOTE_ADDR")}
        self.access_log.log(level, "%s %s %s", environ["REQUEST_METHOD"], environ["RAW_URI"], status, extra=extra)
        logs.about_nothing()  # the last that is done with a request


def _begin(worker: Any) -> None:
    extensions = worker.app.wsgi().extensions
    # Answers without an end would keep a process that was told to stop for as long as it is let.
    extensions[STOPPING] = lambda: not worker.alive
    if AT_START in extensions:
        threading.Thread(target=extensions[AT_START], name="at start", daemon=True).start()


def _tls(settings: Settings) -> dict[str, Any]:
    if bool(settings.tls_certificate) != bool(settings.tls_key):
        raise SettingsError("MORPHEO_TLS_CERTIFICATE and MORPHEO_TLS_KEY go together; set both, or none for plain HTTP")
    if not settings.tls_certificate:
        return {}
    for name in (settings.tls_certificate, settings.tls_key):
        if not os.access(name, os.R_OK):
            raise SettingsError(f"the file {name} of MORPHEO_TLS_CERTIFICATE or MORPHEO_TLS_KEY cannot be read")
    return {"certfile": settings.tls_certificate, "keyfile": settings.tls_key, "ssl_context": _context}


def _context(_config: Config, default: Callable[[], ssl.SSLContext]) -> ssl.SSLContext:
    context = default()
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    return context


def _allow_files() -> None:
    """Let this process and its children have as many connections as they are allowed to."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    limit = MAX_FILES if most == resource.RLIM_INFINITY else min(most, MAX_FILES)
    resource.setrlimit(resource.RLIMIT_NOFILE, (limit, most))


def serve(factory: Callable[[], Flask], settings: Settings, *, host: str, port: int, reload: bool = False) -> None:
    """
    Serve until told to stop by a signal.

    Args:
        factory: Makes the application, in each process of the server.
        settings: How many processes and threads.
        host: Address to listen at.
        port: Port to listen at.
        reload: Start again when the code changes.

    Raises:
        SettingsError: nobody could log in, or a file is missing.
        DatabaseUnavailable: nobody is in the settings, and it is not known who is in the database.
    """
    options = {
        "bind": f"{host}:{port}",
        "worker_class": PatientWorker,
        "workers": settings.api_processes,
        "threads": settings.api_threads,
        "timeout": 120,
        "graceful_timeout": int(settings.stop_grace_s),
        "keepalive": 5,
        "sendfile": False,  # it waits for a client as long as the client likes
        "logger_class": _Logger,
        "reload": reload,
        "control_socket_disable": True,
        # What forwarded headers say is for `trusted_proxies` alone to decide, also if they come from this machine.
        "forwarded_allow_ips": "",
        **_tls(settings),
        "post_worker_init": _begin,
    }
    with closing(Database(settings.database)) as database:
        Accounts(database).require_somebody(settings.password.get_secret_value())
    logs.configure(settings)
    _allow_files()
    metrics.share_between_processes()
    _Server(factory, options).run()
