"""Metrics of real services, read as Prometheus reads them."""

from __future__ import annotations

import json
import os
import signal
import socket
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from uuid import UUID

import pytest
import requests
from prometheus_client import CollectorRegistry, generate_latest
from sqlalchemy import text, update

from morpheo import metrics
from morpheo.config import Settings
from morpheo.metrics import DatabaseCollector
from morpheo.models import (
    ArtifactKind,
    AttemptOutcome,
    Blame,
    Cause,
    Failure,
    JobSpec,
    Scores,
    StepName,
    StepRecord,
)
from morpheo.storage.clock import to_datetime
from morpheo.storage.database import Database
from morpheo.storage.migrate import upgrade
from morpheo.storage.tables import JobRow
from morpheo.testing import make_learn_spec, make_predict_spec
from tests.conftest import missing
from tests.support.api_server import environment, migrate, serving
from tests.support.prometheus import parse, scrape
from tests.support.services import child, free_port, postgres_bin, postgres_server, wait_until

FAILURE = Failure(cause=Cause.EXIT_CODE, blame=Blame.SUBMITTER, step=StepName.TRAIN, message="train ended with 1")
SCORES = Scores(perf=0.5, train_perf={}, test_perf={})


def shown(database: Database) -> dict[str, float]:
    registry = CollectorRegistry()
    registry.register(DatabaseCollector(database))
    return parse(generate_latest(registry).decode())


def claimed(database: Database, spec: JobSpec) -> UUID:
    """Order a job, and begin an attempt at it."""
    with database.begin() as work:
        work.jobs.add(spec, algo=None)
        assert work.jobs.claim(spec.id, worker="w", lease_s=60, max_attempts=3) is not None
    return spec.id


def make_jobs_in_each_state(database: Database) -> None:
    """One job in each state that jobs reach today, two of them with steps, and one queued twice."""
    with database.begin() as work:
        work.jobs.add(make_learn_spec(), algo=None)
        waiting = make_learn_spec()
        work.jobs.add(waiting, algo=None)
        cancelled = make_predict_spec()
        work.jobs.add(cancelled, algo=None)
        work.jobs.request_cancel(cancelled.id)
    running, done = claimed(database, make_learn_spec()), claimed(database, make_predict_spec())
    failed, later = claimed(database, make_learn_spec()), claimed(database, make_predict_spec())
    with database.begin() as work:
        for job, name, seconds in ((done, StepName.PREDICT, 1.5), (failed, StepName.TRAIN, 2.25)):
            work.steps.begin(job, 1, name, position=0)
            work.steps.end(job, 1, StepRecord(name=name, started_at=to_datetime(0), seconds=seconds))
        work.steps.begin(running, 1, StepName.TRAIN, position=0)
        assert work.jobs.succeed(done, 1, SCORES)
        assert work.jobs.fail(failed, 1, FAILURE)
        assert work.jobs.requeue(later, 1, outcome=AttemptOutcome.RETRIED, message="x", delay_s=600, strikes=1)


def assert_they_are_shown(seen: dict[str, float]) -> None:
    assert {name: value for name, value in seen.items() if name.startswith("morpheo_jobs{") and value} == {
        "morpheo_jobs{kind=learn,state=queued}": 2,
        "morpheo_jobs{kind=predict,state=queued}": 1,
        "morpheo_jobs{kind=learn,state=running}": 1,
        "morpheo_jobs{kind=predict,state=succeeded}": 1,
        "morpheo_jobs{kind=learn,state=failed}": 1,
        "morpheo_jobs{kind=predict,state=cancelled}": 1,
    }
    assert {name: value for name, value in seen.items() if name.startswith("morpheo_job_ends_total") and value} == {
        "morpheo_job_ends_total{cause=,kind=predict,state=succeeded}": 1,
        "morpheo_job_ends_total{cause=EXIT_CODE,kind=learn,state=failed}": 1,
        "morpheo_job_ends_total{cause=CANCELLED,kind=predict,state=cancelled}": 1,
    }
    assert seen["morpheo_queue_depth{kind=learn}"] == 2
    assert seen["morpheo_queue_depth{kind=predict}"] == 0  # the one that waits for its next attempt is not due
    assert seen["morpheo_queue_oldest_seconds{kind=predict}"] == 0
    assert seen["morpheo_step_seconds_sum{step=train}"] == 2.25  # the one that is under way has not ended
    assert seen["morpheo_step_seconds_count{step=train}"] == 1
    assert seen["morpheo_step_seconds_sum{step=predict}"] == 1.5
    assert seen["morpheo_step_failures_total{step=train}"] == 1


