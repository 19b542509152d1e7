"""The worker as a process: `celery -A morpheo worker`, from any folder, on a real Redis."""

from __future__ import annotations

import json
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
from morpheo.models import ArtifactKind, Cause, JobState, LearnSpec
from morpheo.resources import Resources
from morpheo.storage import migrate
from morpheo.testing import RecordingPublisher
from tests.support.api_server import environment
from tests.support.services import child, wait_until
from tests.support.workbench import Workbench, make_workbench

pytestmark = [pytest.mark.redis, pytest.mark.engine]


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


@pytest.fixture(scope="module")
def worker(redis_url: str, tmp_path_factory: pytest.TempPathFactory, engine: APIClient) -> Iterator[RealWorker]:
    folder = tmp_path_factory.mktemp("worker")
    settings = {"broker_url": redis_url, "sweep_s": "0.3", "stop_grace_s": "1"}
    variables = {**environment(folder / "data", **settings), "REMAP_SIGTERM": "SIGQUIT"}
    resources = Resources(Settings(data_dir=folder / "data"), RecordingPublisher())
    migrate.upgrade(resources.database)
    elsewhere = folder / "elsewhere"
    elsewhere.mkdir()
    broker = redis.Redis.from_url(redis_url)
    broker.flushall()
    log = folder / "worker.log"
    command = [sys.executable, "-m", "celery", "-A", "morpheo", "worker", "--hostname", f"{uuid4().hex[:8]}@%h"]
    with child(command, log, cwd=elsewhere, env=variables) as process:
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


def order_without_archive(bench: Workbench) -> LearnSpec:
    """Order a job that fails before anything is built."""
    spec = bench.learn_spec(workflow=bench.store(ArtifactKind.PROBLEM, b"no archive", name="p", description="p"))
    bench.resources.jobs.submit(spec)
    return spec


def test_a_published_job_is_done_and_its_message_acknowledged(worker: RealWorker) -> None:
    bench = on_worker(worker)
    spec = order_without_archive(bench)
    worker.publish(str(spec.id))
    wait_until(lambda: worker.resources.jobs.get(spec.id).state.is_final, what="the job's end")
    failure = worker.resources.jobs.get(spec.id).failure
    assert failure is not None
    assert failure.cause is Cause.BAD_ARCHIVE
    wait_until(worker.drained, what="an empty queue")


def test_a_job_nobody_published_is_published_by_the_sweeper(worker: RealWorker) -> None:
    bench = on_worker(worker)
    bench.publisher.down = True
    spec = order_without_archive(bench)
    wait_until(lambda: worker.resources.jobs.get(spec.id).state is JobState.FAILED, what="the job's end")
    wait_until(worker.drained, what="an empty queue")


def test_garbage_in_the_queue_harms_nobody(worker: RealWorker) -> None:
    worker.publish("not a uuid")
    worker.publish(str(uuid4()))
    worker.publish(str(uuid4()), task="morpheo.unknown")
    worker.publish()
    nested = b"[" * 100_000
    for raw in (b"\x80\x04\xff", b"broken {", b"5", b"null", b"[]", b"{}", b'{"properties": {}}', b"", nested):
        worker.broker.lpush("learn", raw)
    worker.broker.lpush("learn", unreadable_message())
    test_a_published_job_is_done_and_its_message_acknowledged(worker)


def unreadable_message() -> str:
    """Return a message of the task that has its parts, and a body that Celery cannot read."""
    tag, where = str(uuid4()), {"exchange": "", "routing_key": "learn"}
    properties = {"body_encoding": "base64", "delivery_tag": tag, "delivery_info": where, "delivery_mode": 2}
    headers = {"task": "morpheo.run_job", "id": tag, "lang": "py"}
    types = {"content-type": "application/json", "content-encoding": "utf-8"}
    return json.dumps({"body": "!", "headers": headers, "properties": properties, **types})


def test_a_redis_that_takes_no_writes_for_a_while_ends_no_worker(worker: RealWorker) -> None:
    def waits() -> bool:
        return bool(worker.broker.info("clients")["blocked_clients"])

    wait_until(waits, what="a worker that waits for messages")
    worker.broker.replicaof("127.0.0.1", 1)  # as in a failover; what waits is told so
    wait_until(lambda: not waits(), what="a worker that was told")
    worker.broker.replicaof("NO", "ONE")
    test_a_published_job_is_done_and_its_message_acknowledged(worker)


def test_the_same_message_many_times_is_one_attempt(worker: RealWorker) -> None:
    bench = on_worker(worker)
    spec = order_without_archive(bench)
    for _ in range(10):
        worker.publish(str(spec.id))
    wait_until(worker.drained, what="an empty queue")
    wait_until(lambda: worker.resources.jobs.get(spec.id).state.is_final, what="the job's end")
    assert worker.resources.jobs.get(spec.id).attempt == 1
