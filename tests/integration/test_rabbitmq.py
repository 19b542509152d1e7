"""RabbitMQ in place of Redis, with jobs that fail before anything is built."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from docker import APIClient
from kombu import Connection

from morpheo.cli.common import EXIT_UNAVAILABLE
from morpheo.models import JobState
from tests.support.services import wait_until
from tests.support.workers import LEARN_ONLY, Site, make_site

pytestmark = [pytest.mark.rabbitmq, pytest.mark.engine]

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
    site.start("gpu", "--queues", "gpu", *LEARN_ONLY, nodes=1)
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
    site.start("swept", *LEARN_ONLY, nodes=1)
    site.wait_for(site.order().id, JobState.FAILED)
