"""Cases 60 and 61: machines whose clocks are wrong, and orders that are cancelled at any time."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from morpheo.models import AttemptOutcome, JobSpec, JobState
from tests.faults.invariants import check_drained
from tests.faults.nodes import LEASE_S
from tests.faults.rig import Rig
from tests.faults.test_engine import LONG, containers

pytestmark = [pytest.mark.docker, pytest.mark.database, pytest.mark.redis, pytest.mark.s3]


HOUR_S = 3600


@pytest.mark.parametrize("shift_s", [HOUR_S, -HOUR_S], ids=["an hour ahead", "an hour behind"])
def test_60_a_worker_and_an_api_whose_clocks_are_wrong(rig: Rig, shift_s: int) -> None:
    """No lease is taken too early, nothing takes less than no time, and what fails for the clock costs nothing."""
    with wrong_clock(rig, shift_s):
        with rig.one.links["redis"].down():
            healthy = rig.order(hold="train")
            rig.begin_container(healthy, "train")
        ill = rig.order(fresh=True)  # the only worker that is free is the one whose clock is wrong
        rig.wait(lambda: bool(rig.job(ill).attempts[:1]) and has_ended(rig, ill), "the end of its first attempt")
        since = rig.now()
        rig.wait(lambda: rig.now() > since + LEASE_S, "a lease, in which sweepers of both clocks sweep")
        assert rig.job(healthy).attempt == 1
        rig.wait_done(healthy)
        rig.wait_done(ill)
    for spec in (healthy, ill):
        job = rig.job(spec)
        assert (job.attempts[-1].outcome, job.strikes) == (AttemptOutcome.SUCCEEDED, 0)
        assert abs(job.created_at.timestamp() - rig.now()) < HOUR_S / 2
        for attempt in job.attempts:
            assert attempt.ended_at is not None
            assert attempt.started_at <= attempt.ended_at
            assert all(step.seconds is None or step.seconds >= 0 for step in attempt.steps)
    assert "clocks" in rig.job(ill).attempts[0].message


def has_ended(rig: Rig, spec: JobSpec) -> bool:
    """Return whether the first attempt at a job is over."""
    return rig.job(spec).attempts[0].outcome is not AttemptOutcome.RUNNING


@contextlib.contextmanager
def wrong_clock(rig: Rig, shift_s: int) -> Iterator[None]:
    """Shift the clocks of worker one and of the compute API during the block."""
    servers = [*rig.one.nodes.values(), rig.compute_api]
    program = str(Path(__file__).parent / "wrong_clock")
    try:
        for server in servers:
            server.kill()
            surroundings = {**(server.environment or os.environ), "RIG_CLOCK_SHIFT": str(shift_s)}
            surroundings["PYTHONPATH"] = os.pathsep.join(filter(None, [program, surroundings.get("PYTHONPATH")]))
            server.start(wait=False, environment=surroundings)
        for server in servers:
            server.wait_ready()
        yield
        # Killed with a message, a worker whose clock is ahead would leave it in Redis until that time has come.
        check_drained(rig)
    finally:
        for server in servers:
            server.kill()


def check_cancelled(rig: Rig, spec: JobSpec) -> None:
    """Wait until a job has ended as cancelled, and is so again when it is cancelled again."""
    rig.wait_state(spec, JobState.CANCELLED)
    rig.wait(lambda: not rig.containers(spec), "the end of its containers")
    assert rig.compute.cancel(spec.id).state is JobState.CANCELLED


def test_61_cancelled_in_the_queue(rig: Rig) -> None:
    """It ends at once, and its message starts nothing."""
    with rig.one.links["redis"].down(), rig.two.links["redis"].down():
        spec = rig.order()
        assert rig.compute.cancel(spec.id).state is JobState.CANCELLED
    rig.wait_done(rig.order())
    assert rig.job(spec).attempt == 0


@pytest.mark.parametrize("name", ["after_claim", "after_download", "after_create"])
def test_61_cancelled_in_an_attempt(rig: Rig, name: str) -> None:
    """It ends, though nobody lets its training go on."""
    for worker in rig.workers.values():
        worker.arm(name, "hold")
    spec = rig.order(fresh=True, hold="train")
    rig.wait(lambda: any(worker.was_hit(name) for worker in rig.workers.values()), f"failpoint {name}")
    assert rig.compute.cancel(spec.id).cancel_requested
    for worker in rig.workers.values():
        worker.disarm()
    check_cancelled(rig, spec)


def test_61_cancelled_while_it_is_built(rig: Rig) -> None:
    """The build is stopped, and nothing is left of it."""
    spec = rig.order(algo=rig.algo_of(LONG))
    rig.begin(spec, "build_algo")
    rig.wait(lambda: bool(containers(rig)), "the container of an instruction")
    rig.compute.cancel(spec.id)
    check_cancelled(rig, spec)


def test_61_cancelled_while_it_runs(rig: Rig) -> None:
    """Its container is killed, though nobody lets it go on."""
    spec = rig.order(hold="train")
    rig.begin_container(spec, "train")
    rig.compute.cancel(spec.id)
    check_cancelled(rig, spec)


def test_61_cancelled_while_its_model_is_stored(rig: Rig) -> None:
    """It is cancelled or done, once, and has its model only if it is done."""
    for worker in rig.workers.values():
        worker.arm("in_upload", "hold")
    spec = rig.order()
    rig.wait(lambda: any(worker.was_hit("in_upload") for worker in rig.workers.values()), "the upload")
    rig.compute.cancel(spec.id)
    for worker in rig.workers.values():
        worker.disarm()
    job = rig.wait_state(spec, JobState.CANCELLED, JobState.SUCCEEDED)
    assert bool(rig.blob_keys(spec)) == (job.state is JobState.SUCCEEDED)


def test_61_cancelled_when_it_is_done(rig: Rig) -> None:
    """It stays done."""
    spec = rig.order()
    done = rig.wait_done(spec)
    assert rig.compute.cancel(spec.id).state is JobState.SUCCEEDED
    assert rig.job(spec) == done