def test_jobs_and_steps_are_counted_in_the_database(database: Database) -> None:
    make_jobs_in_each_state(database)
    assert_they_are_shown(shown(database))


def test_the_age_of_the_queue_is_by_the_clock_of_the_database(database: Database) -> None:
    make_jobs_in_each_state(database)
    with database.begin() as work:
        work.jobs._session.execute(update(JobRow).values(created_at=JobRow.created_at - 1000))
        retried = make_predict_spec()
        work.jobs.add(retried, algo=None)
        work.jobs._session.execute(
            update(JobRow)
            .where(JobRow.id == retried.id)
            .values(created_at=JobRow.created_at - 1000, not_before=JobRow.created_at - 50)
        )
    seen = shown(database)
    assert 1000 <= seen["morpheo_queue_oldest_seconds{kind=learn}"] < 1300
    assert 50 <= seen["morpheo_queue_oldest_seconds{kind=predict}"] < 350  # since it is due again


def test_counting_reads_indexes_and_no_rows(sqlite: Database) -> None:
    with sqlite.read() as work:
        plans: list[str] = []
        session = work.statistics._session
        execute = session.execute

        def explained(query: object, *args: object) -> object:
            compiled = query.compile(session.connection(), compile_kwargs={"literal_binds": True})  # type: ignore[attr-defined]
            plans.extend(row.detail for row in execute(text(f"EXPLAIN QUERY PLAN {compiled}")))
            return execute(query)  # type: ignore[call-overload]

        session.execute = explained  # type: ignore[method-assign, assignment]
        work.statistics.read()
    assert [plan for plan in plans if "COVERING INDEX ix_jobs_state_kind" in plan]
    assert [plan for plan in plans if "COVERING INDEX ix_steps_name_seconds" in plan]
    assert [plan for plan in plans if "SEARCH jobs USING INDEX ix_jobs_state_" in plan]


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    migrate(folder)
    make_jobs_in_each_state(Database(Settings(data_dir=folder).database))
    return folder


@pytest.mark.parametrize("api", ["compute-api", "storage-api", "orchestrator-api"])
def test_an_api_shows_the_jobs_to_anybody_and_nothing_else_of_them(data_dir: Path, api: str) -> None:
    with serving(api, data_dir) as server:
        answer = requests.get(f"{server.url}/metrics", timeout=20)
        assert requests.head(f"{server.url}/metrics", timeout=20).status_code == 200
        assert requests.post(f"{server.url}/metrics", auth=("u", "p"), timeout=20).status_code == 405
    seen = parse(answer.text)
    assert_they_are_shown(seen)
    assert seen["morpheo_up{check=database}"] == 1
    assert seen["morpheo_disk_free_bytes{folder=data}"] > 0
    with_names = [name for name in seen if str(data_dir) in name or any(char * 8 in name for char in "0123456789")]
    assert with_names == []


