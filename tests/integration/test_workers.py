"""`morpheo worker` as processes on a real Redis: who takes what, how workers are drained, and how they end."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
import redis
from docker import APIClient

from morpheo.cli.common import EXIT_FAILED, EXIT_UNAVAILABLE
from morpheo.models import AttemptOutcome, JobState
from tests.support.services import wait_until
from tests.support.workers import Site, make_site

pytestmark = [pytest.mark.redis, pytest.mark.docker]


@pytest.fixture
def site(redis_url: str, tmp_path: Path, engine: APIClient) -> Iterator[Site]:
    broker = redis.Redis.from_url(redis_url)
    broker.flushall()
    broker.close()
    with make_site(tmp_path, redis_url) as made:
        yield made


def test_a_job_runs_where_its_tags_are(site: Site) -> None:
    plain = site.start("plain")
    tagged, untagged = site.order(tags=("gpu",)), site.order()
    site.wait_for(untagged.id, JobState.FAILED)
    assert site.state(tagged.id) is JobState.QUEUED
    site.start("tagged", "--queues", "gpu,big-memory", "--predict-parallelism", "0", nodes=1)
    site.wait_for(tagged.id, JobState.FAILED)
    nodes = site.workers()
    assert {name: node["queues"] for name, node in nodes.items()} == {
        "learn@plain": ["learn"],
        "predict@plain": ["predict"],
        "learn@tagged": ["learn.big-memory", "learn.big-memory+gpu", "learn.gpu"],
    }
    plain.terminate()
    assert plain.wait(20) == 0
    untagged = site.order()
    site.wait_for(site.order(tags=("gpu", "big-memory")).id, JobState.FAILED)
    assert site.state(untagged.id) is JobState.QUEUED


def test_a_drained_worker_finishes_its_job_and_leaves_the_others(site: Site) -> None:
    process = site.start("one")
    long = site.order(held=True)
    site.wait_for_step(long.id, "train")
    waiting = site.order()
    assert site.workers()["learn@one"]["running"] == [str(long.id)]
    said = site.cli("workers", "drain", "one").splitlines()
    assert said == [f"learn@one leaves when it has finished {long.id}", "predict@one leaves now"]
    # Waiting for answers takes longer than the grace of a worker that is stopped.
    wait_until(lambda: not site.workers(), timeout_s=60, what="nodes that answer no more")
    assert site.state(long.id) is JobState.RUNNING
    site.release(long)
    assert process.wait(60) == 0
    job = site.resources.jobs.get(long.id)
    assert (job.state, job.attempt, job.strikes) == (JobState.SUCCEEDED, 1, 0)
    assert site.state(waiting.id) is JobState.QUEUED
    site.start("two")
    site.wait_for(waiting.id, JobState.FAILED)
    assert site.resources.jobs.get(waiting.id).attempt == 1


def test_one_node_can_be_drained_and_the_other_goes_on(site: Site) -> None:
    process = site.start("one")
    site.cli("workers", "drain", "predict@one")
    wait_until(lambda: list(site.workers()) == ["learn@one"], timeout_s=60, what="one node")
    site.wait_for(site.order().id, JobState.FAILED)
    assert process.poll() is None
    site.cli("workers", "drain", "learn@one")
    assert process.wait(20) == 0


def test_nobody_to_drain_is_said(site: Site) -> None:
    assert "no worker nobody answers" in site.cli("workers", "drain", "nobody", status=EXIT_FAILED)
    assert site.workers() == {}


def test_a_worker_that_is_stopped_gives_its_job_back(site: Site) -> None:
    process = site.start("one")
    spec = site.order(held=True)
    site.wait_for_step(spec.id, "train")
    process.terminate()
    assert process.wait(30) == 0
    job = site.resources.jobs.get(spec.id)
    assert (job.state, job.strikes) == (JobState.QUEUED, 0)
    assert job.attempts[0].outcome is AttemptOutcome.RELEASED


def test_a_node_that_is_killed_ends_the_worker_and_its_job_is_done_elsewhere(site: Site) -> None:
    process = site.start("one")
    spec = site.order(held=True)
    site.wait_for_step(spec.id, "train")
    worker = site.resources.jobs.get(spec.id).worker
    assert worker is not None
    pool_process = int(worker.split("-")[-2])
    os.kill(int(Path(f"/proc/{pool_process}/stat").read_text().split()[3]), signal.SIGKILL)
    assert process.wait(30) == 137
    assert "learn@one has died (status 137)" in site.log("one")
    site.start("two")
    wait_until(lambda: site.resources.jobs.get(spec.id).attempt == 2, timeout_s=60, what="a second attempt")
    site.wait_for_step(spec.id, "train")
    site.release(spec, attempt=2)
    site.wait_for(spec.id, JobState.SUCCEEDED)
    assert site.resources.jobs.get(spec.id).attempt == 2


@pytest.mark.parametrize(
    ("variable", "value", "words"),
    [
        ("MORPHEO_BROKER_URL", "redis://127.0.0.1:9/0", "no broker answers at redis://:**@127.0.0.1:9/0"),
        ("MORPHEO_BROKER_URL", "amqp://u:hunter2@127.0.0.1:9//", "no broker answers at amqp://u:**@127.0.0.1:9//"),
        ("MORPHEO_DATABASE_URL", "sqlite:////nowhere/x.db", "database"),
        ("MORPHEO_DATABASE_URL", "sqlite:///{folder}/empty.db", "morpheo migrate"),
        ("MORPHEO_S3_ENDPOINT", "127.0.0.1:9", "MORPHEO_S3_ENDPOINT"),
        ("MORPHEO_DOCKER_HOST", "unix:///nowhere.sock", "MORPHEO_DOCKER_HOST"),
    ],
)
def test_what_a_worker_needs_and_does_not_reach_is_said_in_one_line(
    site: Site, tmp_path: Path, variable: str, value: str, words: str
) -> None:
    site.environment[variable] = value.format(folder=tmp_path)
    error = site.cli("worker", status=EXIT_UNAVAILABLE)
    assert words in error
    assert error.count("\n") == 1
    assert "hunter2" not in error
