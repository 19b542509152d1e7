"""Planning on PostgreSQL by people, workers and sweepers at the same time: nobody meets an error, nothing is lost."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from datetime import UTC, datetime
from itertools import chain
from pathlib import Path
from uuid import UUID, uuid4

import pytest
from sqlalchemy import text

from morpheo.artifacts import Upload
from morpheo.challenges import Problem
from morpheo.errors import Conflict, MorpheoError
from morpheo.models import (
    ArtifactKind,
    AttemptOutcome,
    Blame,
    Cause,
    Failure,
    Job,
    JobKind,
    JobState,
    LearnSpec,
    Scores,
)
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


def make_problem(bench: Workbench, *, batch_size: int = 1, parallel_ranks: int = 1) -> Problem:
    problem = Problem(
        id=uuid4(),
        workflow=bench.store(ArtifactKind.PROBLEM, PROBLEM, name="p", description="p"),
        test_data=(bench.store(ArtifactKind.DATA, b"t"),),
        created_at=datetime.now(UTC),
        batch_size=batch_size,
        parallel_ranks=parallel_ranks,
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


def wait_for_locks(bench: Workbench, count: int) -> None:
    """Wait until so many statements of this database wait for a lock."""
    query = text(
        "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'"
    )

    def waiting() -> bool:
        with bench.database.connect() as connection:
            return bool(connection.execute(query).scalar_one() >= count)

    wait_until(waiting, what="the locks")


@contextmanager
def meanwhile(bench: Workbench, *actions: Callable[[], object]) -> Iterator[None]:
    """Start what must wait for a lock that the caller holds, go on when it does; its errors fail the test."""
    with ThreadPoolExecutor() as pool:
        started = [pool.submit(action) for action in actions]
        wait_for_locks(bench, len(actions))
        yield
    for future in started:
        future.result()


def test_a_rank_is_cancelled_while_it_ends(bench: Workbench, orchestrator: Orchestrator) -> None:
    problem = make_problem(bench)
    orchestrator.register_data(make_data(bench, 2), problem_ids=[problem.id])
    algo = make_algo(bench, problem)
    (_, first), _ = members(bench, algo)
    job = claim(bench, first.id)
    assert job is not None
    with ExitStack() as stack, bench.database.begin() as work:
        work.jobs.succeed(job.id, job.attempt, Scores(perf=1), result=uuid4())
        stack.enter_context(meanwhile(bench, lambda: bench.resources.jobs.cancel(job.id)))
    assert [job.state for _, job in members(bench, algo)] == [JobState.SUCCEEDED, JobState.QUEUED]


def test_a_rank_is_cancelled_while_it_goes_back_to_the_queue(bench: Workbench, orchestrator: Orchestrator) -> None:
    problem = make_problem(bench)
    orchestrator.register_data(make_data(bench, 1), problem_ids=[problem.id])
    algo = make_algo(bench, problem)
    job = claim(bench, members(bench, algo)[0][1].id)
    assert job is not None
    with ExitStack() as stack, bench.database.begin() as work:
        outcome = AttemptOutcome.RELEASED
        work.jobs.requeue(job.id, job.attempt, outcome=outcome, message="", delay_s=0, strikes=0)
        stack.enter_context(meanwhile(bench, lambda: bench.resources.jobs.cancel(job.id)))
    assert members(bench, algo)[0][1].state is JobState.CANCELLED


def test_a_rank_is_cancelled_while_its_turn_comes(bench: Workbench, orchestrator: Orchestrator) -> None:
    problem = make_problem(bench)
    orchestrator.register_data(make_data(bench, 3), problem_ids=[problem.id])
    algo = make_algo(bench, problem)
    (_, first), (_, second), (_, third) = members(bench, algo)
    job = claim(bench, first.id)
    assert job is not None

    def end() -> None:
        with bench.database.begin() as work:
            work.jobs.succeed(job.id, job.attempt, Scores(perf=1), result=uuid4())

    with ExitStack() as stack, bench.database.begin() as work:
        work.jobs.request_cancel(second.id)
        stack.enter_context(meanwhile(bench, end))
    states = [JobState.SUCCEEDED, JobState.CANCELLED, JobState.QUEUED]
    assert [job.state for _, job in members(bench, algo)] == states
    assert bench.publisher.published[-1] == third.id


def test_the_same_data_comes_for_several_problems_at_once(bench: Workbench, orchestrator: Orchestrator) -> None:
    problems = [make_problem(bench) for _ in range(8)]
    data = make_data(bench, 20)
    errors = []

    def register(index: int) -> None:
        items = data if index % 2 else data[::-1]
        try:
            orchestrator.register_data(items, problem_ids=[problems[index].id])
        except MorpheoError as exc:
            errors.append(exc)

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(register, range(8)))
    assert errors == []
    assert {len(item.problems) for item in orchestrator.datasets(data)} == {8}


def test_the_same_problem_at_once_is_one(bench: Workbench, orchestrator: Orchestrator) -> None:
    problem = make_problem(bench)
    twin = replace(problem, id=uuid4())
    with ThreadPoolExecutor(8) as pool:
        registered = list(pool.map(orchestrator.register_problem, [twin] * 8))
    assert {item.id for item in registered} == {twin.id}
    assert len(orchestrator.problems()) == 2


class Crowd:
    """What people do, at random, with three problems."""

    def __init__(self, bench: Workbench) -> None:
        self.bench = bench
        self.orchestrator = bench.resources.orchestrator
        self.problems = [make_problem(bench, parallel_ranks=1 + index, batch_size=2) for index in range(3)]
        self.algos = {make_algo(bench, problem): problem for problem in self.problems for _ in range(3)}
        self.rng = random.Random(4)

    def upload(self) -> None:
        items = make_data(self.bench, 3)
        some = self.rng.sample(self.problems, self.rng.randint(1, 3))
        self.orchestrator.register_data(items, problem_ids=[problem.id for problem in some])
        time.sleep(0.1)  # else planning is all that is done

    def submit(self) -> None:
        problem = self.rng.choice(self.problems)
        self.algos[make_algo(self.bench, problem)] = problem
        time.sleep(0.5)

    def meddle(self) -> None:
        jobs = self.orchestrator.jobs(JobKind.LEARN)
        job = self.rng.choice(jobs) if jobs else None
        if job is not None and self.rng.random() < 0.5:
            self.bench.resources.jobs.cancel(job.id)
        elif job is not None:
            try:
                self.orchestrator.retry(job.id)
            except Conflict as exc:
                if "already" not in str(exc) and "only one that failed" not in str(exc):
                    raise


def test_everybody_plans_at_once(bench: Workbench) -> None:
    crowd, people = Crowd(bench), People()
    for action in (crowd.upload, crowd.upload, crowd.submit, crowd.meddle, crowd.meddle):
        people.start(action)
    for _ in range(6):
        people.start(lambda: train_any(bench, crowd.rng))
    for _ in range(2):
        people.start(bench.resources.sweeper.recover_lost)
    began = time.monotonic()
    kinds = {JobState.SUCCEEDED, JobState.FAILED, JobState.CANCELLED}
    while time.monotonic() < began + 6 or not kinds <= {job.state for job in all_jobs(bench)}:
        assert time.monotonic() < began + 120, "not everything has happened"
        if people.stop.wait(0.5):  # somebody has failed
            break
    people.stop.set()
    people.join()
    for algo, problem in crowd.algos.items():
        check(bench, algo, problem)


def all_jobs(bench: Workbench) -> list[Job]:
    """Return all training jobs of chains."""
    with bench.database.read() as work:
        return work.chains.jobs(JobKind.LEARN)


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
