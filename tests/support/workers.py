"""`morpheo worker` as processes, and the node's own view of their jobs."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from uuid import UUID

from celery import Celery

from morpheo.config import PREFIX, Settings
from morpheo.models import ArtifactKind, JobState, LearnSpec
from morpheo.resources import Resources
from morpheo.specs import spec_to_dict
from morpheo.storage import migrate
from morpheo.storage.job_filter import JobFilter
from morpheo.testing import RecordingPublisher
from tests.support.jobs import ALGO, PROBLEM, image_archive
from tests.support.services import child, wait_until
from tests.support.workbench import Workbench, make_workbench

#: So much of each log is shown with a test that failed.
LINES = 60
#: Options of a worker with one node: each node, and each of its pool processes, imports everything anew.
LEARN_ONLY = ("--predict-parallelism", "0")
#: Waits for a folder that only its node can make.
HELD = (
    "import os, time\nprint('waits', flush=True)\nwhile not os.path.isdir('/data/train/go'): time.sleep(0.05)\n" + ALGO
)

_SUBMIT = """
import json
from morpheo.models import JobKind
from morpheo.specs import spec_from_dict
from morpheo.tasks import process_resources
process_resources().jobs.submit(spec_from_dict(JobKind.LEARN, json.loads(input())))
"""
# Only nodes that answer in time are drained, and where many tests run two seconds are little.
_DRAIN = """
import sys
from morpheo.cli import main
from morpheo.tasks import control
control.ANSWER_S = 6
sys.argv[1:] = ["workers", "drain", input()]
main()
"""


@dataclass
class Site:
    """A machine with a broker's address, on which workers can be started; orders reach them by way of the sweeper."""

    bench: Workbench
    environment: dict[str, str]
    folder: Path
    stack: ExitStack = field(default_factory=ExitStack)

    @property
    def resources(self) -> Resources:
        return self.bench.resources

    def start(
        self, name: str, *options: str, nodes: int = 2, wrapper: Sequence[str] = (), **settings: str
    ) -> subprocess.Popen[bytes]:
        """Start a worker, by a program that runs its command or directly, and wait for its nodes."""
        log = self.folder / f"{name}.log"
        command = [*wrapper, sys.executable, "-m", "morpheo", "worker", "--name", name, *options]
        environment = {**self.environment, **settings}
        process = self.stack.enter_context(child(command, log, cwd=self.folder, env=environment))
        wait_until(
            lambda: log.read_text().count(" ready.") == nodes or process.poll() is not None, what=f"worker {name}"
        )
        assert process.poll() is None, log.read_text()
        return process

    def log(self, name: str) -> str:
        """Return what a worker has logged."""
        return (self.folder / f"{name}.log").read_text()

    def described(self) -> list[tuple[str, str]]:
        """Return all jobs, and the ends of what all workers have logged: titles and texts."""
        logs = {path.name: path.read_text().splitlines()[-LINES:] for path in sorted(self.folder.glob("*.log"))}
        newest, _ = self.resources.jobs.page(JobFilter(), limit=10)
        jobs = [str(self.resources.jobs.get(job.spec.id)) for job in newest]
        return [("jobs", "\n".join(jobs)), *((name, "\n".join(lines)) for name, lines in logs.items())]

    def cli(self, *arguments: str, status: int = 0) -> str:
        """Run the `morpheo` command; gives what it prints, to stderr if it fails."""
        command = [sys.executable, "-m", "morpheo", *arguments]
        done = subprocess.run(
            command, cwd=self.folder, env=self.environment, capture_output=True, text=True, check=False
        )
        assert done.returncode == status, done.stdout + done.stderr
        return done.stderr if status else done.stdout

    def workers(self) -> dict[str, dict[str, Any]]:
        """Return what `morpheo workers list` shows, by node."""
        return {node["name"]: node for node in json.loads(self.cli("workers", "list", "--json"))}

    def drain(self, name: str) -> str:
        """Return what `morpheo workers drain` prints, with more time for nodes to answer."""
        return self.python(_DRAIN, name)

    def answering(self) -> set[str]:
        """Return the names of the nodes that answer within a second, without a process of its own as `workers` has."""
        app = Celery("observer", broker=self.environment["MORPHEO_BROKER_URL"])
        with app.connection_for_write() as connection:
            answers = app.control.ping(timeout=1, connection=connection) or []
        return {name for answer in answers for name in answer}

    def order(self, *, held: bool = False, published: bool = False, owner: str = "", **changes: Any) -> LearnSpec:
        """
        Order a learn job: one whose container waits for `release`, or one that fails before anything is built.

        Published, as an API does it, or not, so that a worker's sweeper has to. Its algo belongs to `owner`.
        """
        archive = image_archive(PROBLEM) if held else b"no archive"
        problem = self.bench.store(ArtifactKind.PROBLEM, archive, name="p", description="p")
        algo = self.bench.store(ArtifactKind.ALGO, image_archive(HELD), name="x")
        if owner:
            with self.resources.database.begin() as work:
                work.artifacts.give(ArtifactKind.ALGO, algo, owner)
        spec = self.bench.learn_spec(algo=algo, workflow=problem, **changes)
        if published:
            self.python(_SUBMIT, json.dumps(spec_to_dict(spec)))
        else:
            self.resources.jobs.submit(spec)
        return spec

    def backlog(self, queue: str) -> int:
        """Return how many messages wait in a queue, as a sweeper sees it."""
        return int(
            self.python("from morpheo.tasks import CeleryPublisher; print(CeleryPublisher().backlog(input()))", queue)
        )

    def python(self, code: str, text: str) -> str:
        """Run code in a process with the site's settings; gives what it prints."""
        command = [sys.executable, "-c", code]
        done = subprocess.run(
            command, env=self.environment, cwd=self.folder, input=text, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    def release(self, spec: LearnSpec, *, attempt: int = 1) -> None:
        """Let the container of a held job go on."""
        (self.bench.work_dir / f"{spec.id}-{attempt}" / "train" / "go").mkdir()

    def state(self, job_id: UUID) -> JobState:
        return self.resources.jobs.get(job_id).state

    def wait_for(self, job_id: UUID, *states: JobState) -> None:
        wait_until(lambda: self.state(job_id) in states, what=f"{job_id} to be {states}")

    def wait_for_step(self, job_id: UUID, name: str) -> None:
        def running() -> bool:
            attempts = self.resources.jobs.get(job_id).attempts
            return bool(attempts) and any(step.name == name for step in attempts[-1].steps)

        wait_until(running, what=f"step {name}")


@contextlib.contextmanager
def make_site(folder: Path, broker_url: str, **settings: str) -> Iterator[Site]:
    """Give a site with no worker yet; all of them are stopped at the end."""
    data_dir = folder / "data"
    environment = {
        **os.environ,
        "MORPHEO_DATA_DIR": str(data_dir),
        "MORPHEO_BROKER_URL": broker_url,
        "MORPHEO_SWEEP_S": "1",
        "MORPHEO_LEASE_S": "10",
        "MORPHEO_HEARTBEAT_S": "0.5",
        "MORPHEO_STOP_GRACE_S": "1",
        **settings,
    }
    values = {name.removeprefix(PREFIX).lower(): value for name, value in settings.items()}
    resources = Resources(Settings(data_dir=data_dir, **values), RecordingPublisher())  # type: ignore[arg-type]
    migrate.upgrade(resources.database)
    bench = make_workbench(resources.settings.database, data_dir)
    vars(bench.resources)["blobs"] = resources.blobs
    bench.publisher.down = True  # nothing is marked as published that no broker has
    site = Site(bench, environment, folder)
    try:
        yield site
    finally:
        site.stack.close()
        resources.database.close()
        bench.database.close()
