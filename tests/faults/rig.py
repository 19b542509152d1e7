"""
A whole installation of real processes, each connection of which can be broken, and each part of which can be killed.

Redis, PostgreSQL and an S3 server; a compute and a storage API; two workers, ``one`` and ``two``, on one engine but
with data folders of their own, so two nodes. Sweepers run inside the workers. Every client reaches every server
through a link of its own. All of it starts once; a case hurts what it likes, and `Rig.settle` makes it whole again.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

from docker import APIClient

from morpheo.client import ComputeClient, StorageClient
from morpheo.config import Settings
from morpheo.errors import ApiError, ApiUnavailable, DatabaseUnavailable, NotFound
from morpheo.models import ArtifactKind, Job, JobSpec, JobState, LearnSpec, PredictSpec
from morpheo.resources import Resources
from morpheo.storage import migrate
from morpheo.testing import RecordingPublisher
from tests.conftest import BASE_IMAGE
from tests.faults import programs
from tests.faults.links import Link, Switchboard
from tests.faults.nodes import CELERY_CONFIG, LOGIN, Api, Worker, disarm, environment, make_api, make_worker
from tests.support.engine import Engine
from tests.support.servers import PATIENCE_S, S3, Postgres, Redis, Server, wait_until
from tests.support.services import S3Server

#: Every change of a job's state, written by the database itself.
_HISTORY = """
CREATE SCHEMA rig;
CREATE TABLE rig.history (
    n bigserial PRIMARY KEY, job_id uuid, state text, attempt bigint, strikes bigint,
    at timestamptz NOT NULL DEFAULT clock_timestamp()
);
CREATE FUNCTION rig.note() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
    IF TG_OP = 'INSERT' OR OLD.state IS DISTINCT FROM NEW.state OR OLD.attempt IS DISTINCT FROM NEW.attempt THEN
        INSERT INTO rig.history (job_id, state, attempt, strikes)
        VALUES (NEW.id, NEW.state, NEW.attempt, NEW.strikes);
    END IF;
    RETURN NULL;
