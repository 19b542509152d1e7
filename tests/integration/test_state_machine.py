"""
The life of a job under any interleaving of workers, sweeper, cancels, messages and clocks.

Two workers run the real `JobRunner`; in the midst of an attempt, before it ends, anything else may happen: the clock
jumps, the other worker gets a message of the same job, the sweeper sweeps, somebody cancels. Workers die at any point,
and zombies come back. After every step the rows must be consistent; at the end, every job must come to one.
"""

from __future__ import annotations

import io
import sys
import tempfile
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar
from uuid import UUID, uuid4

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule
from sqlalchemy import event, text

from morpheo.artifacts import Upload
from morpheo.ends import End, EndWriter
from morpheo.errors import RuntimeUnavailable
from morpheo.execution import Tools
from morpheo.failures import failed
from morpheo.heartbeat import CANCELLED, LOST
from morpheo.models import ArtifactKind, AttemptOutcome, Blame, Cause, Failure, Job, JobState, LearnSpec, Scores
from morpheo.results import Result
from morpheo.runner import JobRunner
from morpheo.runtime.contract import Interrupt
from morpheo.storage.tables import Base
from tests.support.workbench import Workbench, make_workbench

LEASE_S = 30
MAX_ATTEMPTS = 3
MOST_JOBS = 4
NODES = "one", "two"
#: More than any delay before a job is due again.
LONG_S = 1000


class Killed(BaseException):
    """The worker's process is gone: nothing of it runs any more."""


class Clock:
    """The database's clock: in place of SQLite's function `julianday`."""

    def __init__(self) -> None:
        self.now = 1_600_000_000.0  # long ago, so that no outage of now is short

    def julianday(self, *_arguments: object) -> float:
        return self.now / 86400 + 2440587.5

    def install(self, connection: Any, _record: object) -> None:
        connection.create_function("julianday", -1, self.julianday)


Meanwhile = Callable[[], None]
Ending = Callable[[Job], Result]


class Script:
    """What happens in the midst of an attempt, and how its containers end; in place of an `Execution`."""

    #: Of the attempts that are under way, the innermost last.
    running: ClassVar[list[tuple[list[Meanwhile], Ending]]] = []

    def __init__(self, job: Job, tools: Tools, *, interrupt: Interrupt, **_others: object) -> None:
        self._job = job
        self._interrupt = interrupt
        self._database = tools.artifacts._database

    def run(self) -> Result:
        meanwhile, ending = self.running[-1]
        for action in meanwhile:
            action()
        with self._database.begin() as work:  # what the heartbeat does
            cancel = work.jobs.renew(self._job.id, self._job.attempt, lease_s=LEASE_S)
        if cancel is not False:
            self._interrupt.set(LOST if cancel is None else CANCELLED)
            self._interrupt.check()
        return ending(self._job)


class Runner(JobRunner):
    """A worker that can die."""

    def _finish(self, job: Job, end: End) -> None:
        if not isinstance(sys.exception(), Killed):
            super()._finish(job, end)


#: What a worker may have to write that was stopped.
LATE = [AttemptOutcome.SUCCEEDED, AttemptOutcome.FAILED, AttemptOutcome.CANCELLED, AttemptOutcome.RETRIED]
endings = st.sampled_from(["succeed", "succeed", "fail", "outage", "lost", "stopped", "die", "late", "spooled"])
#: What happens in the midst of an attempt.
events = st.lists(
    st.sampled_from(["sweep", "tick", "expire", "back", "cancel", "double", "other", "zombie", "again"]), max_size=4
)
which = st.integers(0, MOST_JOBS - 1)


