"""How a node ends that was told to stop: as soon as its jobs have, and when the grace is over at the latest."""

from __future__ import annotations

import atexit
import contextlib
import fcntl
import logging
import os
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

logger = logging.getLogger(__name__)

#: How often one looks whether jobs still run, in seconds.
LOOK_S = 0.5
#: Environment variable: the file that each process of a node has locked while it runs a job.
_FILE = "_MORPHEO_AT_WORK"


def make_file() -> None:
    """Make the file for this process, and for those that it starts; it goes when this process ends."""
    descriptor, path = tempfile.mkstemp(prefix="morpheo-at-work-")
    os.close(descriptor)
    atexit.register(Path(path).unlink, missing_ok=True)
    os.environ[_FILE] = path


@contextlib.contextmanager
def at_work() -> Iterator[None]:
    """Let a node that is told to stop wait; a process that is killed is not waited for."""
    with contextlib.ExitStack() as stack:
        with contextlib.suppress(KeyError, OSError):  # no reason to refuse a job
            file = stack.enter_context(Path(os.environ[_FILE]).open("rb"))
            fcntl.flock(file, fcntl.LOCK_SH)
        yield


def wait_for_jobs(grace_s: float) -> None:
    """
    Return when no process of this node is `at_work`, or the grace (in seconds) is over.

    Celery's own waiting always takes the whole grace.
    """
    logger.warning("told to stop: jobs have %g s to end, then they are given back", grace_s)
    give_up = time.monotonic() + grace_s
    while (left_s := give_up - time.monotonic()) > 0:
        time.sleep(min(LOOK_S, left_s))  # before the first look, too: a job may be about to begin
        if not _anybody_at_work():
            break


def _anybody_at_work() -> bool:
    try:
        with Path(os.environ[_FILE]).open("rb") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:  # somebody has it, or nobody knows
        return True
    return False
