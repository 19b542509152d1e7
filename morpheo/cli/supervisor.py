"""Runs the nodes of a worker, one for each kind of job, as one process to the outside."""

from __future__ import annotations

import contextlib
import ctypes
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping

from morpheo.cli.common import err

#: Handed on to the nodes; Celery knows what each of them means.
FORWARDED = (signal.SIGTERM, signal.SIGINT, signal.SIGQUIT)
#: See prctl(2).
_PR_SET_PDEATHSIG = 1


def supervise(commands: Mapping[str, list[str]]) -> int:
    """
    Run programs until all have ended. One that fails takes the others with it; one that ends well was drained.

    Args:
        commands: What to run, by name.

    Returns:
        The exit status of the first that failed, else 0.
    """
    watched = {*FORWARDED, signal.SIGCHLD}
    with _blocked(watched):
        running = {name: _start(command) for name, command in commands.items()}
        status, stopping = 0, False
        while running:
            number = signal.sigwait(watched)
            if number != signal.SIGCHLD:
                stopping = True
                _send(running, number)
                continue
            for name in [name for name, process in running.items() if process.poll() is not None]:
                code = running.pop(name).returncode
                code = code if code >= 0 else 128 - code
                status = status or code
                if code and not stopping:
                    err.print(f"[red]{name} has died (status {code}); the other nodes are stopped[/]")
                    stopping = True
                    _send(running, signal.SIGTERM)
    return status


@contextlib.contextmanager
def _blocked(signals: set[signal.Signals]) -> Iterator[None]:
    before = signal.pthread_sigmask(signal.SIG_BLOCK, signals)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _start(command: list[str]) -> subprocess.Popen[bytes]:
    # In a session of its own: a signal to the whole group, as of Ctrl-C, must reach a node once, through here.
    return subprocess.Popen(command, start_new_session=True, preexec_fn=_prepare)  # noqa: PLW1509 - there are no threads


def _prepare() -> None:
    signal.pthread_sigmask(signal.SIG_SETMASK, ())
    if sys.platform == "linux":  # a supervisor that is killed leaves no node behind
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)


def _send(running: Mapping[str, subprocess.Popen[bytes]], number: int) -> None:
    for process in running.values():
        process.send_signal(number)
