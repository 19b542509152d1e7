"""What happens in a worker besides tasks: logging, files that containers can read, signs of life, and the sweeper."""

from __future__ import annotations

import logging
import os
import threading
from pathlib import Path
from typing import Any

from celery.signals import heartbeat_sent, setup_logging, worker_process_init, worker_ready, worker_shutdown

from morpheo.tasks.publisher import process_resources

_stop_sweeping = threading.Event()


@setup_logging.connect
def configure_logging(**_kwargs: Any) -> None:
    """Log as Morpheo's settings say, not as Celery would."""
    logging.basicConfig(
        level=process_resources().settings.log_level, format="%(asctime)s %(levelname)s %(name)s %(message)s"
    )


@worker_process_init.connect
def prepare_process(**_kwargs: Any) -> None:
    """Make a pool process write files that containers can read."""
    os.umask(0o022)


@worker_ready.connect
def start_sweeping(**_kwargs: Any) -> None:
    """Sweep from a thread of the worker's main process."""
    resources = process_resources()
    threading.Thread(
        target=resources.sweeper.run,
        args=(_stop_sweeping,),
        kwargs={"every_s": resources.settings.sweep_s},
        name="sweeper",
        daemon=True,
    ).start()


@worker_shutdown.connect
def stop_sweeping(**_kwargs: Any) -> None:
    """Let the sweeper end with the worker."""
    _stop_sweeping.set()


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
