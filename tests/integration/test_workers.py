"""`morpheo worker` as processes on a real Redis, at work on jobs: how they are drained, and how they end."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from uuid import UUID

import pytest
import redis
from docker import APIClient

from morpheo.models import AttemptOutcome, JobState, StepName
from tests.support.services import wait_until
from tests.support.workers import LEARN_ONLY, Site, make_site

#: More than a job needs to be handed back and taken, on a machine that is slow.
GRACE_S = 90

pytestmark = [pytest.mark.redis, pytest.mark.docker, pytest.mark.timeout(900)]


@pytest.fixture
def site(redis_url: str, tmp_path: Path, engine: APIClient) -> Iterator[Site]:
    broker = redis.Redis.from_url(redis_url)
    broker.flushall()
    broker.close()
    with make_site(tmp_path, redis_url) as made:
        yield made


def runs_alone(site: Site, job_id: UUID) -> bool:
    """Return whether both nodes of worker one answer, and one runs this job."""
    return {name: node["running"] for name, node in site.workers().items()} == {
        "learn@one": [str(job_id)],
        "predict@one": [],
    }


def test_a_drained_worker_finishes_its_job_and_leaves_the_others(site: Site) -> None:
    process = site.start("one")
    long = site.order(held=True)
    site.wait_for_step(long.id, "train")
    waiting = site.order()
    wait_until(lambda: runs_alone(site, long.id), what="two nodes that answer, of which one is busy")
    said = site.drain("one").splitlines()
    assert said == [f"learn@one leaves when it has finished {long.id}", "predict@one leaves now"]
    # Waiting for answers takes longer than the grace of a worker that is stopped.
    wait_until(lambda: not site.answering(), what="nodes that answer no more")
    assert site.workers() == {}
    assert site.state(long.id) is JobState.RUNNING
    site.release(long)
    assert process.wait(180) == 0
    job = site.resources.jobs.get(long.id)
    assert (job.state, job.attempt, job.strikes) == (JobState.SUCCEEDED, 1, 0)
    assert site.state(waiting.id) is JobState.QUEUED
    site.start("two", *LEARN_ONLY, nodes=1)
    site.wait_for(waiting.id, JobState.FAILED)
    assert site.resources.jobs.get(waiting.id).attempt == 1


def test_a_worker_that_is_stopped_ends_with_its_job(site: Site) -> None:
    """And does not wait for the end of the grace, nor for that of another job."""
    site.environment["MORPHEO_SWEEP_S"] = "3600"  # or what is published just now is published twice
    process = site.start("one", MORPHEO_STOP_GRACE_S="600")
    spec = site.order(held=True, published=True)
    site.wait_for_step(spec.id, "train")
    process.terminate()
    wait_until(lambda: "told to stop" in site.log("one"), what="the grace")
    waiting = site.order(published=True)
    site.release(spec)
    assert process.wait(300) == 0
    job = site.resources.jobs.get(spec.id)
    assert (job.state, job.attempt, job.strikes) == (JobState.SUCCEEDED, 1, 0)
    assert (site.state(waiting.id), site.backlog("learn")) == (JobState.QUEUED, 1)


def test_a_worker_that_is_stopped_gives_its_job_back(site: Site) -> None:
    process = site.start("one")
    spec = site.order(held=True)
    site.wait_for_step(spec.id, "train")
    process.terminate()
    assert process.wait(180) == 0
    job = site.resources.jobs.get(spec.id)
    assert (job.state, job.strikes) == (JobState.QUEUED, 0)
    assert job.attempts[0].outcome is AttemptOutcome.RELEASED


@pytest.mark.parametrize("signals", [1, 2])
def test_a_job_that_is_handed_back_starts_elsewhere_at_once(site: Site, signals: int) -> None:
    """No sweeper helps, and no lease runs out. A second signal is what the end of the grace is."""
    site.environment |= {"MORPHEO_SWEEP_S": "600", "MORPHEO_LEASE_S": "600"}
    process = site.start("one", MORPHEO_STOP_GRACE_S="1" if signals == 1 else str(GRACE_S))
    spec = site.order(held=True, published=True)
    site.wait_for_step(spec.id, "train")
    site.start("two")
    told = time.monotonic()
    process.terminate()
    if signals == 2:
        wait_until(lambda: "told to stop" in site.log("one"), what="the grace")
        process.terminate()
    wait_until(lambda: site.resources.jobs.get(spec.id).attempt == 2, what="a second attempt")
    job = site.resources.jobs.get(spec.id)
    first, second = job.attempts
    assert (job.strikes, first.outcome) == (0, AttemptOutcome.RELEASED)
    assert first.ended_at is not None
    assert (second.started_at - first.ended_at).total_seconds() < 30  # of the 600 s of a lease, or of a sweep
    assert time.monotonic() - told < GRACE_S
    site.wait_for_step(spec.id, "train")
    site.release(spec, attempt=2)
    site.wait_for(spec.id, JobState.SUCCEEDED)
    assert process.wait(180) is not None
    assert time.monotonic() - told < GRACE_S
    assert not (site.bench.work_dir / f"{spec.id}-1").exists()


def test_the_container_of_a_job_that_is_cancelled_is_soon_dead(site: Site, engine: APIClient) -> None:
    site.start("one", MORPHEO_LEASE_S="600", MORPHEO_HEARTBEAT_S="200")  # a renewal would come too late
    spec = site.order(held=True)
    site.wait_for_step(spec.id, "train")

    def running() -> bool:
        return bool(engine.containers(filters={"name": f"morpheo-{spec.id}-1-train"}))

    wait_until(running, what="the container")
    began = time.monotonic()
    assert site.resources.jobs.cancel(spec.id).state is JobState.RUNNING
    wait_until(lambda: not running(), what="the end of the container")
    assert time.monotonic() - began < 60
    site.wait_for(spec.id, JobState.CANCELLED)
    wait_until(lambda: not (site.bench.work_dir / f"{spec.id}-1").exists(), what="the end of the workspace")


def test_a_node_that_is_killed_ends_the_worker_and_its_job_is_done_elsewhere(site: Site) -> None:
    process = site.start("one")
    spec = site.order(held=True)
    site.wait_for_step(spec.id, "train")
    worker = site.resources.jobs.get(spec.id).worker
    assert worker is not None
    pool_process = int(worker.split("-")[-2])
    os.kill(int(Path(f"/proc/{pool_process}/stat").read_text().split()[3]), signal.SIGKILL)
    assert process.wait(180) == 137
    assert "learn@one has died (status 137)" in site.log("one")
    site.start("two", *LEARN_ONLY, nodes=1)
    wait_until(lambda: site.resources.jobs.get(spec.id).attempt == 2, what="a second attempt")
    site.wait_for_step(spec.id, "train")
    site.release(spec, attempt=2)
    site.wait_for(spec.id, JobState.SUCCEEDED)
    assert site.resources.jobs.get(spec.id).attempt == 2


def test_what_a_killed_worker_has_stored_of_a_log_stays(site: Site) -> None:
    process = site.start("one")
    spec = site.order(held=True)

    def log(attempt: int) -> bytes:
        return dict(site.resources.jobs.logs(spec.id, attempt=attempt)).get(StepName.TRAIN, b"")

    site.wait_for_step(spec.id, "train")
    wait_until(lambda: log(1) == b"waits\n", what="the log of a running container")
    os.killpg(process.pid, signal.SIGKILL)
    for node in _processes_of(site, spec.id):
        os.kill(node, signal.SIGKILL)
    process.wait(180)
    assert log(1) == b"waits\n"
    site.start("two")
    wait_until(lambda: site.resources.jobs.get(spec.id).attempt == 2, what="a second attempt")
    site.wait_for_step(spec.id, "train")
    site.release(spec, attempt=2)
    site.wait_for(spec.id, JobState.SUCCEEDED)
    assert log(1) == b"waits\n"
    assert log(2) == b"waits\nremembers 2\n"


def _processes_of(site: Site, job_id: UUID) -> list[int]:
    """Return the ids of the process that runs a job and of its node, which have sessions of their own."""
    worker = site.resources.jobs.get(job_id).worker
    assert worker is not None
    pool_process = int(worker.split("-")[-2])
    return [int(Path(f"/proc/{pool_process}/stat").read_text().split()[3]), pool_process]
