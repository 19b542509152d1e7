"""RabbitMQ in place of Redis, and workers at work on jobs."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
from docker import APIClient
from kombu import Connection

from morpheo.models import AttemptOutcome, JobState
from tests.support.services import wait_until
from tests.support.workers import LEARN_ONLY, Site, make_site

pytestmark = [pytest.mark.rabbitmq, pytest.mark.docker]


@pytest.fixture
def site(rabbitmq_url: str, tmp_path: Path, engine: APIClient) -> Iterator[Site]:
    with Connection(f"{rabbitmq_url}//") as connection:
        channel = connection.channel()
        for queue in ("learn", "predict"):
            channel.queue_delete(queue)  # type: ignore[attr-defined]
    with make_site(tmp_path, f"{rabbitmq_url}//") as made:
        yield made


def test_a_job_whose_worker_is_killed_is_done_by_another(site: Site) -> None:
    process = site.start("killed", "--queues", "learn", nodes=1)
    spec = site.order(held=True, published=True)
    site.wait_for_step(spec.id, "train")
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    site.start("heir", *LEARN_ONLY, nodes=1)
    wait_until(lambda: site.resources.jobs.get(spec.id).attempt == 2, what="a second attempt")
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
    expected = {"learn@drained": [str(spec.id)], "predict@drained": []}
    wait_until(lambda: {name: node["running"] for name, node in site.workers().items()} == expected, what="two nodes")
    site.drain("drained")
    site.release(spec)
    assert process.wait(180) == 0
    assert site.state(spec.id) is JobState.SUCCEEDED
    assert site.state(waiting.id) is JobState.QUEUED
    assert site.backlog("learn") == 1
