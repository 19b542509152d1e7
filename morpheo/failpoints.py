"""
Places where tests make a process die, stand still or fail, as power cuts and bugs do at worse times.

`failpoint` does nothing unless the environment variable MORPHEO_FAILPOINTS names a folder. A file in it that has the
name of a failpoint holds what happens to the first process that comes there; it is renamed to ``NAME.hit`` by then,
so it happens once. A file ``NAME.always`` stays, and it happens each time.

====== ==================================================================
kill   the process and its process group (a worker with all its children) are killed
die    this process alone is killed
stop   the process group is stopped, until it gets SIGCONT
hold   this thread waits until the folder has a file ``NAME.go``
raise  `FailpointError` is raised
====== ==================================================================
"""

from __future__ import annotations

import os
import signal
import threading
import time
from contextlib import suppress
from pathlib import Path

#: The folder, None if no failpoint does anything.
FOLDER = os.environ.get("MORPHEO_FAILPOINTS")
#: Names of all failpoints, and where they are.
FAILPOINTS = {
    "received": "the worker has a message",
    "before_claim": "the transaction that claims the job is about to begin",
    "after_claim": "the job is claimed",
    "after_download": "a blob was fetched or linked",
    "after_build": "an image is built, its tag is to be set",
    "after_create": "a container is made",
    "after_start": "a container is started",
    "in_wait": "a container is waited for",
    "after_exit": "a container has ended",
    "after_harvest": "the outputs are copied and checked",
    "in_upload": "the model or prediction is about to be sent",
    "after_upload": "the model or prediction is stored, and no row names it",
    "in_commit": "the transaction that ends the job is about to be committed",
    "after_commit": "the end of the job is committed",
    "before_ack": "the job is over, its message is not acknowledged",
    "before_publish": "jobs are queued and committed, and no message tells of them",
    "before_row": "the blob of an upload is stored, its row is not written",
    "in_recovery": "the transaction that recovers a lost job is about to be committed",
}
ACTIONS = ("kill", "die", "stop", "hold", "raise")
#: How often a held thread looks whether it may go on, in seconds.
_POLL_S = 0.02


class FailpointError(Exception):
    """What the action ``raise`` raises."""


def failpoint(name: str) -> None:
    """
    Do what a test asked for at this place.

    Args:
        name: One of `FAILPOINTS`.

    Raises:
        FailpointError: the action is ``raise``.
    """
    if FOLDER is not None:
        _reach(Path(FOLDER), name)


def _reach(folder: Path, name: str) -> None:
    try:
        (folder / name).rename(folder / f"{name}.hit")
        action = (folder / f"{name}.hit").read_text()
    except FileNotFoundError:
        try:
            action = (folder / f"{name}.always").read_text()
        except FileNotFoundError:
            return
    if action == "kill":
        os.killpg(0, signal.SIGKILL)
    elif action == "die":
        os.kill(os.getpid(), signal.SIGKILL)
    elif action == "stop":
        _stop_group()
    elif action == "hold":
        while not (folder / f"{name}.go").exists():
            time.sleep(_POLL_S)
    elif action == "raise":
        raise FailpointError(f"failpoint {name}")
    else:
        raise ValueError(f"failpoint {name}: {action!r} is none of {', '.join(ACTIONS)}")


def _stop_group() -> None:
    # A signal to the group may reach another thread of this process first, while this one goes on and commits.
    group = os.getpgid(0)
    for path in Path("/proc").glob("[0-9]*"):
        with suppress(ProcessLookupError):
            if (pid := int(path.name)) != os.getpid() and os.getpgid(pid) == group:
                os.kill(pid, signal.SIGSTOP)
    signal.pthread_kill(threading.get_ident(), signal.SIGSTOP)
