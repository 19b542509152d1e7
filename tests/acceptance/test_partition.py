"""Two worker hosts in networks of their own: one is cut off, frozen or forgotten in mid-job, and comes back."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import psycopg
import pytest
from docker import APIClient

from morpheo.models import ArtifactKind, AttemptOutcome, Job, JobState, LearnSpec
from morpheo.runtime.profile import LABEL_NODE
from tests.conftest import missing
from tests.support.jobs import ALGO, PROBLEM, image_archive
from tests.support.networks import HUB, Network, make_network, networks_can_be_made
from tests.support.services import (
    S3Server,
    postgres_bin,
    postgres_server,
    redis_binary,
    redis_server,
    s3_server,
    wait_until,
    weed_binary,
)
from tests.support.workers import HELD, Site, make_site

pytestmark = [pytest.mark.docker, pytest.mark.database, pytest.mark.redis, pytest.mark.s3]

PATIENCE_S = 120
LEASE_S, HEARTBEAT_S = 12.0, 0.5
PASSWORD = "of-redis"
#: The perf container waits for a folder that only its node can make.
HELD_PROBLEM = PROBLEM.replace(
    "else:", "else:\n    import time\n    while not os.path.isdir(args.s + '/train/go'): time.sleep(0.05)"
)
#: A model that no log is as long as, and that fits into what a machine takes for a server that does not read.
MODEL_BYTES = 32 << 10
ALGO_WITH_BALLAST = f"{ALGO}open(args.V + '/model/ballast', 'wb').write(os.urandom({MODEL_BYTES}))\n"
LOST_THEN_DONE = [AttemptOutcome.LOST, AttemptOutcome.SUCCEEDED]


@dataclass(frozen=True)
class Host:
    """A machine with a worker."""

    name: str
    data_dir: Path
    engine: APIClient

    def workspace(self, job: Job) -> Path:
        """Return where this host keeps the running attempt at a job, if it has it."""
        return self.data_dir / "work" / f"{job.spec.id}-{job.attempt}"

    def containers(self) -> list[str]:
        """Return the ids of this host's containers."""
        node = (self.data_dir / "node-id").read_text()
        return [item["Id"] for item in self.engine.containers(all=True, filters={"label": f"{LABEL_NODE}={node}"})]

    def is_clean(self) -> bool:
        """Return whether nothing of any job is left here."""
        return not self.containers() and not list((self.data_dir / "work").iterdir())