class Life(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.folder = tempfile.TemporaryDirectory()
        self.clock = Clock()
        self.bench: Workbench = make_workbench("sqlite:///:memory:", Path(self.folder.name))
        engine = self.bench.database.engine
        event.listen(engine, "connect", self.clock.install)
        Base.metadata.create_all(engine)
        self.jobs = self.bench.resources.jobs
        resources = self.bench.resources
        held = replace(resources.runner._settings, heartbeat_s=3600, outage_s=0)  # the scripts renew leases themselves
        self.workers = [
            Runner(resources.database, resources.blobs, resources._tools, resources.spool, replace(held, node=node))
            for node in NODES
        ]
        self.touch()
        self.template = self.bench.learn_spec()
        self.patched = pytest.MonkeyPatch()
        self.patched.setattr("morpheo.runner.Execution", Script)
        self.patched.setattr("morpheo.runner.LEAVE_S", 0.0)
        self.specs: list[LearnSpec] = []
        self.seen: dict[UUID, Job] = {}
        #: Ends that a worker had ready when it was stopped; they are written later, or never.
        self.late: list[Callable[[], None]] = []

    def teardown(self) -> None:
        try:
            self.everything_comes_to_an_end()
        finally:
            self.patched.undo()
            self.bench.database.close()
            self.folder.cleanup()

    # What people do.

    @precondition(lambda self: len(self.specs) < MOST_JOBS)
    @rule()
    def order(self) -> None:
        spec = self.bench.learn_spec(
            **{name: getattr(self.template, name) for name in ("workflow", "algo", "train_data", "test_data")}
        )
        self.specs.append(spec)
        assert self.jobs.submit(spec).state is JobState.QUEUED

    @precondition(lambda self: self.specs)
    @rule(which=which)
    def again(self, which: int) -> None:
        spec = self.pick(which)
        assert self.jobs.submit(spec).id == spec.id
        assert len(self.all()) == len(self.specs)

    @precondition(lambda self: self.specs)
    @rule(which=which)
    def cancel(self, which: int) -> None:
        spec = self.pick(which)
        before = self.jobs.get(spec.id)
        after = self.jobs.cancel(spec.id)
        assert after.state is (JobState.CANCELLED if before.state is JobState.QUEUED else before.state)
        assert self.jobs.cancel(spec.id) == after

    # What workers do.

    @precondition(lambda self: self.specs)
    @rule(which=which, worker=st.integers(0, 1), meanwhile=events, ending=endings)
    def deliver(self, which: int, worker: int, meanwhile: list[str], ending: str) -> None:
        """Give a message to a worker: the first, a doubled one, or one that was long gone."""
        spec = self.pick(which)
        runner = self.workers[worker]
        other = 1 - worker
        actions: dict[str, Meanwhile] = {
            "sweep": self.sweep,
            "tick": lambda: self.jump(LEASE_S / 3),
            "expire": lambda: self.jump(LEASE_S * 2),
            "back": lambda: self.jump(-LEASE_S * 2),
            "cancel": lambda: self.cancel(which),
            "double": lambda: self.run(other, spec.id, [], self.succeed),
            "other": lambda: self.run(other, self.pick(which + 1).id, [], self.succeed),
            "zombie": self.go_on,
            "again": lambda: self.again(which),
        }
        self.run(worker, spec.id, [actions[name] for name in meanwhile], self.ending(ending, runner))

    def run(self, worker: int, job_id: UUID, meanwhile: list[Meanwhile], ending: Ending) -> None:
        Script.running.append((meanwhile, ending))
        with suppress(Killed, SystemExit):
            self.workers[worker].run(job_id)
        Script.running.pop()

    def ending(self, name: str, runner: Runner) -> Ending:
        def raising(error: BaseException) -> Ending:
            def end(_job: Job) -> Result:
                raise error

            return end

        def spooled(job: Job) -> Result:
            self.bench.resources.spool.keep(self.end(runner, job, AttemptOutcome.SUCCEEDED))
            raise Killed

        endings: dict[str, Ending] = {
            "succeed": self.succeed,
            "fail": raising(failed(Cause.EXIT_CODE, Blame.SUBMITTER, "exit code 1")),
            "outage": raising(RuntimeUnavailable("no container engine answers")),
            "lost": raising(ValueError("an unexpected error")),
            "stopped": raising(SystemExit()),
            "die": raising(Killed()),
            "late": self.stopped(runner, AttemptOutcome.SUCCEEDED),
            "spooled": spooled,
        }
        return endings[name]

    def stopped(self, runner: Runner, outcome: AttemptOutcome) -> Ending:
        """Return an ending of a worker that stops with its end in hand; when it goes on, the job may be another's."""

        def stop(job: Job) -> Result:
            end = self.end(runner, job, outcome)
            self.late.append(lambda: runner._finish(job, end))
            raise Killed

        return stop

    def end(self, runner: Runner, job: Job, outcome: AttemptOutcome) -> End:
        if outcome is AttemptOutcome.SUCCEEDED:
            result = self.succeed(job)
            return runner._end(job, outcome, artifacts=result.artifacts, scores=result.scores)
        failure = Failure(cause=Cause.EXIT_CODE, blame=Blame.SUBMITTER, message="exit code 1")
        return runner._end(job, outcome, failure=failure if outcome is AttemptOutcome.FAILED else None)

    def succeed(self, job: Job) -> Result:
        assert isinstance(job.spec, LearnSpec)
        upload = Upload(kind=ArtifactKind.MODEL, id=job.spec.model_end, algo=job.spec.algo)
        content = f"{job.id} {job.attempt}".encode()
        token = f"{job.attempt}-{uuid4().hex}"
        stored = self.bench.resources.artifacts.put_blob(upload, io.BytesIO(content), length=len(content), token=token)
        return Result(artifacts=(stored,), scores=Scores(perf=job.attempt))

    @rule()
    def go_on(self) -> None:
        """Let a stopped worker write its result; it counts only if the attempt still holds."""
        if self.late:
            self.late.pop(0)()

    @precondition(lambda self: self.specs)
    @rule(which=which, outcome=st.sampled_from(LATE), ending=endings, queued=st.booleans())
    def take_over(self, which: int, outcome: AttemptOutcome, ending: str, queued: bool) -> None:
        """Let a worker stop until it has lost its job, and then write how its attempt ended."""
        spec = self.pick(which)
        self.run(0, spec.id, [], self.stopped(self.workers[0], outcome))
        self.jump(LEASE_S + 1)
        zombies, self.late = self.late, []
        if queued:
            self.sweep()
            for write in zombies:
                write()
        else:
            self.run(1, spec.id, zombies, self.ending(ending, self.workers[1]))

    @rule()
    def commit_spooled(self) -> None:
        self.bench.resources.spool.commit(EndWriter(self.bench.database, self.bench.resources.artifacts))

    @precondition(lambda self: self.specs)
    @rule(which=which, times=st.integers(1, MAX_ATTEMPTS + 1), swept=st.booleans())
    def poison(self, which: int, times: int, swept: bool) -> None:
        """Let a job kill one worker after another."""
        spec = self.pick(which)
        for _ in range(times):
            self.run(0, spec.id, [], self.ending("die", self.workers[0]))
            self.jump(LONG_S)
            if swept:
                self.sweep()

    # What repairs.

    @rule()
    def sweep(self) -> None:
        self.bench.resources.sweeper.recover_lost()
        self.bench.resources.sweeper.publish_waiting()

    @rule(seconds=st.sampled_from([1, 11, LEASE_S + 1, LONG_S, -LEASE_S]))
    def jump(self, seconds: float) -> None:
        """Let time go by, in which the nodes reach the database."""
        self.clock.now += seconds
        with self.bench.database.connect() as connection:
            connection.execute(text("UPDATE nodes SET last_seen = :now"), {"now": self.clock.now})
            connection.commit()

    @precondition(lambda self: self.specs)
    @rule(which=which, seconds=st.sampled_from([LEASE_S, LONG_S]))
    def outage(self, which: int, seconds: float) -> None:
        """Let time go by in which nobody reaches the database: nobody's job may be taken for that."""
        self.run(0, self.pick(which).id, [], self.ending("die", self.workers[0]))
        held = {job.id: job.attempt for job in self.all() if job.state is JobState.RUNNING and self.lease_left(job) > 0}
        self.clock.now += seconds
        self.touch()
        self.sweep()
        for job in self.all():
            assert job.id not in held or job.attempt == held[job.id]
            assert job.id not in held or job.state is JobState.RUNNING

    def touch(self) -> None:
        for node in NODES:
            with self.bench.database.begin() as work:
                work.nodes.touch(node, "worker", ["learn"], lease_s=LEASE_S)

    # What must be so after every step.

    @invariant()
    def rows_are_consistent(self) -> None:
        for job in self.all():
            before = self.seen.get(job.id)
            if before is not None:
                assert job.attempt >= before.attempt, "attempts only grow"
                assert not before.state.is_final or job == before, "what has ended never changes"
            assert job.strikes < MAX_ATTEMPTS
            numbers = [attempt.number for attempt in job.attempts]
            assert numbers == list(range(1, job.attempt + 1))
            outcomes = [attempt.outcome for attempt in job.attempts]
            assert outcomes.count(AttemptOutcome.RUNNING) == (job.state is JobState.RUNNING)
            assert outcomes.count(AttemptOutcome.SUCCEEDED) == (job.state is JobState.SUCCEEDED)
            assert job.state is not JobState.FAILED or outcomes[-1] is AttemptOutcome.FAILED
            lost = outcomes.count(AttemptOutcome.LOST) + outcomes.count(AttemptOutcome.RETRIED)
            assert job.strikes == lost, "each attempt that infrastructure cost is counted"
            self.result_is_of_its_attempt(job)
            assert job.state.is_final or self.has_a_way_forward(job)
            self.seen[job.id] = job

    def result_is_of_its_attempt(self, job: Job) -> None:
        assert isinstance(job.spec, LearnSpec)
        with self.bench.database.read() as work:
            there = work.artifacts.exists(ArtifactKind.MODEL, job.spec.model_end)
        assert there == (job.state is JobState.SUCCEEDED)
        if there:
            assert job.scores is not None
            assert self.bench.read(ArtifactKind.MODEL, job.spec.model_end) == f"{job.id} {job.attempt}".encode()
            assert job.scores.perf == job.attempt
        assert (job.failure is not None) == (job.state in (JobState.FAILED, JobState.CANCELLED))

    def has_a_way_forward(self, job: Job) -> bool:
        if job.state is JobState.RUNNING:
            return self.lease_left(job) <= LONG_S
        query = text("SELECT not_before FROM jobs WHERE id = :id AND lease_expires_at IS NULL")
        with self.bench.database.connect() as connection:
            not_before: float = connection.execute(query, {"id": job.id.hex}).scalar_one()
        return job.state is JobState.QUEUED and not_before <= self.clock.now + LONG_S

    def lease_left(self, job: Job) -> float:
        """Return for how many seconds a running job is still its worker's."""
        query = text("SELECT lease_expires_at FROM jobs WHERE id = :id")
        with self.bench.database.connect() as connection:
            expires: float = connection.execute(query, {"id": job.id.hex}).scalar_one()
        return expires - self.clock.now

    def everything_comes_to_an_end(self) -> None:
        for _ in range(2 * MAX_ATTEMPTS + 2):
            self.jump(LONG_S)
            self.bench.publisher.published.clear()
            self.sweep()
            for job_id in list(self.bench.publisher.published):
                self.run(0, job_id, [], self.succeed)
            self.rows_are_consistent()
        assert all(job.state.is_final for job in self.all())

    def all(self) -> list[Job]:
        return [self.jobs.get(spec.id) for spec in self.specs]

    def pick(self, which: int) -> LearnSpec:
        return self.specs[which % len(self.specs)]


TestLife = Life.TestCase
TestLife.settings = settings(
    max_examples=40,
    stateful_step_count=25,
    deadline=None,
    phases=set(Phase) - {Phase.shrink, Phase.explain},  # they take minutes; remove this line to have them
    suppress_health_check=[HealthCheck.too_slow],
)
