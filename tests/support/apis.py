"""The three APIs in threads of this process, in front of a node with a fake engine that does their jobs."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager

from flask import Flask
from werkzeug.serving import make_server

from morpheo.api.compute import create_compute_app
from morpheo.api.orchestrator import create_orchestrator_app
from morpheo.api.storage import create_storage_app
from morpheo.resources import Resources
from tests.support.workbench import Workbench

_APIS: dict[str, Callable[[Resources], Flask]] = {
    "compute": create_compute_app,
    "orchestrator": create_orchestrator_app,
    "storage": create_storage_app,
}


@contextmanager
def serving_node(bench: Workbench, *, working: bool = True) -> Iterator[dict[str, str]]:
    """
    Serve the APIs of a node on loopback, and run its jobs as they are published; gives the addresses by name.

    Args:
        bench: The node.
        working: Whether a worker runs its jobs.
    """
    with ExitStack() as stack:
        urls = {name: stack.enter_context(_serving(create(bench.resources))) for name, create in _APIS.items()}
        if working:
            stack.enter_context(_worker(bench))
        yield urls


@contextmanager
def _serving(app: Flask) -> Iterator[str]:
    server = make_server("127.0.0.1", 0, app, threaded=True)
    with _thread(lambda: server.serve_forever(poll_interval=0.02)):
        try:
            yield f"http://127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()
            server.server_close()


@contextmanager
def _worker(bench: Workbench) -> Iterator[None]:
    stop = threading.Event()

    def work() -> None:
        while not stop.wait(0.01):
            while bench.publisher.published:
                bench.resources.runner.run(bench.publisher.published.pop(0))

    with _thread(work):
        try:
            yield
        finally:
            stop.set()


@contextmanager
def _thread(target: Callable[[], None]) -> Iterator[None]:
    thread = threading.Thread(target=target)
    thread.start()
    try:
        yield
    finally:
        thread.join(30)
        assert not thread.is_alive()
