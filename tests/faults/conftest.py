"""One rig for all cases; each begins with a whole one, and ends with the invariants."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from docker import APIClient

from tests.conftest import missing
from tests.faults.invariants import check_invariants
from tests.faults.rig import Rig, running_rig
from tests.support.engine import Engine
from tests.support.services import postgres_bin, redis_binary, weed_binary


@pytest.fixture(scope="session")
def faulty(shared_engine: APIClient) -> Iterator[Rig]:
    """The rig, which starts once."""
    for name, found in {"Redis": redis_binary(), "PostgreSQL": postgres_bin(), "SeaweedFS": weed_binary()}.items():
        if found is None:
            missing(name)
    if not Engine.can_be_made():
        missing("root or dockerd")
    with running_rig(shared_engine) as rig:
        yield rig


@pytest.fixture
def rig(faulty: Rig) -> Iterator[Rig]:
    """The rig as a case finds it: whole, with nothing to do. Afterwards all that was promised must have been kept."""
    faulty.settle()
    faulty.forget_case()
    yield faulty
    faulty.settle()
    try:
        check_invariants(faulty)
    except Exception:
        faulty.redis.ask("FLUSHALL")  # a message that is left would fail all the cases that follow, a minute each
        raise