END $$;
CREATE TRIGGER note AFTER INSERT OR UPDATE ON jobs FOR EACH ROW EXECUTE FUNCTION rig.note();
"""


#: How much is shown of each log.
_LINES = 60


@dataclass(frozen=True)
class Change:
    """One line of the history that the database writes."""

    state: JobState
    attempt: int
    strikes: int
    #: Seconds since the epoch, by the database's clock.
    at: float


@dataclass
class Ledger:
    """What a case was promised: orders and uploads that were answered with success."""

    orders: list[JobSpec] = field(default_factory=list)
    uploads: dict[tuple[ArtifactKind, UUID], str] = field(default_factory=dict)


class Rig:
    """
    The installation.

    Args:
        folder: An empty folder with a short path.
        source: An engine that has the base image; the rig's own copies it from there.
        kinds: Kinds of jobs that the workers take.
        slots: Jobs of each kind that a worker runs at once.
    """

    def __init__(self, folder: Path, source: APIClient, *, kinds: Iterable[str] = ("learn",), slots: int = 1) -> None:
        self.folder = folder
        self._source = source
        self.kinds = tuple(kinds)
        self.slots = slots
        self.ledger = Ledger()
        self._released: set[UUID] = set()
        self._closing = threading.Event()
        self._stack = ExitStack()

    # ---- start and end

    def start(self) -> None:
        """Start everything."""
        self.switchboard = Switchboard()
        self.redis, self.s3 = Redis(self.folder / "redis"), S3(self.folder / "s3")
        self.postgres = Postgres(self.folder / "postgres")
        self.dockerd = Engine(self.folder / "engine")
        self.servers: dict[str, Server] = {
            "redis": self.redis,
            "postgres": self.postgres,
            "s3": self.s3,
            "engine": self.dockerd,
        }
        self._stack.callback(self.dockerd.remove)
        self._stack.callback(self.switchboard.close)
        for server in self.servers.values():
            self._stack.callback(server.kill)
            server.start(wait=False)
        for server in self.servers.values():
            server.wait_ready()
        loading = threading.Thread(target=self.dockerd.load, args=(self._source, BASE_IMAGE))
        loading.start()
        self._stack.callback(loading.join)
        self.engine = self._stack.enter_context(contextlib.closing(self.dockerd.client()))
        self.resources = self._make_resources()
        self._stack.callback(self.resources.database.close)
        migrate.upgrade(self.resources.database)
        with self.postgres.connect() as connection:
            connection.execute(_HISTORY)
        self.resources.blobs.check()  # makes the bucket
        (self.folder / "celeryconfig.py").write_text(CELERY_CONFIG)
        self.compute_api, self.storage_api = (self._make_api(name) for name in ("compute", "storage"))
        self.workers = {name: self._make_worker(name) for name in ("one", "two")}
        self.one, self.two = self.workers.values()
        for api in (self.compute_api, self.storage_api):
            self._stack.callback(api.kill)
            api.start(wait=False)
        for worker in self.workers.values():
            self._stack.callback(worker.kill)
            worker.start(wait=False)
        self.compute_api.wait_ready()
        self.storage_api.wait_ready()
        self.compute = ComputeClient(f"http://{self.compute_api.front.address}", user=LOGIN[0], password=LOGIN[1])
        self.storage = StorageClient(f"http://{self.storage_api.front.address}", user=LOGIN[0], password=LOGIN[1])
        self._upload_shared()
        threading.Thread(target=self._release_for_ever, daemon=True, name="releaser").start()
        for worker in self.workers.values():
            worker.start()
        loading.join()
        assert self.engine.images(BASE_IMAGE)

    def _upload_shared(self) -> None:
        self.problem = self.upload(ArtifactKind.PROBLEM, programs.problem_archive(), name="p", description="d")
        self.algo = self.upload(ArtifactKind.ALGO, programs.algo_archive(), name="a")
        self._test_data = self.data()
        self._train_data = self.data()

    def close(self) -> None:
        """End everything; nothing of it is left."""
        self._closing.set()
        self._stack.close()

    def _make_resources(self) -> Resources:
        settings = Settings(
            data_dir=self.folder / "tests",
            database_url=self.postgres.url,
            s3_endpoint=self.s3.address,
            s3_access_key=S3Server.access_key,
            s3_secret_key=S3Server.secret_key,
            s3_secure=False,
            docker_host=self.dockerd.url,
        )
        return Resources(settings, RecordingPublisher())

    def _make_api(self, name: str) -> Api:
        return make_api(name, self.folder, self._links(name), self.switchboard.add)

    def _make_worker(self, name: str) -> Worker:
        return make_worker(name, self.folder, self._links(name), kinds=self.kinds, slots=self.slots)

    def _links(self, name: str) -> dict[str, Link]:
        targets = {
            "redis": self.redis.address,
            "postgres": self.postgres.address,
            "s3": self.s3.address,
            "engine": str(self.dockerd.socket),
        }
        return {
            server: self.switchboard.add(
                target, socket_path=self.folder / f"{name}.sock" if server == "engine" else None
            )
            for server, target in targets.items()
        }

    # ---- orders

    def upload(self, kind: ArtifactKind, content: bytes, **words: Any) -> UUID:
        """Upload an artifact; what was answered with success is remembered, to be looked for later."""
        stored = self.storage.upload(kind, content, **words)
        digest = hashlib.sha256(content).hexdigest()
        assert stored.sha256 == digest
        self.ledger.uploads[kind, stored.id] = digest
        return stored.id

    def data(self, *, hold: Iterable[str] = (), seconds: float = 0, size: int = 0, model_bytes: int = 0) -> UUID:
        """
        Upload a data file that is like no other.

        Args:
            hold: Steps that wait for `release` where they see it.
            seconds: How long train or predict take at least, if they see it.
            size: How large the file is at least, in bytes.
            model_bytes: How large a model is at least that is trained on it.
        """
        wishes = {"hold": list(hold), "seconds": seconds, "model_bytes": model_bytes}
        document = {**wishes, "detail": uuid4().hex + "x" * size}
        return self.upload(ArtifactKind.DATA, json.dumps(document).encode())

    def algo_of(self, *instructions: str) -> UUID:
        """Upload an algo that no engine has an image of, with more instructions in its Dockerfile."""
        return self.upload(ArtifactKind.ALGO, programs.algo_archive(*instructions), name="a")

    def make_learn(
        self, *, hold: str = "", seconds: float = 0, model_bytes: int = 0, fresh: bool = False, **changes: Any
    ) -> LearnSpec:
        """
        Return an order that was not given yet.

        Args:
            hold: Steps that wait for `release`, with commas: detarget, train, perf.
            seconds: How long training takes at least.
            model_bytes: How large the model is at least.
            fresh: Whether no node has anything of it yet: data, test set without targets, image of the algo.
            changes: Fields of the spec.
        """
        steps = set(filter(None, hold.split(",")))
        test_steps = steps - {"train"}
        own_train = steps or seconds or model_bytes or fresh
        train = (
            self.data(hold=steps - test_steps, seconds=seconds, model_bytes=model_bytes)
            if own_train
            else self._train_data
        )
        test = self.data(hold=test_steps) if test_steps or fresh else self._test_data
        values: dict[str, Any] = {
            "id": uuid4(),
            "problem": self.problem,
            "workflow": self.problem,
            "algo": self.algo_of() if fresh else self.algo,
            "train_data": (train,),
            "test_data": (test,),
            "model_start": None,
            "model_end": uuid4(),
        }
        return LearnSpec(**{**values, **changes})

    def order(self, **options: Any) -> LearnSpec:
        """Order a learn job as `make_learn` makes it."""
        spec = self.make_learn(**options)
        self.submit(spec)
        return spec

    def order_prediction(self, model: UUID, *, hold: bool = False, seconds: float = 0) -> PredictSpec:
        """Order a prediction with a model that exists; held, it waits for `release`."""
        spec = self.make_prediction(model, hold=hold, seconds=seconds)
        self.submit(spec)
        return spec

    def make_prediction(self, model: UUID, *, hold: bool = False, seconds: float = 0) -> PredictSpec:
        """Return an order to predict with a model, which was not given yet."""
        data = self.data(hold=["predict"] if hold else [], seconds=seconds)
        return PredictSpec(id=uuid4(), problem=self.problem, workflow=self.problem, model=model, data=data)

    def submit(self, spec: JobSpec) -> None:
        """Give an order; one that was answered with success is remembered, to be looked for later."""
        self.compute.submit(spec)
        self.ledger.orders.append(spec)

    def release(self, *specs: JobSpec) -> None:
        """Let the steps of held jobs go on, in this attempt and in all others."""
        self._released.update(spec.id for spec in specs)

    def _release_for_ever(self) -> None:
        while not self._closing.wait(0.05):
            for worker in self.workers.values():
                with contextlib.suppress(OSError):
                    for workspace in worker.workspaces():
                        self._release_here(workspace)

    def _release_here(self, workspace: Path) -> None:
        job_id, _, _ = workspace.name.rpartition("-")
        if UUID(job_id) not in self._released:
            return
        for folder, steps in (("train", ("train",)), ("test", ("detarget", "perf", "predict"))):
            for step in steps:
                with contextlib.suppress(OSError):  # not made yet, or on its way out
                    (workspace / folder / f"go-{step}").mkdir()

    # ---- what is known

    def job(self, spec: JobSpec) -> Job:
        """Return a job as the database has it."""
        return self.resources.jobs.get(spec.id)

    def history(self, spec: JobSpec) -> list[Change]:
        """Return what the database has written down of a job's states and attempts."""
        rows = self.postgres.query(
            "SELECT state, attempt, strikes, extract(epoch FROM at)::float FROM rig.history"
            " WHERE job_id = %s ORDER BY n",
            spec.id,
        )
        return [Change(JobState(state), attempt, strikes, at) for state, attempt, strikes, at in rows]

    def now(self) -> float:
        """Return the database's time, in seconds since the epoch."""
        return float(self.postgres.query("SELECT extract(epoch FROM clock_timestamp())::float")[0][0])

    def wait(self, condition: Callable[[], bool], what: str, *, timeout_s: float = PATIENCE_S) -> None:
        """Wait until a condition holds; a service that does not answer is waited for too."""

        def holds() -> bool:
            with contextlib.suppress(DatabaseUnavailable, ApiUnavailable, ApiError, NotFound):
                return condition()
            return False

        wait_until(holds, timeout_s=timeout_s, what=what)

    def wait_state(self, spec: JobSpec, *states: JobState, timeout_s: float = PATIENCE_S) -> Job:
        """Wait until a job is in one of these states."""
        self.wait(lambda: self.job(spec).state in states, f"{spec.id} to be {states}", timeout_s=timeout_s)
        return self.job(spec)

    def wait_done(self, spec: JobSpec, *, state: JobState = JobState.SUCCEEDED, timeout_s: float = PATIENCE_S) -> Job:
        """Let a job go on and wait until it is over; it must have ended in this way."""
        self.release(spec)
        self.wait(lambda: self.job(spec).state.is_final, f"{spec.id} to end", timeout_s=timeout_s)
        job = self.job(spec)
        assert job.state is state, (job.state, job.failure, job.attempts)
        return job

    def wait_attempt(self, spec: JobSpec, number: int) -> Job:
        """Wait until a job is at an attempt, or a later one."""
        self.wait(lambda: self.job(spec).attempt >= number, f"attempt {number} of {spec.id}")
        return self.job(spec)

    def begin(self, spec: JobSpec, step: str) -> tuple[Worker, Worker]:
        """Wait until a job's current attempt is at a step; give the worker that runs it, and the other one."""

        def at_step() -> bool:
            attempts = self.job(spec).attempts
            return bool(attempts) and any(item.name == step for item in attempts[-1].steps)

        self.wait(at_step, f"step {step} of {spec.id}")
        return self.where(spec)

    def begin_container(self, spec: JobSpec, step: str) -> tuple[Worker, Worker]:
        """As `begin`, and wait until the container of that step runs."""
        found = self.begin(spec, step)
        name = f"morpheo-{spec.id}-{self.job(spec).attempt}-{step}"

        def runs() -> bool:
            return bool(self.engine.containers(filters={"name": name}))

        self.wait(runs, f"container {name}")
        return found

    def where(self, spec: JobSpec) -> tuple[Worker, Worker]:
        """Return the worker that runs a job, and the other one."""
        name = f"{spec.id}-{self.job(spec).attempt}"
        has = [worker for worker in self.workers.values() if (worker.work_dir / name).exists()]
        assert len(has) == 1, f"{name} is at {[worker.name for worker in has]}"
        return (self.one, self.two) if has[0] is self.one else (self.two, self.one)

    def worker_of(self, job: Job) -> Worker:
        """Return the worker whose process has a job's lease, by the number of that process."""
        assert job.worker is not None
        pid = int(job.worker.split("-")[-2])
        for worker in self.workers.values():
            for node in worker.nodes.values():
                with contextlib.suppress(ProcessLookupError):
                    if node.is_running and os.getpgid(pid) == node.pid:
                        return worker
        raise AssertionError(f"no process {pid} of {job.worker}")

    def containers(self, spec: JobSpec) -> list[str]:
        """Return the names of the containers of a job, running or not."""
        found = self.engine.containers(all=True, filters={"name": f"morpheo-{spec.id}-"})
        return [name.removeprefix("/") for item in found for name in item["Names"]]

    def blob_keys(self, spec: JobSpec) -> set[str]:
        """Return the keys of all blobs that an attempt at a job has stored as its result."""
        kind, result = result_of(spec)
        return {blob.key for blob in self.resources.blobs.list(f"{kind}/{result}/")}

    def publish(self, *specs: JobSpec, times: int = 1) -> None:
        """Send messages to the workers, as the APIs do, whether a job is there or not."""
        code = (
            "import sys; from morpheo.tasks import CeleryPublisher, process_resources\n"
            "from uuid import UUID\n"
            "for job_id in sys.argv[2:]:\n"
            "    spec = process_resources().jobs.get(UUID(job_id)).spec\n"
            "    [CeleryPublisher().publish(spec) for _ in range(int(sys.argv[1]))]\n"
        )
        arguments = [str(times), *(str(spec.id) for spec in specs)]
        run_python(code, arguments, environment("tests", self.compute_api.links, self.folder), self.folder)

    def described(self) -> list[tuple[str, str]]:
        """Return what helps to understand a failed case: titles and texts."""
        sections = []
        for spec in self.ledger.orders:
            with contextlib.suppress(Exception):  # the database may be what failed
                changes = "\n".join(map(str, self.history(spec)))
                sections.append((f"order {spec.id}", f"{self.job(spec)}\n{changes}"))
        nodes = [node for worker in self.workers.values() for node in worker.nodes.values()]
        logging = (*nodes, self.compute_api, self.storage_api, *self.servers.values())
        logs = [(server.name, "\n".join(server.new_log().splitlines()[-_LINES:])) for server in logging]
        return sections + logs

    # ---- the whole again

    def heal(self) -> None:
        """End every fault, without waiting until all is well."""
        for server in self.servers.values():
            server.heal()
        for api in (self.compute_api, self.storage_api):
            disarm(api.failpoints)
            api.front.heal()
            for link in api.links.values():
                link.heal()
            api.heal()
        for worker in self.workers.values():
            worker.disarm()
            worker.heal()

    def settle(self) -> None:
        """End every fault, and wait until every part answers and both workers take jobs."""
        self.heal()
        for server in (*self.servers.values(), self.compute_api, self.storage_api):
            server.wait_ready()
        for worker in self.workers.values():
            for node in worker.nodes.values():
                if not node.is_running:  # it died just now
                    node.start(wait=False)
                node.wait_ready()

    def both_take_jobs(self) -> None:
        """Check that two jobs are soon at work at once, one on each worker."""
        specs = [self.order(hold="train") for _ in self.workers]
        self.wait(
            lambda: all(self.job(spec).state is JobState.RUNNING for spec in specs), "a job at each of the workers"
        )
        for spec in specs:
            self.wait_done(spec)

    def forget_case(self) -> None:
        """Begin with an empty ledger."""
        self.ledger = Ledger()


