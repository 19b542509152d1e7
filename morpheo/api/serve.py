"""Serves an API with gunicorn."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from datetime import timedelta
from typing import Any

from flask import Flask
from gunicorn.app.base import BaseApplication
from gunicorn.config import Config
from gunicorn.glogging import Logger

from morpheo import logs, metrics
from morpheo.config import Settings

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


def serve(factory: Callable[[], Flask], settings: Settings, *, host: str, port: int, reload: bool = False) -> None:
    """
    Serve until told to stop by a signal.

    Args:
        factory: Makes the application, in each process of the server.
        settings: How many processes and threads.
        host: Address to listen at.
        port: Port to listen at.
        reload: Start again when the code changes.
    """
    options = {
        "bind": f"{host}:{port}",
        "worker_class": "gthread",
        "workers": settings.api_processes,
        "threads": settings.api_threads,
        "timeout": 120,
        "graceful_timeout": int(settings.stop_grace_s),
        "keepalive": 5,
        "logger_class": _Logger,
        "reload": reload,
        "control_socket_disable": True,
    }
    logs.configure(settings)
    metrics.share_between_processes()
    _Server(factory, options).run()
