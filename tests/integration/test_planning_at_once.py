"""Planning on PostgreSQL by people, workers and sweepers at the same time: nobody meets an error, nothing is lost."""

from __future__ import annotations

import io
import random
import threading
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from itertools import chain
from pathlib import Path
from uuid import UUID, uuid4

import pytest
from sqlalchemy import text

from morpheo.artifacts import Upload
from morpheo.challenges import Problem
from morpheo.errors import Conflict
from morpheo.models import ArtifactKind, Blame, Cause, Failure, Job, JobKind, JobState, LearnSpec, Scores
from morpheo.orchestrator import Orchestrator
from tests.support.services import wait_until
from tests.support.workbench import ALGO, PROBLEM, Workbench, make_workbench

pytestmark = pytest.mark.database

BROKEN = Failure(cause=Cause.EXIT_CODE, blame=Blame.SUBMITTER, message="exit code 1")
ACTIVE = (JobState.QUEUED, JobState.RUNNING)


@pytest.fixture
def bench(postgres_url: str, tmp_path: Path) -> Iterator[Workbench]:
    made = make_workbench(postgres_url, tmp_path / "node")
    yield made
    made.database.close()


@pytest.fixture
def orchestrator(bench: Workbench) -> Orchestrator:
    return bench.resources.orchestrator


def make_problem(bench: Workbench, **changes: int) -> Problem:
    problem = Problem(
        id=uuid4(),
        workflow=bench.store(ArtifactKind.PROBLEM, PROBLEM, name="p", description="p"),
        test_data=(bench.store(ArtifactKind.DATA, b"t"),),
        created_at=datetime.now(UTC),
        **{"batch_size": 1, **changes},
    )
    return bench.resources.orchestrator.register_problem(problem)


def make_algo(bench: Workbench, problem: Problem) -> UUID:
    algo = bench.store(ArtifactKind.ALGO, ALGO, name="a")
    bench.resources.orchestrator.register_algo(algo, name="a", problem_id=problem.id)
    return algo


def make_data(bench: Workbench, count: int) -> list[UUID]:
    return [bench.store(ArtifactKind.DATA, b"x:1") for _ in range(count)]


def members(bench: Workbench, algo: UUID) -> list[tuple[LearnSpec, Job]]:
    jobs = bench.resources.orchestrator.jobs(JobKind.LEARN, algo=algo)
    found = [(job.spec, job) for job in jobs if isinstance(job.spec, LearnSpec)]
    return sorted(found, key=lambda member: member[0].rank)


def claim(bench: Workbench, job_id: UUID, *, lease_s: float = 60) -> Job | None:
    with bench.database.begin() as work:
        return work.jobs.claim(job_id, worker="ours", lease_s=lease_s, max_attempts=99)


class People:
    """Threads that do something again and again; what any of them raises fails the test."""

    def __init__(self) -> None:
        self.stop = threading.Event()
        self.errors: list[Exception] = []
        self._threads: list[threading.Thread] = []

    def start(self, action: Callable[[], object]) -> None:
        def run() -> None:
            try:
                while not self.stop.is_set():
                    action()
            except Exception as exc:  # noqa: BLE001 - looked at by the test
                self.errors.append(exc)
                self.stop.set()

        self._threads.append(threading.Thread(target=run, daemon=True))
        self._threads[-1].start()

    def join(self) -> None:
        for thread in self._threads:
            thread.join()
        assert self.errors == []


def train_any(bench: Workbench, rng: random.Random) -> None:
    """Take any job that waits in the queue, and end it in any way that a worker may."""
    jobs = bench.resources.orchestrator.jobs(JobKind.LEARN, states=(JobState.QUEUED,))
    job = claim(bench, rng.choice(jobs).id, lease_s=rng.choice([60, 60, 60, -1])) if jobs else None
    if job is None or not isinstance(job.spec, LearnSpec):
        return
    how = rng.random()
    if how < 0.1:
        return  # this worker died; if its lease runs out, the sweeper sees to it
    upload = Upload(kind=ArtifactKind.MODEL, id=job.spec.model_end, algo=job.algo)
    with bench.database.begin() as work:
        if how < 0.8:
            work.jobs.succeed(job.id, job.attempt, Scores(perf=rng.random()), result=upload.id)
        else:
            work.jobs.fail(job.id, job.attempt, BROKEN)


def test_everybody_plans_at_once(bench: Workbench, orchestrator: Orchestrator) -> None:
    problems = [make_problem(bench, parallel_ranks=1 + index, batch_size=2) for index in range(3)]
    pool = make_data(bench, 120)
    algos = {make_algo(bench, problem): problem for problem in problems for _ in range(3)}
    people, lock = People(), threading.Lock()
    rng = random.Random(4)

    def upload() -> None:
        with lock:
            items = [pool.pop() for _ in range(min(3, len(pool)))]
        if items:
            some = rng.sample(problems, rng.randint(1, 3))
            orchestrator.register_data(items, problem_ids=[problem.id for problem in some])
        else:
            time.sleep(0.05)

    def submit() -> None:
        if len(algos) < 15:
            problem = rng.choice(problems)
            algos[make_algo(bench, problem)] = problem
        else:
            time.sleep(0.05)

    def meddle() -> None:
        jobs = orchestrator.jobs(JobKind.LEARN)
        if not jobs:
            return
        job = rng.choice(jobs)
        if rng.random() < 0.5:
            bench.resources.jobs.cancel(job.id)
            return
        try:
            orchestrator.retry(job.id)
        except Conflict as exc:
            assert "already" in str(exc) or "only one that failed" in str(exc)  # noqa: PT017

    for action in (upload, upload, submit, meddle, meddle):
        people.start(action)
    for seed in range(6):
        people.start(lambda rng=random.Random(seed): train_any(bench, rng))  # type: ignore[misc]
    for _ in range(2):
        people.start(bench.resources.sweeper.recover_lost)
    people.stop.wait(8)
    people.stop.set()
    people.join()
    for algo, problem in algos.items():
        check(bench, algo, problem)


def check(bench: Workbench, algo: UUID, problem: Problem) -> None:
    """Compare a chain with what is registered."""
    with bench.database.read() as work:
        data = work.challenges.data_of(problem.id)
        stalled = work.challenges.submission(algo).stalled
    found = members(bench, algo)
    batches = {spec.rank: spec.train_data for spec, _ in found}
    assert sorted(batches) == list(range(len(batches)))
    assert list(chain.from_iterable(batches[rank] for rank in sorted(batches))) == data
    alive = [spec.rank for spec, job in found if job.state not in (JobState.FAILED, JobState.CANCELLED)]
    assert len(alive) == len(set(alive)), "the chain forks"
    active = sum(job.state in ACTIVE for _, job in found)
    assert active <= problem.parallel_ranks
    assert stalled or active == problem.parallel_ranks or not any(job.state is JobState.WAITING for _, job in found)
