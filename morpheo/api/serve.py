"""Serves an API with gunicorn."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from flask import Flask
from gunicorn.app.base import BaseApplication

from morpheo.config import Settings


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
        "loglevel": settings.log_level.lower(),
        "reload": reload,
        "control_socket_disable": True,
    }
    _Server(factory, options).run()
