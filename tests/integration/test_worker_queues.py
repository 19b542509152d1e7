"""`morpheo worker` as processes on a real Redis, with jobs that fail before anything is built: who takes what."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import redis
from docker import APIClient

from morpheo.cli.common import EXIT_FAILED, EXIT_UNAVAILABLE
from morpheo.models import JobState
from tests.support.services import wait_until
from tests.support.workers import LEARN_ONLY, Site, make_site

pytestmark = [pytest.mark.redis, pytest.mark.engine]


_TELL = """
from morpheo.celery import app
app.send_task("morpheo.run_job", args=[input()], queue="learn")
"""


@pytest.fixture
def site(redis_url: str, tmp_path: Path, engine: APIClient) -> Iterator[Site]:
    broker = redis.Redis.from_url(redis_url)
    broker.flushall()
    broker.close()
    with make_site(tmp_path, redis_url) as made:
        yield made


def taken(site: Site) -> dict[str, list[str]]:
    """Return what each node takes that has answered in time."""
    return {name: node["queues"] for name, node in site.workers().items()}


def test_a_job_runs_where_its_tags_are(site: Site) -> None:
    plain = site.start("plain")
    tagged, untagged = site.order(tags=("gpu",)), site.order()
    site.wait_for(untagged.id, JobState.FAILED)
    assert site.state(tagged.id) is JobState.QUEUED
    site.start("tagged", "--queues", "gpu,big-memory", *LEARN_ONLY, nodes=1)
    site.wait_for(tagged.id, JobState.FAILED)
    expected = {
        "learn@plain": ["learn"],
        "predict@plain": ["predict"],
        "learn@tagged": ["learn.big-memory", "learn.big-memory+gpu", "learn.gpu"],
    }
    wait_until(lambda: taken(site) == expected, what="three nodes and what they take")
    plain.terminate()
    assert plain.wait(120) == 0
    untagged = site.order()
    site.wait_for(site.order(tags=("gpu", "big-memory")).id, JobState.FAILED)
    assert site.state(untagged.id) is JobState.QUEUED


def test_a_submitter_has_workers_of_their_own(site: Site) -> None:
    site.resources.database.attach(apart=True)
    site.start("shared", *LEARN_ONLY, nodes=1)
    hers, nobodys = site.order(owner="anna"), site.order()
    site.wait_for(nobodys.id, JobState.FAILED)
    # A message in the wrong queue changes nothing.
    site.python(_TELL, str(hers.id))
    wait_until(lambda: "job not claimed" in site.log("shared"), what="a job that is not the worker's")
    assert site.state(hers.id) is JobState.QUEUED
    site.start("hers", "--submitter", "anna", *LEARN_ONLY, nodes=1)
    site.wait_for(hers.id, JobState.FAILED)
    expected = {"learn@shared": ["learn"], "learn@hers": ["learn.@anna"]}
    wait_until(lambda: taken(site) == expected, what="two nodes and what they take")


def test_one_node_can_be_drained_and_the_other_goes_on(site: Site) -> None:
    process = site.start("one")
    wait_until(lambda: site.answering() == {"learn@one", "predict@one"}, what="two nodes")
    site.drain("predict@one")
    wait_until(lambda: list(site.workers()) == ["learn@one"], what="one node")
    site.wait_for(site.order().id, JobState.FAILED)
    assert process.poll() is None
    site.drain("learn@one")
    assert process.wait(120) == 0


def test_nobody_to_drain_is_said(site: Site) -> None:
    assert "no worker nobody answers" in site.cli("workers", "drain", "nobody", status=EXIT_FAILED)
    assert site.workers() == {}


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
