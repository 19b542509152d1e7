"""
Planning under any interleaving of registrations and ends of jobs.

A machine does what people, workers and the sweeper do, in random order, and keeps an oracle of its own: what was
registered in which order, and which rank ended with which score. After every step the rows are compared with it.
"""

from __future__ import annotations

import io
import tempfile
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import TypeVar
from uuid import UUID, uuid4

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from sqlalchemy import update

from morpheo.artifacts import Upload
from morpheo.audit import verify
from morpheo.challenges import OUTSIDE, Problem
from morpheo.errors import Conflict, InvalidInput, NotFound
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
    PredictSpec,
    Scores,
)
from morpheo.storage.tables import Base, JobRow
from tests.support.workbench import ALGO, PROBLEM, make_workbench

T = TypeVar("T")

MAX_ATTEMPTS = 3
ACTIVE = (JobState.QUEUED, JobState.RUNNING)
DEAD = (JobState.FAILED, JobState.CANCELLED)
BROKEN = Failure(cause=Cause.EXIT_CODE, blame=Blame.SUBMITTER, message="exit code 1")

#: Which of the things there are; taken modulo their number.
anything = st.integers(0, 30)
#: Few values, so that ranks are equal often; ends of intervals that a sort could mistake.
perfs = st.sampled_from([-1.0, 0.0, 0.25, 0.5, 1.0])


@dataclass
class Chain:
    """What must become of one algo."""

    problem: Problem
    batches: list[tuple[UUID, ...]] = field(default_factory=list)
    #: The job that ended without a model last, while nothing goes on.
    stalled_by: UUID | None = None
    #: Score and model of each rank that ended with one.
    done: dict[int, tuple[float, UUID]] = field(default_factory=dict)

    def best(self) -> UUID | None:
        """Return the best model; of equals, that of the first rank."""
        sign = -1 if self.problem.higher_is_better else 1
        ranking = sorted((sign * perf, rank, model) for rank, (perf, model) in self.done.items())
        return ranking[0][2] if ranking else None


def learn(job: Job) -> LearnSpec:
    assert isinstance(job.spec, LearnSpec)
    return job.spec