def result_of(spec: JobSpec) -> tuple[ArtifactKind, UUID]:
    """Return what a job ends with."""
    if isinstance(spec, LearnSpec):
        return ArtifactKind.MODEL, spec.model_end
    return ArtifactKind.PREDICTION, spec.prediction


def run_python(code: str, arguments: list[str], environment: dict[str, str], folder: Path) -> str:
    """Run code in a process of its own; give what it prints."""
    command = [sys.executable, "-c", code, *arguments]
    done = subprocess.run(command, env=environment, cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def _interrupt(_number: int, _frame: object) -> None:
    raise KeyboardInterrupt


@contextlib.contextmanager
def running_rig(source: APIClient, **options: Any) -> Iterator[Rig]:
    """Give a rig that has started, with the base image of an engine; nothing is left of it."""
    # Short, because of the sockets in it; not below pytest's own folder, which PostgreSQL's user cannot reach.
    folder = Path(tempfile.mkdtemp(prefix="rig-"))
    folder.chmod(0o755)
    rig = Rig(folder, source, **options)
    # Told to stop, this process ends all that it started: nobody else knows of it.
    before = signal.signal(signal.SIGTERM, _interrupt)
    try:
        rig.start()
        yield rig
    finally:
        try:
            rig.close()
        finally:
            signal.signal(signal.SIGTERM, before)
            shutil.rmtree(folder, ignore_errors=True)
