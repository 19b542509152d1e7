"""``morpheo worker``: a stand-in until the real one is merged."""

from __future__ import annotations

import os
import sys

import click


@click.command()
def worker() -> None:
    """Run jobs on this machine."""
    os.environ.setdefault("REMAP_SIGTERM", "SIGQUIT")  # told to stop, a worker gives its jobs back
    os.execv(sys.executable, [sys.executable, "-m", "celery", "-A", "morpheo", "worker"])  # noqa: S606
