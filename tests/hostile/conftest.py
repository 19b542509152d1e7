"""One stack for all cases; after each of them P1 to P6 must hold."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from docker import APIClient

from tests.conftest import missing
from tests.hostile import payload
from tests.hostile.rig import Case, HostileEngine, HostileRig
from tests.support.services import engine_url, redis_binary


@contextmanager
def running(**options: Any) -> Iterator[HostileRig]:
    """Give a rig that has started; nothing is left of it."""
    folder = Path(tempfile.mkdtemp(prefix="hostile-"))  # short, because of the sockets in it
    folder.chmod(0o755)
    rig = HostileRig(folder, engine_url(), **options)
    try:
        rig.start()
        yield rig
    finally:
        rig.close()
        shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="session")
def hostile(engine: APIClient) -> Iterator[HostileRig]:
    """The rig, which starts once."""
    if redis_binary() is None:
        missing("Redis")
    if not HostileEngine.can_be_made():
        missing("root or dockerd")
    if not engine.images(payload.BASE):
        missing(f"the image {payload.BASE}")
    with running() as rig:
        yield rig


@pytest.fixture
def rig(hostile: HostileRig) -> Iterator[HostileRig]:
    """The rig as a case finds it. Afterwards P1 to P6 must hold."""
    case = Case(hostile)
    yield hostile
    case.check()