def test_all_processes_of_an_api_count_together(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    migrate(tmp_path)
    shared = tmp_path / "shared"
    shared.mkdir()
    monkeypatch.setenv("TMPDIR", str(shared))
    with serving("storage-api", tmp_path, api_processes="2") as server:
        artifacts = [server.storage.upload(ArtifactKind.DATA, b"x" * 1000) for _ in range(20)]
        for artifact in artifacts[:5]:
            assert server.storage.read(ArtifactKind.DATA, artifact.id) == b"x" * 1000
        requests.get(f"{server.url}/{os.urandom(8).hex()}", auth=("u", "p"), timeout=20)
        before = scrape(server.url)
        assert before["morpheo_blob_bytes_total{direction=in,kind=data}"] == 20_000
        assert before["morpheo_blob_bytes_total{direction=out,kind=data}"] == 5_000
        assert before["morpheo_http_request_duration_seconds_count{method=POST,route=/<kind>,status=201}"] == 20
        assert before["morpheo_http_request_duration_seconds_count{method=,route=,status=404}"] == 1
        killed = server.pids()[1]
        os.kill(killed, signal.SIGKILL)
        wait_until(lambda: len(server.pids()) == 3 and killed not in server.pids(), what="a new process")
        assert scrape(server.url)["morpheo_blob_bytes_total{direction=in,kind=data}"] == 20_000
        assert len(list(shared.glob("morpheo-metrics-*"))) == 1
    assert list(shared.glob("morpheo-metrics-*")) == []


def _processes(pid: int) -> list[int]:
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return [pid, *map(int, children)]


@pytest.mark.database
def test_a_database_that_hangs_or_goes_is_told_in_time(monkeypatch: pytest.MonkeyPatch) -> None:
    binaries = postgres_bin()
    if binaries is None:
        missing("PostgreSQL")
    monkeypatch.setattr(metrics, "FRESH_S", 0)
    monkeypatch.setattr(metrics, "FRESH_FACTOR", 0)
    with tempfile.TemporaryDirectory(prefix="morpheo-pg-") as folder:
        with postgres_server(Path(folder), binaries) as host:
            database = Database(f"postgresql+psycopg://postgres@/postgres?host={host}")
            upgrade(database)
            assert shown(database)["morpheo_up{check=database}"] == 1
            pids = _processes(int((Path(folder) / "data" / "postmaster.pid").read_text().split()[0]))
            for pid in pids:
                os.kill(pid, signal.SIGSTOP)
            monkeypatch.setattr(metrics, "DEADLINE_S", 0.5)
            assert shown(database) == {"morpheo_up{check=database}": 0}
            monkeypatch.setattr(metrics, "DEADLINE_S", 20)
            for pid in pids:
                os.kill(pid, signal.SIGCONT)
            wait_until(lambda: shown(database)["morpheo_up{check=database}"] == 1, what="the database's return")
        assert shown(database) == {"morpheo_up{check=database}": 0}
        database.close()


@contextmanager
def running_worker(redis_url: str, data_dir: Path, **settings: str) -> Iterator[Path]:
    """Run a worker until the block ends; gives its log."""
    log = data_dir / "worker.log"
    variables = {**environment(data_dir, broker_url=redis_url, **settings), "REMAP_SIGTERM": "SIGQUIT"}
    command = [sys.executable, "-m", "celery", "-A", "morpheo", "worker", "--hostname", f"{data_dir.name}@%h"]
    with child(command, log, env=variables) as process:
        wait_until(lambda: " ready." in log.read_text() or process.poll() is not None, what="the worker")
        assert process.poll() is None, log.read_text()
        yield log


@pytest.mark.redis
def test_a_worker_shows_the_same_jobs_and_logs_only_json(tmp_path: Path, redis_url: str) -> None:
    """No engine listens: the jobs stay where they are, apart from those that are queued."""
    migrate(tmp_path)
    make_jobs_in_each_state(Database(Settings(data_dir=tmp_path).database))
    port = free_port()
    settings = {"metrics_port": str(port), "log": "json", "docker_host": "tcp://127.0.0.1:1", "sweep_s": "600"}
    with running_worker(redis_url, tmp_path, **settings) as log:
        seen = scrape(f"http://127.0.0.1:{port}")
    assert seen["morpheo_up{check=database}"] == 1
    assert seen["morpheo_jobs{kind=learn,state=failed}"] >= 1
    lines = [json.loads(line) for line in log.read_text().splitlines()]
    assert {"celery.apps.worker", "celery.worker.consumer.connection"} <= {line["logger"] for line in lines}


@pytest.mark.redis
def test_a_worker_whose_port_is_taken_says_so_once_and_works(tmp_path: Path, redis_url: str) -> None:
    migrate(tmp_path)
    port = free_port()
    with socket.create_server(("127.0.0.1", port)):
        settings = {"metrics_port": str(port), "docker_host": "tcp://127.0.0.1:1"}
        with running_worker(redis_url, tmp_path, **settings) as log:
            wait_until(lambda: "no metrics: " in log.read_text(), what="the complaint")
            wait_until(lambda: "clean_node put off" in log.read_text(), what="the sweeper")
    (line,) = [line for line in log.read_text().splitlines() if "no metrics" in line]
    assert f"port {port} of 127.0.0.1 cannot be used" in line
    assert "MORPHEO_METRICS_PORT" in line
