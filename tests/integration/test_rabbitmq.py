"""RabbitMQ in place of Redis."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
from docker import APIClient
from kombu import Connection

from morpheo.cli.common import EXIT_UNAVAILABLE
from morpheo.models import AttemptOutcome, JobState
from tests.support.services import wait_until
from tests.support.workers import Site, make_site

pytestmark = [pytest.mark.rabbitmq, pytest.mark.docker]

QUEUES = ("learn", "predict", "learn.gpu", "predict.gpu")


@pytest.fixture
def site(rabbitmq_url: str, tmp_path: Path, engine: APIClient) -> Iterator[Site]:
    with Connection(f"{rabbitmq_url}//") as connection:
        channel = connection.channel()
        for queue in QUEUES:  # not only its messages: a queue that nobody has declared is part of the tests
            channel.queue_delete(queue)  # type: ignore[attr-defined]
    with make_site(tmp_path, f"{rabbitmq_url}//") as made:
        yield made


def test_a_job_is_published_to_a_queue_that_nobody_declared_and_done(site: Site) -> None:
    site.environment["MORPHEO_SWEEP_S"] = "3600"  # so that it is this message which counts
    assert site.backlog("learn.gpu") == 0
    spec = site.order(tags=("gpu",), published=True)
    assert site.backlog("learn.gpu") == 1
    site.start("gpu", "--queues", "gpu", "--predict-parallelism", "0", nodes=1)
    site.wait_for(spec.id, JobState.FAILED)
    assert site.resources.jobs.get(spec.id).attempt == 1
    wait_until(lambda: site.backlog("learn.gpu") == 0, what="an empty queue")


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (("guest:guest", "guest:hunter2"), "ACCESS_REFUSED"),
        (("//", "//nowhere"), "vhost /nowhere not found"),
        (("127.0.0.1:", "127.0.0.9:"), "no broker answers"),
    ],
    ids=["password", "virtual-host", "address"],
)
def test_a_broker_that_lets_nobody_in_is_an_error_of_one_line(site: Site, changes: tuple[str, str], words: str) -> None:
    scheme, _, rest = site.environment["MORPHEO_BROKER_URL"].partition("://")
    site.environment["MORPHEO_BROKER_URL"] = f"{scheme}://{rest.replace(*changes)}"
    for command in ("worker", "workers list"):
        error = site.cli(*command.split(), status=EXIT_UNAVAILABLE)
        assert words in error
        assert error.count("\n") == 1
        assert "hunter2" not in error
    spec = site.order(published=True)  # accepted without a broker
    assert site.state(spec.id) is JobState.QUEUED


def test_what_no_message_tells_of_is_published_by_the_sweeper(site: Site) -> None:
    site.start("swept")
    site.wait_for(site.order().id, JobState.FAILED)


def test_a_job_whose_worker_is_killed_is_done_by_another(site: Site) -> None:
    process = site.start("killed", "--queues", "learn", nodes=1)
    spec = site.order(held=True, published=True)
    site.wait_for_step(spec.id, "train")
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    site.start("heir")
    wait_until(lambda: site.resources.jobs.get(spec.id).attempt == 2, timeout_s=60, what="a second attempt")
    site.wait_for_step(spec.id, "train")
    site.release(spec, attempt=2)
    site.wait_for(spec.id, JobState.SUCCEEDED)
    outcomes = [attempt.outcome for attempt in site.resources.jobs.get(spec.id).attempts]
    assert outcomes == [AttemptOutcome.LOST, AttemptOutcome.SUCCEEDED]


def test_a_drained_worker_acknowledges_what_it_finished_and_leaves_the_rest(site: Site) -> None:
    site.environment["MORPHEO_SWEEP_S"] = "3600"  # or what is published just now is published twice
    process = site.start("drained")
    spec = site.order(held=True, published=True)
    site.wait_for_step(spec.id, "train")
    waiting = site.order(published=True)
    assert site.workers()["learn@drained"]["running"] == [str(spec.id)]
    site.cli("workers", "drain", "drained")
    site.release(spec)
    assert process.wait(60) == 0
    assert site.state(spec.id) is JobState.SUCCEEDED
    assert site.state(waiting.id) is JobState.QUEUED
    assert site.backlog("learn") == 1