class Planning(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.folder = tempfile.TemporaryDirectory()
        self.bench = make_workbench("sqlite:///:memory:", Path(self.folder.name))
        Base.metadata.create_all(self.bench.database.engine)
        self.orchestrator = self.bench.resources.orchestrator
        self.outside = self.bench.resources.outside_workers
        self.problems: list[Problem] = []
        #: Data of each problem, in the order of registration.
        self.data: dict[UUID, list[UUID]] = {}
        self.chains: dict[UUID, Chain] = {}
        #: Attempts that workers have, or once had.
        self.held: list[tuple[UUID, int]] = []
        #: The rows before the step.
        self.before: dict[UUID, Job] = {}
        self.released: dict[UUID, LearnSpec] = {}
        #: How often workers must have been told of a job again, because it was given back.
        self.given_back: Counter[UUID] = Counter()

    def teardown(self) -> None:
        with self.bench.database.read() as work:
            assert verify(work.events.all(), work.events.head()).intact
        self.bench.database.close()
        self.folder.cleanup()

    @initialize(higher=st.booleans(), parallel=st.integers(1, 3), algo_first=st.booleans())
    def begin(self, higher: bool, parallel: int, algo_first: bool) -> None:
        self.unlabelled = self.bench.store(ArtifactKind.DATA, b"new")
        # Each content twice: a file that is uploaded again has another id.
        contents = {self.bench.store(ArtifactKind.DATA, b"x:%d" % (number % 8)): number % 8 for number in range(16)}
        self.contents, self.pool = contents, list(contents)
        self.workflow = self.bench.store(ArtifactKind.PROBLEM, PROBLEM, name="p", description="p")
        self.add_problem([0], 1, higher, parallel)
        if algo_first:
            self.add_algo(0)
        self.add_data({0}, [1, 2, 0, 3, 4, 5])

    # What people do.

    @precondition(lambda self: len(self.problems) < 3)
    @rule(
        test=st.lists(anything, min_size=1, max_size=3),
        batch_size=st.integers(1, 3),
        higher=st.booleans(),
        parallel=st.integers(1, 3),
    )
    def add_problem(self, test: list[int], batch_size: int, higher: bool, parallel: int) -> None:
        problem = Problem(
            id=uuid4(),
            workflow=self.workflow,
            test_data=tuple(dict.fromkeys(pick(self.pool, item) for item in test)),
            batch_size=batch_size,
            higher_is_better=higher,
            parallel_ranks=parallel,
            created_at=datetime.now(UTC),
        )
        self.problems.append(self.orchestrator.register_problem(problem))
        assert self.orchestrator.register_problem(problem) == self.problems[-1]
        self.data[problem.id] = []

    @precondition(lambda self: self.problems and len(self.chains) < 5)
    @rule(where=anything)
    def add_algo(self, where: int) -> None:
        problem = pick(self.problems, where)
        algo = self.bench.store(ArtifactKind.ALGO, ALGO, name="a")
        expected = Chain(problem)
        added = self.extend(expected, self.data[problem.id])
        self.chains[algo] = expected
        submission, count = self.orchestrator.register_algo(algo, name="a", problem_id=problem.id)
        assert (submission.algo, submission.problem, count) == (algo, problem.id, added)

    @precondition(lambda self: self.chains)
    @rule(which=anything)
    def add_algo_again(self, which: int) -> None:
        algo = pick(list(self.chains), which)
        assert self.orchestrator.register_algo(algo, name="a", problem_id=self.chains[algo].problem.id)[1] == 0

    @precondition(lambda self: self.problems)
    @rule(where=st.sets(anything, min_size=1, max_size=3), what=st.lists(anything, min_size=1, max_size=5))
    def add_data(self, where: set[int], what: list[int]) -> None:
        problems = list(dict.fromkeys(pick(self.problems, item) for item in sorted(where)))
        items = [pick(self.pool, item) for item in what]
        added = 0
        for problem in problems:
            known = self.data[problem.id]
            fresh = [item for item in dict.fromkeys(items) if item not in known]
            known += fresh
            added += sum(self.extend(found, fresh) for found in self.chains.values() if found.problem == problem)
        answer = self.orchestrator.register_data(items, problem_ids=[problem.id for problem in problems])
        assert ([item.id for item in answer.datasets], answer.trainings) == (list(dict.fromkeys(items)), added)

    def extend(self, found: Chain, items: Sequence[UUID]) -> int:
        hidden = {self.contents[item] for item in found.problem.test_data}
        train = [item for item in items if self.contents[item] not in hidden]
        size = found.problem.batch_size
        new = [tuple(train[start : start + size]) for start in range(0, len(train), size)]
        found.batches += new
        found.stalled_by = None if new else found.stalled_by
        return len(new)

    @precondition(lambda self: self.before)
    @rule(which=anything)
    def cancel(self, which: int) -> None:
        job = pick(list(self.before.values()), which)
        outside = job.state is JobState.RUNNING and (job.worker or "").startswith(OUTSIDE)
        if job.state is JobState.QUEUED or outside:
            self.chains[learn(job).algo].stalled_by = job.id
        after = self.bench.resources.jobs.cancel(job.id)
        if outside or job.state in (JobState.WAITING, JobState.QUEUED):
            assert after.state is JobState.CANCELLED
        elif job.state is JobState.RUNNING:
            assert after.cancel_requested
        else:
            assert after.state is job.state

    @precondition(lambda self: self.before)
    @rule(which=anything)
    def retry(self, which: int) -> None:
        job = pick(list(self.before.values()), which)
        same_rank = [other for other in self.before.values() if same(other, job)]
        if job.state not in DEAD or any(other.state not in DEAD for other in same_rank):
            with pytest.raises(Conflict):
                self.orchestrator.retry(job.id)
            return
        expected = self.chains[learn(job).algo]
        if expected.stalled_by is not None and same(self.before[expected.stalled_by], job):
            expected.stalled_by = None
        again = self.orchestrator.retry(job.id)
        assert again.id not in self.before
        assert same(again, job)
        assert learn(again).model_end not in {learn(other).model_end for other in same_rank}

    @precondition(lambda self: self.problems)
    @rule(where=anything)
    def predict(self, where: int) -> None:
        problem = pick(self.problems, where)
        done = [item for found in self.chains.values() if found.problem == problem for item in found.done.values()]
        if not done:
            with pytest.raises(NotFound):
                self.orchestrator.order_prediction(data=self.unlabelled, problem_id=problem.id)
            return
        best = (max if problem.higher_is_better else min)(perf for perf, _ in done)
        job = self.orchestrator.order_prediction(data=self.unlabelled, problem_id=problem.id)
        assert isinstance(job.spec, PredictSpec)
        assert job.spec.model in {model for perf, model in done if perf == best}

    # What workers do.

    @precondition(lambda self: self.before)
    @rule(which=anything)
    def claim(self, which: int) -> None:
        job = pick(list(self.before.values()), which)
        with self.bench.database.begin() as work:
            claimed = work.jobs.claim(job.id, worker="ours", lease_s=3600, max_attempts=MAX_ATTEMPTS)
        assert (claimed is not None) == (job.state is JobState.QUEUED)
        if claimed is not None:
            self.held.append((claimed.id, claimed.attempt))

    @precondition(lambda self: self.active)
    @rule(which=anything, scores=st.lists(perfs, min_size=1, max_size=3))
    def train(self, which: int, scores: list[float]) -> None:
        """Do what most jobs see, a claim and a success, some times in a chain."""
        algo = learn(pick(self.active, which)).algo
        for perf in scores:
            job = next((job for job in self.active if learn(job).algo == algo), None)
            if job is None:
                return
            if job.state is JobState.QUEUED:
                with self.bench.database.begin() as work:
                    claimed = work.jobs.claim(job.id, worker="ours", lease_s=3600, max_attempts=MAX_ATTEMPTS)
                assert claimed is not None
                job = claimed
                self.held.append((job.id, job.attempt))
            self.end(job.id, job.attempt, valid=True, perf=perf)
            self.rows_are_as_expected()

    @precondition(lambda self: self.held)
    @rule(which=anything, perf=perfs)
    def succeed(self, which: int, perf: float) -> None:
        job_id, attempt, valid = self.attempt(which)
        self.end(job_id, attempt, valid=valid, perf=perf)

    def end(self, job_id: UUID, attempt: int, *, valid: bool, perf: float) -> None:
        spec = learn(self.before[job_id])
        if valid:
            self.chains[spec.algo].done[spec.rank] = perf, spec.model_end
        self.store_model(spec)
        with self.bench.database.begin() as work:
            scores = Scores(perf=perf)
            assert work.jobs.succeed(job_id, attempt, scores, result=spec.model_end) == valid

    @precondition(lambda self: self.reclaimed)
    @rule(which=anything, perf=perfs)
    def succeed_late(self, which: int, perf: float) -> None:
        """Report what a worker ended that had lost the job to another one before."""
        job = pick(self.reclaimed, which)
        self.end(job.id, job.attempt - 1, valid=False, perf=perf)

    @property
    def reclaimed(self) -> list[Job]:
        return [job for job in self.before.values() if job.state is JobState.RUNNING and job.attempt > 1]

    @precondition(lambda self: self.held)
    @rule(which=anything)
    def fail(self, which: int) -> None:
        job_id, attempt, valid = self.attempt(which)
        if valid:
            self.chains[learn(self.before[job_id]).algo].stalled_by = job_id
        with self.bench.database.begin() as work:
            assert work.jobs.fail(job_id, attempt, BROKEN) == valid

    @precondition(lambda self: self.held)
    @rule(which=anything)
    def end_cancelled(self, which: int) -> None:
        job_id, attempt, valid = self.attempt(which)
        if not self.before[job_id].cancel_requested:
            return  # its worker does this only if it was asked to
        if valid:
            self.chains[learn(self.before[job_id]).algo].stalled_by = job_id
        with self.bench.database.begin() as work:
            assert work.jobs.cancelled(job_id, attempt) == valid

    @precondition(lambda self: self.held)
    @rule(which=anything, strikes=st.integers(0, 1))
    def requeue(self, which: int, strikes: int) -> None:
        job_id, attempt, valid = self.attempt(which)
        if valid and self.before[job_id].cancel_requested:
            self.chains[learn(self.before[job_id]).algo].stalled_by = job_id
        with self.bench.database.begin() as work:
            outcome = AttemptOutcome.RETRIED
            done = work.jobs.requeue(job_id, attempt, outcome=outcome, message="", delay_s=0, strikes=strikes)
            assert done == valid
        self.given_back[job_id] += valid and not self.before[job_id].cancel_requested

    def attempt(self, which: int) -> tuple[UUID, int, bool]:
        """Return an attempt, and whether it still holds its job."""
        job_id, attempt = self.held[-1 - which % len(self.held)] if which % 2 else pick(self.held, which)
        job = self.jobs()[job_id]
        return job_id, attempt, job.state is JobState.RUNNING and job.attempt == attempt

    @precondition(lambda self: self.active)
    @rule(which=st.sets(anything, min_size=1, max_size=4), again=st.booleans())
    def lose(self, which: set[int], again: bool) -> None:
        running = [job for job in self.active if job.state is JobState.RUNNING]
        lost = {pick(running, item).id for item in which} if running else set()
        jobs = [self.before[job_id] for job_id in lost]
        ended = [job.id for job in jobs if job.cancel_requested or job.strikes + 1 >= MAX_ATTEMPTS]
        with self.bench.database.connect() as connection:
            connection.execute(update(JobRow).where(JobRow.id.in_(lost)).values(lease_expires_at=0.0))
            connection.commit()
        assert self.bench.resources.sweeper.recover_lost() == len(lost)
        self.given_back.update(lost - set(ended))
        for algo in {learn(self.before[job_id]).algo for job_id in ended}:
            stalled_by = self.orchestrator.submission(algo).stalled_by
            assert stalled_by in ended  # the sweeper takes them in any order
            self.chains[algo].stalled_by = stalled_by
        self.rows_are_as_expected()
        for job_id in lost if again else ():
            self.claim(list(self.before).index(job_id))

    # What workers do that are not ours, in the words of 2017.

    @precondition(lambda self: self.before)
    @rule(which=anything)
    def start_outside(self, which: int) -> None:
        job = pick(list(self.before.values()), which)
        assert self.outside.start(JobKind.LEARN, job.id, "go") == (job.state is JobState.QUEUED)

    @precondition(lambda self: self.before)
    @rule(which=anything, perf=st.none() | perfs, stored=st.booleans())
    def end_outside(self, which: int, perf: float | None, stored: bool) -> None:
        job = pick(self.active or list(self.before.values()), which)
        spec, expected = learn(job), self.chains[learn(job).algo]
        ours = job.worker == "ours"
        ends = job.state is JobState.QUEUED or (job.state is JobState.RUNNING and not ours)
        scores = None if perf is None else Scores(perf=perf)
        if stored:
            self.store_model(spec)
        stored = self.bench_has_model(spec)
        if ends and scores is not None and not stored:
            with pytest.raises(InvalidInput):
                self.outside.end_learn(job.id, scores)
            return
        if ends and perf is not None:
            expected.done[spec.rank] = perf, spec.model_end
        elif ends:
            expected.stalled_by = job.id
        assert self.outside.end_learn(job.id, scores) == ends
        assert not self.outside.end_learn(job.id, scores)  # a report that comes twice

    def store_model(self, spec: LearnSpec) -> None:
        if not self.bench_has_model(spec):
            upload = Upload(kind=ArtifactKind.MODEL, id=spec.model_end, algo=spec.algo)
            self.bench.resources.artifacts.upload(upload, io.BytesIO(b"m"))

    def bench_has_model(self, spec: LearnSpec) -> bool:
        with self.bench.database.read() as work:
            return work.artifacts.exists(ArtifactKind.MODEL, spec.model_end)

    # What must be so after every step.

    def jobs(self) -> dict[UUID, Job]:
        return {job.id: job for job in self.orchestrator.jobs(JobKind.LEARN)}

    @property
    def active(self) -> list[Job]:
        return [job for job in self.before.values() if job.state in ACTIVE]

    @invariant()
    def rows_are_as_expected(self) -> None:
        jobs = self.jobs()
        for algo, expected in self.chains.items():
            check_chain(expected, [job for job in jobs.values() if learn(job).algo == algo])
        self.no_content_of_a_test_file_trains(jobs.values())
        stalled_by = {submission.algo: submission.stalled_by for submission in self.orchestrator.submissions()}
        assert stalled_by == {algo: expected.stalled_by for algo, expected in self.chains.items()}
        self.check_releases(jobs)
        self.before = jobs

    def no_content_of_a_test_file_trains(self, jobs: Iterable[Job]) -> None:
        for job in jobs:
            trains, tests = (
                {self.contents[item] for item in data} for data in (learn(job).train_data, learn(job).test_data)
            )
            assert not trains & tests

    def check_releases(self, jobs: dict[UUID, Job]) -> None:
        told = Counter(self.bench.publisher.published)
        for job in jobs.values():
            spec = learn(job)
            if job.id in self.released:
                assert spec == self.released[job.id]
            elif job.state in ACTIVE:
                best = self.chains[spec.algo].best()
                assert spec.model_start == (spec.algo if spec.rank == 0 else best)
                self.released[job.id] = spec
            expected = (job.id in self.released) + self.given_back[job.id]
            assert told[job.id] == expected, f"{job.state} and told of {told[job.id]} times, not {expected}"


def check_chain(expected: Chain, jobs: list[Job]) -> None:
    problem = expected.problem
    ranks: dict[int, list[Job]] = {}
    for job in jobs:
        ranks.setdefault(learn(job).rank, []).append(job)
        assert learn(job).train_data == expected.batches[learn(job).rank]
        assert not set(learn(job).train_data) & set(problem.test_data)
        assert learn(job).test_data == problem.test_data
    assert sorted(ranks) == list(range(len(expected.batches)))
    for rank, tries in ranks.items():
        live = [job for job in tries if job.state not in DEAD]
        assert len(live) <= 1, "the chain forks"
        assert [job.state is JobState.SUCCEEDED for job in live] == [rank in expected.done] * len(live)
        assert rank not in expected.done or live
    active = sum(job.state in ACTIVE for job in jobs)
    waiting = sum(job.state is JobState.WAITING for job in jobs)
    assert active <= problem.parallel_ranks
    if expected.stalled_by is None:
        assert active == problem.parallel_ranks or not waiting, "nothing will ever release what waits"


def same(one: Job, other: Job) -> bool:
    """Whether two jobs are of the same rank."""
    return replace(learn(one), id=other.id, model_start=None, model_end=other.id) == replace(
        learn(other), model_start=None, model_end=other.id
    )


def pick(items: Sequence[T], which: int) -> T:
    return items[which % len(items)]


TestPlanning = pytest.mark.timeout(300)(Planning.TestCase)
TestPlanning.settings = settings(
    max_examples=50,
    stateful_step_count=30,
    deadline=None,
    phases=set(Phase) - {Phase.shrink, Phase.explain},  # they take minutes; remove this line to have them
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much],
)