@dataclass(frozen=True)
class Field:
    """The servers in the hub, and two hosts, each with one slot."""

    site: Site
    network: Network
    s3: S3Server
    hosts: tuple[Host, Host]

    def described(self) -> list[tuple[str, str]]:
        """Return what helps to understand a failed test: titles and texts."""
        return self.site.described()

    def job(self, spec: LearnSpec) -> Job:
        return self.site.resources.jobs.get(spec.id)

    def begin(self, spec: LearnSpec, step: str) -> tuple[Host, Host]:
        """Wait until a job's current attempt is at a step; gives the host that runs it, and the other one."""
        self.site.wait_for_step(spec.id, step)
        job = self.job(spec)
        first, second = self.hosts
        assert first.workspace(job).exists() != second.workspace(job).exists()
        return (first, second) if first.workspace(job).exists() else (second, first)

    def take_over(self, spec: LearnSpec, lost: Host, step: str) -> Job:
        """Wait until the other host has taken a job, let it, and return the job that is done."""
        wait_until(lambda: self.job(spec).attempt == 2, timeout_s=PATIENCE_S, what="a second attempt")
        other, _ = self.begin(spec, step)
        assert other is not lost
        release(other, self.job(spec))
        self.site.wait_for(spec.id, JobState.SUCCEEDED)
        return self.job(spec)

    def blobs(self, spec: LearnSpec) -> set[str]:
        """Return the keys of all blobs that were ever meant to be a job's model, and are there."""
        return {blob.key for blob in self.site.resources.blobs.list(f"model/{spec.model_end}/")}

    def order(self, hold: str = "train") -> LearnSpec:
        """Order a learn job that waits for `release` at one of its steps."""
        algo, problem = (ALGO_WITH_BALLAST, HELD_PROBLEM) if hold == "perf" else (HELD, PROBLEM)
        store = self.site.bench.store
        spec = self.site.bench.learn_spec(
            algo=store(ArtifactKind.ALGO, image_archive(algo), name="a"),
            workflow=store(ArtifactKind.PROBLEM, image_archive(problem), name="p", description="p"),
        )
        self.site.resources.jobs.submit(spec)
        return spec

    def s3_has_unread_model(self) -> bool:
        """Return whether so many bytes as a model has wait for the S3 server, which does not read them."""
        port = self.s3.endpoint.rpartition(":")[2]
        command = ["ss", "-Htn", "state", "established", "sport", "=", f":{port}"]
        lines = subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()
        return any(int(line.split()[0]) >= MODEL_BYTES for line in lines)

    @contextlib.contextmanager
    def locked(self, spec: LearnSpec) -> Iterator[None]:
        """Hold the lock of a job's row."""
        with self.connection() as connection, connection.transaction():
            connection.execute("SELECT FROM jobs WHERE id = %s FOR UPDATE", [spec.id])
            yield

    def is_waited_for(self) -> bool:
        """Return whether anybody waits for a lock of a row, so long that TCP has acknowledged the statement."""
        query = (
            "SELECT count(*) FROM pg_stat_activity"
            " WHERE wait_event_type = 'Lock' AND clock_timestamp() - state_change > interval '0.3 s'"
        )
        with self.connection() as connection:
            return bool(connection.execute(query).fetchall()[0][0])

    def lease(self, spec: LearnSpec) -> tuple[float, float]:
        """Return when a job's lease runs out, and how long that is from now, in seconds."""
        query = "SELECT lease_expires_at, lease_expires_at - extract(epoch FROM now())::float FROM jobs WHERE id = %s"
        with self.connection() as connection:
            expires_at, left_s = connection.execute(query, [spec.id]).fetchall()[0]
            return expires_at, left_s

    def connection(self) -> psycopg.Connection[tuple[Any, ...]]:
        """Return a connection to the database that knows nothing of jobs."""
        return psycopg.connect(host=HUB, user="postgres", dbname="postgres")

    def check_done_once(self, spec: LearnSpec, done: Job, lost: Host) -> None:
        """Check that the return of a host changes nothing, that it tidies up, and that it works again."""
        wait_until(lost.is_clean, timeout_s=PATIENCE_S, what="a clean host")
        model = self.site.resources.artifacts.get(ArtifactKind.MODEL, spec.model_end)
        wait_until(lambda: self.blobs(spec) == {model.blob_key}, timeout_s=PATIENCE_S, what="one blob")
        self.check_both_work()
        job = self.job(spec)
        # The lost attempt's own steps may still be filled in.
        assert replace(job, attempts=job.attempts[1:]) == replace(done, attempts=done.attempts[1:])
        assert [attempt.outcome for attempt in job.attempts] == LOST_THEN_DONE
        assert (job.state, job.strikes) == (JobState.SUCCEEDED, 1)
        assert self.site.resources.artifacts.get(ArtifactKind.MODEL, spec.model_end) == model
        assert f"/{spec.model_end}/2-" in model.blob_key

    def check_both_work(self) -> None:
        """Check that two jobs are soon at work at once: each host has one slot."""
        specs = [self.order() for _ in self.hosts]
        running = [self.begin(spec, "train")[0] for spec in specs]
        assert {host.name for host in running} == {host.name for host in self.hosts}
        for host, spec in zip(running, specs, strict=True):
            release(host, self.job(spec))
        for spec in specs:
            self.site.wait_for(spec.id, JobState.SUCCEEDED)
            assert self.job(spec).attempt == 1


def release(host: Host, job: Job) -> None:
    """Let the container of a held job go on."""
    (host.workspace(job) / "train" / "go").mkdir()


@contextlib.contextmanager
def frozen(pid: int) -> Iterator[None]:
    """Stop a process for as long as the block lasts."""
    os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(pid, signal.SIGCONT)


@pytest.fixture(scope="module")
def nameless(engine: APIClient) -> Iterator[None]:
    """Images whose tag went to the one of the other host, when both built it at once, go with the hosts."""

    def found() -> set[str]:
        return {image["Id"] for image in engine.images(filters={"dangling": True})}

    before = found()
    yield
    for image_id in found() - before:
        engine.remove_image(image_id, force=True)


@pytest.fixture(scope="module")
def field(nameless: None, engine: APIClient, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Field]:
    """Both hosts at work; this thread is in the hub as long as they are."""
    if not networks_can_be_made():
        missing("root or iproute2")
    folder = tmp_path_factory.mktemp("partition")
    with ExitStack() as stack:
        network = stack.enter_context(make_network("one", "two"))
        stack.enter_context(network.hub.entered())
        s3, database_url, broker_url = start_servers(stack, folder)
        settings = {
            "MORPHEO_DATABASE_URL": database_url,
            "MORPHEO_S3_ENDPOINT": s3.endpoint,
            "MORPHEO_S3_ACCESS_KEY": s3.access_key,
            "MORPHEO_S3_SECRET_KEY": s3.secret_key,
            "MORPHEO_S3_SECURE": "false",
            "MORPHEO_LEASE_S": str(LEASE_S),
            "MORPHEO_HEARTBEAT_S": str(HEARTBEAT_S),
        }
        site = stack.enter_context(make_site(folder, broker_url, **settings))
        one, two = (Host(name, folder / name, engine) for name in network.hosts)

        def start(host: Host) -> None:
            wrapper = network.hosts[host.name].wrapper
            data_dir = str(host.data_dir)
            site.start(host.name, "--predict-parallelism=0", nodes=1, wrapper=wrapper, MORPHEO_DATA_DIR=data_dir)

        with ThreadPoolExecutor() as pool:
            list(pool.map(start, (one, two)))
        yield Field(site, network, s3, (one, two))


