"""What happens in a worker besides tasks: logging, metrics, files for containers, signs of life, and the sweeper."""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from celery.apps import worker as celery_worker
from celery.bootsteps import RUN  # type: ignore[attr-defined]
from celery.signals import (
    celeryd_init,
    heartbeat_sent,
    setup_logging,
    worker_init,
    worker_process_init,
    worker_ready,
    worker_shutdown,
)
from celery.utils.log import get_multiprocessing_logger
from celery.worker import state
from prometheus_client import start_http_server

from morpheo import logs, metrics
from morpheo.config import PREFIX
from morpheo.models import JobKind
from morpheo.tasks import stopping
from morpheo.tasks.publisher import process_resources

logger = logging.getLogger(__name__)

#: How long the end of a worker waits until that is recorded, in seconds.
LAST_WORDS_S = 5.0

_stop = threading.Event()
_awaited: list[threading.Thread] = []


@celeryd_init.connect  # before the first warning
@setup_logging.connect
def configure_logging(**_kwargs: Any) -> None:
    """Log as Morpheo's settings say, not as Celery would."""
    logs.configure(process_resources().settings)
    if (pool := get_multiprocessing_logger()) is not None:
        pool.propagate = True  # or it writes past `logging` that a process was killed


@worker_init.connect
def prepare_worker(sender: Any, **_kwargs: Any) -> None:
    """Let the pool's processes count together, and bring what Celery prints into a log of JSON."""
    metrics.share_between_processes()
    if process_resources().settings.log == "json":
        sender.quiet = True  # no banner
        celery_worker.safe_say = lambda text, _=None: logger.info(text.strip())  # type: ignore[attr-defined]


@worker_init.connect
def prepare_to_stop(sender: Any, **_kwargs: Any) -> None:
    """Let a node that is told to stop end with its jobs, if these end before the grace does."""
    stopping.make_file()
    grace_s = process_resources().settings.stop_grace_s

    def wait() -> None:
        if grace_s and state.active_requests:
            stopping.wait_for_jobs(grace_s)

    sender.wait_for_soft_shutdown = wait


@worker_init.connect
def reconcile(**_kwargs: Any) -> None:
    """Put this machine in order before it takes work: what a worker could not write, and what one left behind."""
    resources = process_resources()
    resources.contact.commit_kept()
    resources.sweeper.reconcile()


@worker_process_init.connect
def prepare_process(**_kwargs: Any) -> None:
    """Make a pool process write files that containers can read."""
    os.umask(0o022)


@worker_ready.connect
def serve_metrics(sender: Any, **_kwargs: Any) -> None:
    """Serve what Prometheus is told, from a thread of the worker's main process; jobs do not depend on it."""
    resources = process_resources()
    host, port = resources.settings.metrics_host, resources.settings.metrics_port
    if not port:
        return
    if sender.hostname.startswith(f"{JobKind.PREDICT}@"):  # `morpheo worker` has a node for each kind of job
        port += 1
    try:
        start_http_server(port, host, resources.metrics)
    except (OSError, OverflowError) as exc:
        hint = f"set {PREFIX}METRICS_PORT to a free one and start the worker again"
        logger.error("no metrics: port %d of %s cannot be used (%s); %s", port, host, exc, hint)  # noqa: TRY400


@worker_ready.connect
def start_sweeping(**_kwargs: Any) -> None:
    """Sweep from threads of the worker's main process."""
    resources = process_resources()
    resources.sweeper.start(_stop, every_s=resources.settings.sweep_s)


@worker_ready.connect
def start_contact(sender: Any, **_kwargs: Any) -> None:
    """Say from another thread that this node is there, and write the ends that wait for the database."""

    def queues() -> Iterable[str]:
        # One that is drained, or has lost its broker, takes nothing.
        return sender.app.amqp.queues.consume_from if sender.blueprint.state == RUN else ()

    kwargs = {"name": sender.hostname, "queues": queues}
    thread = threading.Thread(
        target=process_resources().contact.run, args=(_stop,), kwargs=kwargs, name="contact", daemon=True
    )
    thread.start()
    _awaited.append(thread)


@worker_ready.connect
def start_reporting(**_kwargs: Any) -> None:
    """Report to an outside orchestrator from another thread, so that its silence delays no sweep."""
    if (reporter := process_resources().reporter) is not None:
        threading.Thread(target=reporter.run, args=(_stop,), name="reporter", daemon=True).start()


@worker_shutdown.connect
def stop_threads(**_kwargs: Any) -> None:
    """Let the threads end with the worker; the one that says that it has ended is waited for."""
    _stop.set()
    for thread in _awaited:
        thread.join(LAST_WORDS_S)


@heartbeat_sent.connect
def show_life(sender: Any, **_kwargs: Any) -> None:
    """Touch this node's file: its loop turns, and its broker listens."""
    if folder := process_resources().settings.alive_dir:
        Path(folder).mkdir(parents=True, exist_ok=True)
        Path(folder, sender.eventer.hostname).touch()


@worker_shutdown.connect
def end_life(sender: Any, **_kwargs: Any) -> None:
    """Remove this node's file: it is not ill, it has ended."""
    if folder := process_resources().settings.alive_dir:
        Path(folder, sender.hostname).unlink(missing_ok=True)
