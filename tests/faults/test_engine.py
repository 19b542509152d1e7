"""
Cases 52 to 59: a container engine that is killed, hangs, or does not let go.

Case 54 is that of an engine in a container, which dies with all its containers; here the engine is killed with them.
Of case 56, stale files of a killed engine, this rig's start of engines removes them itself: that of the deployment is
tried in ``tests/compose/test_compose.py``, by ``test_a_killed_inner_daemon_comes_back_and_the_job_ends``. Case 57, an
engine's disk that is full of images of other jobs, is in ``tests/integration/test_disk_engine.py``.
"""

from __future__ import annotations

import json
import signal

import pytest

from morpheo.models import AttemptOutcome, Job, JobSpec, JobState
from tests.conftest import BASE_IMAGE
from tests.faults.nodes import LEASE_S
from tests.faults.rig import Rig

pytestmark = [pytest.mark.docker, pytest.mark.database, pytest.mark.redis, pytest.mark.s3]

#: An instruction that lasts long enough for its engine to be killed.
LONG = 'RUN ["python3", "-S", "-c", "import time; time.sleep(20)"]'


def outcomes(job: Job) -> list[AttemptOutcome]:
    """Return how the attempts at a job ended."""
    return [attempt.outcome for attempt in job.attempts]


def check_waited(job: Job) -> None:
    """Check that a job was given back once, and that this has cost nothing."""
    assert outcomes(job) == [AttemptOutcome.RETRIED, AttemptOutcome.SUCCEEDED]
    assert job.strikes == 0


@pytest.mark.parametrize("how", ["told to stop", "killed"])
def test_52_a_daemon_that_ends_while_a_container_runs(rig: Rig, how: str) -> None:
    """The container lives on, and the same attempt finishes with its exit code."""
    spec = rig.order(hold="train")
    rig.begin_container(spec, "train")
    if how == "killed":
        rig.dockerd.kill()
    else:
        rig.dockerd.stop(signal.SIGTERM)
    rig.dockerd.start()
    job = rig.wait_done(spec)
    assert (outcomes(job), job.strikes) == ([AttemptOutcome.SUCCEEDED], 0)
    assert all(step.exit_code == 0 for step in job.attempts[0].steps if step.exit_code is not None)


def test_53_a_daemon_killed_while_it_builds(rig: Rig) -> None:
    """The image is built again by another attempt; the container of the instruction is removed."""
    spec = rig.order(algo=rig.algo_of(LONG))
    rig.begin(spec, "build_algo")
    rig.wait(lambda: bool(containers(rig)), "the container of an instruction")
    (stray,) = containers(rig)
    rig.dockerd.kill()
    rig.dockerd.start()
    rig.wait_attempt(spec, 2)
    rig.wait(lambda: stray not in containers(rig), "the end of what was left")
    check_waited(rig.wait_done(spec))


def containers(rig: Rig) -> list[str]:
    """Return the ids of all containers, running or not."""
    return [container["Id"] for container in rig.engine.containers(all=True)]


def test_54_an_engine_killed_with_its_containers(rig: Rig) -> None:
    """The job is not blamed for its container's end: another attempt does it."""
    spec = rig.order(hold="train")
    rig.begin_container(spec, "train")
    rig.dockerd.power_off()
    rig.dockerd.start()
    check_waited(rig.wait_done(spec))


def test_55_a_daemon_that_hangs_while_a_container_runs(rig: Rig) -> None:
    """The lease is renewed all the same, and the same attempt finishes."""
    spec = rig.order(hold="train")
    rig.begin_container(spec, "train")
    with rig.dockerd.paused():
        paused_at = rig.now()
        rig.wait(lambda: lease_of(rig, spec) > paused_at + 3 * LEASE_S, "a lease that is renewed")
    job = rig.wait_done(spec)
    assert (outcomes(job), job.strikes) == ([AttemptOutcome.SUCCEEDED], 0)


def lease_of(rig: Rig, spec: JobSpec) -> float:
    """Return when the lease of a running job ends, in seconds since the epoch."""
    return float(rig.postgres.query("SELECT lease_expires_at FROM jobs WHERE id = %s", spec.id)[0][0])


def test_55_a_daemon_that_hangs_when_a_job_begins(rig: Rig) -> None:
    """Calls end by their timeout, and the job waits without a strike."""
    spec = rig.make_learn()
    with rig.dockerd.paused():
        rig.submit(spec)
        rig.wait(lambda: outcomes(rig.job(spec))[:1] == [AttemptOutcome.RETRIED], "a job given back")
    job = rig.wait_done(spec)
    assert set(outcomes(job)[:-1]) == {AttemptOutcome.RETRIED}
    assert job.strikes == 0


def test_58_a_container_that_has_the_name_already(rig: Rig) -> None:
    """It is removed, and the attempt's own is made."""
    spec = rig.make_learn()
    name = f"morpheo-{spec.id}-1-train"
    old = rig.engine.create_container(BASE_IMAGE, ["true"], name=name)["Id"]
    rig.submit(spec)
    job = rig.wait_done(spec)
    assert (outcomes(job), job.strikes) == ([AttemptOutcome.SUCCEEDED], 0)
    assert old not in containers(rig)


@pytest.mark.parametrize(
    ("status", "message"),
    [(409, "removal of container is already in progress"), (500, "unlinkat: device or resource busy")],
    ids=["in progress", "busy"],
)
def test_59_a_container_that_cannot_be_removed_yet(rig: Rig, status: int, message: str) -> None:
    """The worker tries again until it is gone, and goes on."""
    spec = rig.order(hold="train")
    worker, _ = rig.begin_container(spec, "train")
    name = f"morpheo-{spec.id}-1-train"
    link = worker.links["engine"]
    body = json.dumps({"message": message})
    head = f"HTTP/1.1 {status} Refused\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n"
    link.answer_to = f"/containers/{name}?".encode()
    link.answer = f"{head}Connection: close\r\n\r\n{body}".encode()
    tried = link.watch(link.answer_to)
    rig.release(spec)
    for _ in range(2):
        assert tried.wait(60)
        tried.clear()
    assert rig.containers(spec) == [name]
    assert rig.job(spec).state is JobState.RUNNING
    link.heal()
    job = rig.wait_done(spec)
    assert (outcomes(job), job.strikes) == ([AttemptOutcome.SUCCEEDED], 0)