def start_servers(stack: ExitStack, folder: Path) -> tuple[S3Server, str, str]:
    """Start S3, PostgreSQL and Redis in the hub; gives the URLs of the latter two."""
    weed, postgres, redis = weed_binary(), postgres_bin(), redis_binary()
    if weed is None or postgres is None or redis is None:
        missing("SeaweedFS, PostgreSQL or Redis")
    for name in ("s3", "redis"):
        (folder / name).mkdir()
    s3 = stack.enter_context(s3_server(folder / "s3", weed, host=HUB))
    # Not below pytest's own folder: the server's user must reach it.
    data = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="morpheo-pg-")))
    stack.enter_context(postgres_server(data, postgres, host=HUB))
    url = stack.enter_context(redis_server(folder / "redis", redis, "--requirepass", PASSWORD, host=HUB))
    broker_url = url.replace("redis://", f"redis://:{PASSWORD}@")
    return s3, f"postgresql+psycopg://postgres@{HUB}/postgres", broker_url


def test_a_host_cut_off_for_longer_than_its_lease_loses_its_job(field: Field) -> None:
    spec = field.order()
    lost, _ = field.begin(spec, "train")
    wait_until(lambda: bool(lost.containers()), timeout_s=PATIENCE_S, what="a container")
    with field.network.cut_off(lost.name):
        done = field.take_over(spec, lost, "train")
        # What protects the result is the number of the attempt: nobody can tell this host to stop.
        assert lost.containers()
    field.check_done_once(spec, done, lost)


def test_a_host_whose_connections_are_forgotten_learns_of_it(field: Field) -> None:
    """A statement was sent and received, and no answer will ever come: nothing is left to be sent again."""
    spec = field.order()
    lost, _ = field.begin(spec, "train")
    with ExitStack() as cable:
        with field.locked(spec):
            wait_until(field.is_waited_for, timeout_s=PATIENCE_S, what="a heartbeat that waits for the lock")
            cable.enter_context(field.network.cut_off(lost.name))
            field.network.forget(lost.name)
        done = field.take_over(spec, lost, "train")
    field.check_done_once(spec, done, lost)


@pytest.mark.parametrize("how", ["frozen", "cut-off"])
def test_a_result_that_comes_too_late_is_refused(field: Field, how: str) -> None:
    """The host goes away when it has given its model to S3; that is stored, the row is yet to be written."""
    spec = field.order("perf")
    lost, _ = field.begin(spec, "perf")
    worker = field.job(spec).worker
    assert worker is not None
    with ExitStack() as gone:
        with frozen(field.s3.pid):
            release(lost, field.job(spec))
            wait_until(field.s3_has_unread_model, timeout_s=PATIENCE_S, what="an upload")
            away = frozen(int(worker.split("-")[-2])) if how == "frozen" else field.network.cut_off(lost.name)
            gone.enter_context(away)
        wait_until(lambda: bool(field.blobs(spec)), timeout_s=PATIENCE_S, what="the late model")
        (late,) = field.blobs(spec)
        assert f"/{spec.model_end}/1-" in late
        done = field.take_over(spec, lost, "perf")
        assert len(field.blobs(spec)) == 2
    field.check_done_once(spec, done, lost)


def test_a_host_cut_off_for_less_than_its_lease_keeps_its_job(field: Field) -> None:
    spec = field.order()
    holder, _ = field.begin(spec, "train")
    with field.network.cut_off(holder.name):
        before = field.lease(spec)[0]
        wait_until(lambda: field.lease(spec)[1] < LEASE_S - 3 * HEARTBEAT_S, what="heartbeats that are missed")
        last = field.lease(spec)[0]  # one was on its way, at most
        assert last < before + 2 * HEARTBEAT_S
    wait_until(lambda: field.lease(spec)[0] > last, timeout_s=PATIENCE_S, what="a heartbeat")
    release(holder, field.job(spec))
    field.site.wait_for(spec.id, JobState.SUCCEEDED)
    job = field.job(spec)
    assert (job.attempt, job.strikes) == (1, 0)
    wait_until(holder.is_clean, timeout_s=PATIENCE_S, what="a clean host")
