"""The worker as a process: `celery -A morpheo worker`, from any folder, on a real Redis."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from uuid import uuid4

import pytest
import redis
from celery import Celery
from docker import APIClient

from morpheo.config import Settings
from morpheo.models import ArtifactKind, Cause, JobState
from morpheo.resources import Resources
from morpheo.storage import migrate
from morpheo.testing import RecordingPublisher
from tests.support.services import child, wait_until
from tests.support.workbench import Workbench, make_workbench

pytestmark = [pytest.mark.redis, pytest.mark.docker]


@dataclass
class RealWorker:
    """A worker process and what it works on."""

    resources: Resources
    broker: redis.Redis
    url: str
    log: Path

    def publish(self, *arguments: object, task: str = "morpheo.run_job") -> None:
        """Put a message into the worker's queue, as the API does."""
        sender = Celery("sender", broker=self.url)
        with sender.connection_for_write() as connection:
            sender.send_task(task, args=list(arguments), queue="learn", connection=connection)

    def drained(self) -> bool:
        """Whether no message waits or is being worked on."""
        return self.broker.llen("learn") == 0 and self.broker.hlen("unacked") == 0


@pytest.fixture
def worker(redis_url: str, tmp_path: Path, engine: APIClient) -> Iterator[RealWorker]:
    data_dir = tmp_path / "data"
    environment = {
        **os.environ,
        "MORPHEO_DATA_DIR": str(data_dir),
        "MORPHEO_BROKER_URL": redis_url,
        "MORPHEO_SWEEP_S": "0.3",
        "MORPHEO_STOP_GRACE_S": "1",
        "REMAP_SIGTERM": "SIGQUIT",
    }
    resources = Resources(Settings(data_dir=data_dir), RecordingPublisher())
    migrate.upgrade(resources.database)
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    broker = redis.Redis.from_url(redis_url)
    broker.flushall()
    log = tmp_path / "worker.log"
    command = [sys.executable, "-m", "celery", "-A", "morpheo", "worker", "--hostname", f"{uuid4().hex[:8]}@%h"]
    with child(command, log, cwd=elsewhere, env=environment) as process:
        wait_until(lambda: " ready." in log.read_text() or process.poll() is not None, what="the worker")
        assert process.poll() is None, log.read_text()
        yield RealWorker(resources, broker, redis_url, log)
    resources.database.close()
    broker.close()


def on_worker(worker: RealWorker) -> Workbench:
    """Return a workbench on the worker's own database and blobs."""
    url = worker.resources.settings.database
    bench = make_workbench(url, worker.resources.settings.data_dir)
    vars(bench.resources)["blobs"] = worker.resources.blobs
    return bench


def test_a_published_job_is_done_and_its_message_acknowledged(worker: RealWorker) -> None:
    bench = on_worker(worker)
    spec = bench.learn_spec(algo=bench.store(ArtifactKind.ALGO, b"no archive", name="x"))
    bench.resources.jobs.submit(spec)
    worker.publish(str(spec.id))
    wait_until(lambda: worker.resources.jobs.get(spec.id).state.is_final, what="the job's end")
    failure = worker.resources.jobs.get(spec.id).failure
    assert failure is not None
    assert failure.cause is Cause.BAD_ARCHIVE
    wait_until(worker.drained, what="an empty queue")


def test_a_job_nobody_published_is_published_by_the_sweeper(worker: RealWorker) -> None:
    bench = on_worker(worker)
    bench.publisher.down = True
    spec = bench.learn_spec(algo=bench.store(ArtifactKind.ALGO, b"no archive", name="x"))
    bench.resources.jobs.submit(spec)
    wait_until(lambda: worker.resources.jobs.get(spec.id).state is JobState.FAILED, what="the job's end")
    wait_until(worker.drained, what="an empty queue")


def test_garbage_in_the_queue_harms_nobody(worker: RealWorker) -> None:
    worker.publish("not a uuid")
    worker.publish(str(uuid4()))
    worker.publish(str(uuid4()), task="morpheo.unknown")
    worker.publish()
    test_a_published_job_is_done_and_its_message_acknowledged(worker)


def test_the_same_message_many_times_is_one_attempt(worker: RealWorker) -> None:
    bench = on_worker(worker)
    spec = bench.learn_spec(algo=bench.store(ArtifactKind.ALGO, b"no archive", name="x"))
    bench.resources.jobs.submit(spec)
    for _ in range(10):
        worker.publish(str(spec.id))
    wait_until(worker.drained, what="an empty queue")
    wait_until(lambda: worker.resources.jobs.get(spec.id).state.is_final, what="the job's end")
    assert worker.resources.jobs.get(spec.id).attempt == 1
