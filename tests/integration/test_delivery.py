"""What holds when the database, a node or a row fails: an order ends once, and no result is computed twice."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path
from uuid import UUID, uuid4

import pytest
from sqlalchemy import event, text

from morpheo.audit import Action
from morpheo.ends import EndWriter
from morpheo.errors import DatabaseUnavailable, NotFound
from morpheo.heartbeat import Heartbeat
from morpheo.models import ArtifactKind, AttemptOutcome, Blame, Cause, Job, JobState, LearnSpec
from morpheo.runtime.contract import Interrupt
from morpheo.storage.database import Database, UnitOfWork
from morpheo.storage.job_filter import JobFilter
from morpheo.storage.jobs import JobRepository
from morpheo.storage.nodes import AVOID_S
from morpheo.testing import FakeContainer
from tests.support.services import wait_until
from tests.support.trail import trail
from tests.support.workbench import Workbench, algo, make_workbench

LEASE_S = 30.0
A, B = "node-a", "node-b"


@pytest.fixture(params=["sqlite", pytest.param("postgresql", marks=pytest.mark.database)])
def url(request: pytest.FixtureRequest) -> str:
    """URL of a database with all tables, of each kind."""
    return str(request.getfixturevalue("sqlite_url" if request.param == "sqlite" else "postgres_url"))


@pytest.fixture
def bench(url: str, tmp_path: Path) -> Iterator[Workbench]:
    made = make_workbench(url, tmp_path / "node", lease_s=LEASE_S)
    yield made
    made.database.close()


@pytest.fixture
def no_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    """An end that cannot be written is kept at once, and a job left to others costs no time."""
    monkeypatch.setattr("morpheo.runner.WRITE_FOR_S", 0)
    monkeypatch.setattr("morpheo.runner.WRITE_AGAIN_S", 0)
    monkeypatch.setattr("morpheo.runner.LEAVE_S", 0)


def order(bench: Workbench, **changes: object) -> LearnSpec:
    spec = bench.learn_spec(**changes)
    bench.resources.jobs.submit(spec)
    return spec


def claim(bench: Workbench, job_id: UUID, *, lease_s: float = LEASE_S, node: str | None = None) -> Job | None:
    with bench.database.begin() as work:
        return work.jobs.claim(job_id, worker=f"w-{node}", lease_s=lease_s, max_attempts=3, node=node)


def touch(bench: Workbench, node: str, *queues: str) -> None:
    with bench.database.begin() as work:
        work.nodes.touch(node, f"learn@{node}", queues, lease_s=LEASE_S)


def change(bench: Workbench, statement: str, **values: object) -> None:
    """Change rows behind the back of the repositories."""
    with bench.database.connect() as connection:
        connection.execute(text(statement), values)
        connection.commit()


def get(bench: Workbench, spec: LearnSpec) -> Job:
    return bench.resources.jobs.get(spec.id)


def models(bench: Workbench, spec: LearnSpec) -> list[str]:
    return [blob.key for blob in bench.blobs.list(f"model/{spec.model_end}")]


@contextmanager
def ends_cannot_be_written(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The database is out of reach whenever a job has ended."""

    def out(*_args: object, **_kwargs: object) -> None:
        raise DatabaseUnavailable

    with monkeypatch.context() as patch:
        for method in ("succeed", "fail", "cancelled", "requeue"):
            patch.setattr(JobRepository, method, out)
        yield


# The spool


@pytest.mark.usefixtures("no_wait")
def test_a_result_waits_on_the_node_and_is_not_computed_again(
    bench: Workbench, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec, other = order(bench), order(bench)
    with ends_cannot_be_written(monkeypatch):
        bench.resources.runner.run(spec.id)
        bench.resources.runner.run(other.id)  # the worker goes on
        ran = list(bench.runtime.history)
        bench.resources.contact.commit_kept()  # the database is still away
    assert get(bench, spec).state is JobState.RUNNING
    bench.resources.contact.commit_kept()
    for done in (spec, other):
        job = get(bench, done)
        assert (job.state, job.attempt, job.strikes) == (JobState.SUCCEEDED, 1, 0)
        assert bench.read(ArtifactKind.MODEL, done.model_end)
        assert len(models(bench, done)) == 1
    assert bench.runtime.history == ran
    assert bench.resources.spool.waiting() == []


@pytest.mark.usefixtures("no_wait")
@pytest.mark.parametrize("how", ["failed", "retried", "released"])
def test_other_ends_wait_too(bench: Workbench, monkeypatch: pytest.MonkeyPatch, how: str) -> None:
    def program(container: FakeContainer) -> int:
        if how == "released":
            raise SystemExit
        return 3

    bench.programs["algo"] = program
    bench.runtime.down = how == "retried"
    spec = order(bench)
    with ends_cannot_be_written(monkeypatch):
        try:
            bench.resources.runner.run(spec.id)
        except SystemExit:
            assert how == "released"
    assert get(bench, spec).state is JobState.RUNNING
    bench.resources.contact.commit_kept()
    job = get(bench, spec)
    assert job.attempts[0].outcome == how
    assert job.state is (JobState.FAILED if how == "failed" else JobState.QUEUED)


@pytest.mark.usefixtures("no_wait")
def test_a_result_that_waited_too_long_is_discarded(bench: Workbench, monkeypatch: pytest.MonkeyPatch) -> None:
    spec = order(bench)
    with ends_cannot_be_written(monkeypatch):
        bench.resources.runner.run(spec.id)
    with bench.database.begin() as work:
        work.jobs.renew(spec.id, 1, lease_s=-1)
    assert claim(bench, spec.id) is not None
    before = get(bench, spec)
    assert len(models(bench, spec)) == 1
    bench.resources.contact.commit_kept()
    assert get(bench, spec) == before
    assert models(bench, spec) == []
    assert bench.resources.spool.waiting() == []


@pytest.mark.usefixtures("no_wait")
def test_a_commit_of_which_nothing_is_known_is_not_undone(bench: Workbench, monkeypatch: pytest.MonkeyPatch) -> None:
    spec = order(bench)
    real_begin, real_read = Database.begin, Database.read
    lost: list[JobState] = []

    @contextmanager
    def begin(self: Database) -> Iterator[UnitOfWork]:
        with real_begin(self) as work:
            yield work
            state = work.jobs.get(spec.id).state
        if state is JobState.SUCCEEDED:
            lost.append(state)
            raise DatabaseUnavailable

    @contextmanager
    def read(self: Database) -> Iterator[UnitOfWork]:
        if lost:
            raise DatabaseUnavailable
        with real_read(self) as work:
            yield work

    with monkeypatch.context() as patch:
        patch.setattr(Database, "begin", begin)
        patch.setattr(Database, "read", read)
        assert bench.resources.runner.run(spec.id) is None
    assert len(bench.resources.spool.waiting()) == 1
    bench.resources.contact.commit_kept()
    assert bench.resources.spool.waiting() == []
    assert get(bench, spec).state is JobState.SUCCEEDED
    assert bench.read(ArtifactKind.MODEL, spec.model_end)


@pytest.mark.usefixtures("no_wait")
def test_two_processes_that_empty_the_spool_at_once_write_once(
    bench: Workbench, monkeypatch: pytest.MonkeyPatch
) -> None:
    specs = [order(bench) for _ in range(3)]
    with ends_cannot_be_written(monkeypatch):
        for spec in specs:
            bench.resources.runner.run(spec.id)
    start = threading.Barrier(2)

    def commit() -> None:
        start.wait()
        bench.resources.contact.commit_kept()

    threads = [threading.Thread(target=commit) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for spec in specs:
        assert get(bench, spec).state is JobState.SUCCEEDED
        assert bench.read(ArtifactKind.MODEL, spec.model_end)
    assert bench.resources.spool.waiting() == []
    ends = [event.subject_id for event in trail(bench.database) if event.action == Action.JOB_SUCCEEDED]
    assert sorted(ends) == sorted(str(spec.id) for spec in specs)


def test_inputs_are_looked_up_until_the_database_is_back(bench: Workbench, monkeypatch: pytest.MonkeyPatch) -> None:
    spec = order(bench)
    real, outages = bench.resources.artifacts.get, [DatabaseUnavailable(), DatabaseUnavailable()]

    def flaky(kind: ArtifactKind, artifact_id: UUID) -> object:
        if outages:
            raise outages.pop()
        return real(kind, artifact_id)

    monkeypatch.setattr("morpheo.inputs.LOOK_AGAIN_S", 0)
    monkeypatch.setattr(bench.resources.artifacts, "get", flaky)
    job = bench.resources.runner.run(spec.id)
    assert job is not None
    assert (job.state, job.attempt) == (JobState.SUCCEEDED, 1)


# Heartbeats


def test_a_job_is_claimed_when_the_database_is_back(
    bench: Workbench, no_wait: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = order(bench)
    real, outages = JobRepository.claim, [DatabaseUnavailable()] * 3

    def flaky(self: JobRepository, *args: object, **kwargs: object) -> Job | None:
        if outages:
            raise outages.pop()
        return real(self, *args, **kwargs)  # type: ignore[arg-type]

    monkeypatch.setattr(JobRepository, "claim", flaky)
    job = bench.resources.runner.run(spec.id)
    assert job is not None
    assert (job.state, job.attempt) == (JobState.SUCCEEDED, 1)
    outages.append(DatabaseUnavailable())
    monkeypatch.setattr("morpheo.runner.CLAIM_FOR_S", -1)
    with pytest.raises(DatabaseUnavailable):
        bench.resources.runner.run(order(bench).id)


@pytest.mark.parametrize(("shift", "waited"), [(0, 0), (-1000, 1000), (1000, 0)])
def test_how_long_a_job_has_waited_is_told_by_the_databases_clock(bench: Workbench, shift: int, waited: int) -> None:
    spec = order(bench)
    claim(bench, spec.id)
    with bench.database.begin() as work:
        work.jobs.requeue(spec.id, 1, outcome=AttemptOutcome.RETRIED, message="m", delay_s=0, strikes=0)
    with bench.database.connect() as connection:
        connection.execute(text("UPDATE attempts SET ended_at = ended_at + :shift"), {"shift": shift})
        connection.commit()
    with bench.database.read() as work:
        assert waited <= work.recovery.waited_s(spec.id) < waited + 60


def test_a_heartbeat_needs_no_connection_of_the_pool(bench: Workbench) -> None:
    spec = order(bench)
    renewed = threading.Event()

    def watch(container: FakeContainer) -> int:
        with ExitStack() as stack:
            for _ in range(15):  # all that there are
                stack.enter_context(bench.database.engine.connect())
            other = stack.enter_context(closing(Database(bench.database.url)))
            own = stack.enter_context(other.connect())
            own.execution_options(morpheo_read=True)
            leases: set[float] = set()

            def is_renewed() -> bool:
                leases.add(own.execute(text("SELECT lease_expires_at FROM jobs")).scalar_one())
                own.rollback()
                return len(leases) > 3

            wait_until(is_renewed, what="a lease that is renewed")
        renewed.set()
        return algo(container)

    bench.programs["algo"] = watch
    job = bench.resources.runner.run(spec.id)
    assert renewed.is_set()
    assert job is not None
    assert job.state is JobState.SUCCEEDED


def test_a_cancel_is_seen_between_two_renewals(url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("morpheo.heartbeat.LOOK_S", 0.02)
    bench = make_workbench(url, tmp_path / "node", lease_s=1200, heartbeat_s=600, self_fence_s=1200)
    spec = order(bench)
    killed = threading.Event()

    def cancel(container: FakeContainer) -> int:
        assert bench.resources.jobs.cancel(spec.id).cancel_requested
        container.sleep(60)
        killed.set()
        return 0

    bench.programs["algo"] = cancel
    began = time.monotonic()
    job = bench.resources.runner.run(spec.id)
    assert killed.is_set()
    assert time.monotonic() - began < 50
    assert job is not None
    assert (job.state, job.attempts[0].outcome) == (JobState.CANCELLED, AttemptOutcome.CANCELLED)
    assert not list(bench.work_dir.iterdir())
    bench.database.close()


@pytest.mark.parametrize("how", ["refused", "silent"])
def test_an_attempt_without_contact_fences_itself(
    url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    bench = make_workbench(url, tmp_path / "node", lease_s=4, heartbeat_s=0.05, self_fence_s=5)
    monkeypatch.setattr("morpheo.heartbeat.JOIN_S", 0)
    spec = order(bench)
    started, killed, back = threading.Event(), threading.Event(), threading.Event()
    renew_for_real = JobRepository.renew

    def renew(work: JobRepository, job_id: UUID, attempt: int, *, lease_s: float) -> bool | None:
        if not started.is_set():
            return renew_for_real(work, job_id, attempt, lease_s=lease_s)
        if how == "silent":
            back.wait(60)  # a server that was stopped: it keeps its connections, and never answers
        raise DatabaseUnavailable

    def train(container: FakeContainer) -> int:
        started.set()
        container.sleep(60)
        killed.set()
        return algo(container)

    monkeypatch.setattr(JobRepository, "renew", renew)
    bench.programs["algo"] = train
    job = bench.resources.runner.run(spec.id)
    back.set()
    assert killed.is_set()
    assert job is not None
    assert (job.state, job.attempt) == (JobState.RUNNING, 1)  # as it was: nothing is written
    assert models(bench, spec) == []
    assert not list(bench.work_dir.iterdir())
    # It only gives the job back, if nobody has taken it by then: an outage is no strike.
    ((_, end),) = bench.resources.spool.waiting()
    assert (end.outcome, end.strikes, end.artifacts) == (AttemptOutcome.RELEASED, 0, ())
    assert bench.resources.spool.commit(EndWriter(bench.database, bench.resources.artifacts)) == 1
    job = bench.resources.jobs.get(spec.id)
    assert (job.state, job.strikes, job.attempts[0].outcome) == (JobState.QUEUED, 0, AttemptOutcome.RELEASED)
    wait_until(
        lambda: not [thread for thread in threading.enumerate() if thread.name == f"heartbeat-{spec.id}"],
        what="the end of the heartbeat",
    )
    bench.database.close()


# Leases and outages


def test_nobody_takes_a_job_after_an_outage_until_its_worker_could_renew(bench: Workbench) -> None:
    spec = order(bench)
    touch(bench, A, "learn")
    touch(bench, B, "learn")
    assert claim(bench, spec.id, node=A) is not None
    # Nobody has reached the database for longer than a lease.
    change(bench, "UPDATE nodes SET last_seen = last_seen - 100")
    change(bench, "UPDATE jobs SET lease_expires_at = lease_expires_at - 100")
    sweeper = bench.resources.sweeper
    assert sweeper.recover_lost() == 0  # also if a sweeper comes before the first sign of life
    assert claim(bench, spec.id, node=B) is None
    touch(bench, B, "learn")
    assert sweeper.recover_lost() == 0
    touch(bench, B, "learn")
    assert claim(bench, spec.id, node=B) is None
    with bench.database.begin() as work:
        assert work.jobs.renew(spec.id, 1, lease_s=LEASE_S) is False
    job = get(bench, spec)
    assert (job.state, job.attempt, job.strikes) == (JobState.RUNNING, 1, 0)


def test_a_worker_that_does_not_come_back_after_an_outage_loses_its_job_one_lease_later(bench: Workbench) -> None:
    spec = order(bench)
    touch(bench, A, "learn")
    claim(bench, spec.id, node=A)
    change(bench, "UPDATE nodes SET last_seen = last_seen - 100")
    change(bench, "UPDATE jobs SET lease_expires_at = lease_expires_at - 100")
    touch(bench, B, "learn")
    assert bench.resources.sweeper.recover_lost() == 0
    change(bench, "UPDATE nodes SET resumed_at = resumed_at - :lease", lease=LEASE_S + 1)
    assert bench.resources.sweeper.recover_lost() == 1
    assert get(bench, spec).strikes == 1


def test_a_worker_that_alone_is_silent_loses_its_job(bench: Workbench) -> None:
    spec, other = order(bench), order(bench)
    touch(bench, A, "learn")
    touch(bench, B, "learn")
    for job in (spec, other):
        claim(bench, job.id, node=A)
    change(bench, "UPDATE nodes SET last_seen = last_seen - 100 WHERE node = :node", node=A)
    change(bench, "UPDATE jobs SET lease_expires_at = lease_expires_at - 100")
    touch(bench, B, "learn")
    assert claim(bench, other.id, node=B) is not None
    assert bench.resources.sweeper.recover_lost() == 1
    assert {get(bench, job).strikes for job in (spec, other)} == {1}


def test_a_clock_that_is_put_forward_takes_no_job(bench: Workbench) -> None:
    spec = order(bench)
    touch(bench, A, "learn")
    claim(bench, spec.id, node=A)
    # As if the database's clock were an hour later now.
    change(bench, "UPDATE nodes SET last_seen = last_seen - 3600")
    change(bench, "UPDATE jobs SET lease_expires_at = lease_expires_at - 3600")
    touch(bench, A, "learn")
    assert bench.resources.sweeper.recover_lost() == 0


def test_two_sweepers_of_which_one_is_frozen_strike_once(bench: Workbench, monkeypatch: pytest.MonkeyPatch) -> None:
    spec = order(bench)
    claim(bench, spec.id, lease_s=-1)
    frozen, go_on = threading.Event(), threading.Event()
    real = JobRepository.requeue

    def freeze(self: JobRepository, *args: object, **kwargs: object) -> bool:
        done = real(self, *args, **kwargs)  # type: ignore[arg-type]
        if threading.current_thread().name == "frozen":
            frozen.set()
            go_on.wait(30)
        return done

    monkeypatch.setattr(JobRepository, "requeue", freeze)
    counts: list[int] = []
    sweep = bench.resources.sweeper.recover_lost
    first = threading.Thread(target=lambda: counts.append(sweep()), name="frozen")
    second = threading.Thread(target=lambda: counts.append(sweep()))
    first.start()
    assert frozen.wait(60)
    second.start()
    if bench.database.engine.dialect.name == "postgresql":
        second.join(30)  # what another one holds is skipped
        assert counts == [0]
    go_on.set()
    first.join(30)
    second.join(30)
    assert sorted(counts) == [0, 1]
    job = get(bench, spec)
    assert (job.state, job.strikes) == (JobState.QUEUED, 1)
    assert [attempt.outcome for attempt in job.attempts] == [AttemptOutcome.LOST]


def test_a_job_that_lost_three_workers_tells_which(bench: Workbench) -> None:
    spec = order(bench)
    for node in ("one", "two", "three"):
        assert claim(bench, spec.id, lease_s=-1, node=node) is not None
        assert bench.resources.sweeper.recover_lost() == 1
    failure = get(bench, spec).failure
    assert failure is not None
    assert (failure.cause, failure.blame) == (Cause.WORKER_LOST, Blame.INFRASTRUCTURE)
    for number, node in enumerate(("one", "two", "three"), start=1):
        assert f"attempt {number} on w-{node}: its worker stopped renewing the lease" in failure.message


# Rows that cannot be read


@pytest.mark.parametrize("spec", ["null", "[]", "5", "{}", '{"id": 5}', "broken {"])
@pytest.mark.parametrize("where", ["queued", "published", "running"])
def test_a_damaged_order_ends_and_the_others_go_on(bench: Workbench, spec: str, where: str) -> None:
    if spec == "broken {" and bench.database.engine.dialect.name == "postgresql":
        pytest.skip("PostgreSQL stores no broken JSON")
    bench.publisher.down = where == "queued"
    bad, good = order(bench), order(bench)
    if where == "running":
        for each in (bad, good):
            claim(bench, each.id, lease_s=-1)
    cast = ":spec" if bench.database.engine.dialect.name == "sqlite" else "CAST(:spec AS json)"
    bad_id = bad.id.hex if bench.database.engine.dialect.name == "sqlite" else bad.id
    change(bench, f"UPDATE jobs SET spec = {cast} WHERE id = :id", spec=spec, id=bad_id)
    bench.publisher.down = False
    assert get(bench, bad).spec.id == bad.id
    if where == "published":
        assert bench.resources.runner.run(bad.id) is None
    bench.resources.sweeper.sweep_jobs()
    job = get(bench, bad)
    assert job.failure is not None
    assert (job.state, job.failure.cause, job.failure.blame) == (
        JobState.FAILED,
        Cause.INTERNAL_ERROR,
        Blame.INFRASTRUCTURE,
    )
    assert "order it again" in job.failure.message
    assert [attempt.outcome for attempt in job.attempts] == [AttemptOutcome.FAILED] * (where == "running")
    assert good.id in bench.publisher.published
    with bench.database.read() as work:
        assert len(work.jobs.page(JobFilter(), limit=9, after=None)) == 2
    done = bench.resources.runner.run(good.id)
    assert done is not None
    assert done.state is JobState.SUCCEEDED


# Another machine


def retry(bench: Workbench, spec: LearnSpec, outcome: AttemptOutcome = AttemptOutcome.RETRIED) -> None:
    """Let node A fail at a job, as infrastructure does."""
    assert claim(bench, spec.id, node=A) is not None
    with bench.database.begin() as work:
        assert work.jobs.requeue(spec.id, 1, outcome=outcome, message="x", delay_s=0, strikes=0)


@pytest.mark.parametrize("tags", [(), ("big-memory", "gpu")])
def test_a_job_that_failed_on_one_machine_goes_to_another(bench: Workbench, tags: tuple[str, ...]) -> None:
    queue = "learn.big-memory+gpu" if tags else "learn"
    spec = order(bench, tags=tags)
    touch(bench, A, queue)
    touch(bench, B, "predict", queue)
    retry(bench, spec)
    assert claim(bench, spec.id, node=A) is None
    assert claim(bench, spec.id, node=B) is not None


def test_a_machine_that_should_leave_a_job_tells_the_others(
    bench: Workbench, no_wait: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = order(bench)
    here = bench.resources.node
    touch(bench, here, "learn")
    bench.runtime.down = True
    bench.resources.runner.run(spec.id)
    bench.runtime.down = False
    touch(bench, B, "learn")
    bench.publisher.published.clear()
    assert bench.resources.runner.run(spec.id) is None
    assert bench.publisher.published == [spec.id]
    assert get(bench, spec).attempt == 1
    assert claim(bench, spec.id, node=B) is not None


def test_a_machine_that_should_leave_a_job_takes_another_one_for_it(bench: Workbench, no_wait: None) -> None:
    """Or two machines that are each told of the job which the other one should do might go on like that."""
    here = bench.resources.node
    left, other = order(bench), order(bench)
    for node, spec in ((here, left), (B, other)):
        touch(bench, node, "learn")
        assert claim(bench, spec.id, node=node) is not None
        with bench.database.begin() as work:
            retried = AttemptOutcome.RETRIED
            assert work.jobs.requeue(spec.id, 1, outcome=retried, message="x", delay_s=0, strikes=0)
    bench.publisher.published.clear()
    done = bench.resources.runner.run(left.id)
    assert done is not None
    assert (done.id, done.state) == (other.id, JobState.SUCCEEDED)
    assert bench.publisher.published == [left.id]
    assert claim(bench, left.id, node=B) is not None


@pytest.mark.parametrize(
    ("outcome", "queue", "statement"),
    [
        (AttemptOutcome.RETRIED, "predict", ""),
        (AttemptOutcome.RETRIED, "learn.gpu", ""),
        (AttemptOutcome.RETRIED, "learn", "UPDATE nodes SET last_seen = last_seen - 61 WHERE node = 'node-b'"),
        (AttemptOutcome.RETRIED, "learn", f"UPDATE jobs SET not_before = not_before - {AVOID_S + 1}"),
        (AttemptOutcome.RETRIED, "learn", "DELETE FROM nodes WHERE node = 'node-b'"),
        (AttemptOutcome.RELEASED, "learn", ""),
    ],
    ids=["other-kind", "other-tags", "not-seen", "long-ago", "none", "released"],
)
def test_a_machine_tries_again_where_no_other_would(
    bench: Workbench, outcome: AttemptOutcome, queue: str, statement: str
) -> None:
    spec = order(bench)
    touch(bench, A, "learn")
    touch(bench, B, queue)
    retry(bench, spec, outcome)
    if statement:
        change(bench, statement)
    assert claim(bench, spec.id, node=A) is not None


def test_a_lost_job_goes_to_another_machine(bench: Workbench) -> None:
    spec = order(bench)
    touch(bench, A, "learn")
    touch(bench, B, "learn")
    claim(bench, spec.id, lease_s=-1, node=A)
    bench.publisher.published.clear()
    assert bench.resources.sweeper.recover_lost() == 1
    assert bench.publisher.published == [spec.id]  # at once
    assert claim(bench, spec.id, node=A) is None
    assert claim(bench, spec.id, node=B) is not None


def test_a_job_that_is_handed_back_is_published_at_once(bench: Workbench) -> None:
    spec = order(bench)
    bench.publisher.published.clear()

    def stop(container: FakeContainer) -> int:
        raise SystemExit

    bench.programs["algo"] = stop
    with pytest.raises(SystemExit):
        bench.resources.runner.run(spec.id)
    assert bench.publisher.published == [spec.id]
    assert get(bench, spec).strikes == 0


def test_a_node_says_what_it_takes_until_it_ends(
    bench: Workbench, monkeypatch: pytest.MonkeyPatch, no_wait: None
) -> None:
    monkeypatch.setattr("morpheo.contact.SIGNS", 3000)
    spec, stop = order(bench), threading.Event()
    with ends_cannot_be_written(monkeypatch):
        bench.resources.runner.run(spec.id)
    taken = ["learn"]
    contact = bench.resources.contact
    thread = threading.Thread(target=contact.run, args=(stop,), kwargs={"name": "learn@here", "queues": lambda: taken})

    def rows() -> list[tuple[str, str]]:
        with bench.database.connect() as connection:
            connection.execution_options(morpheo_read=True)
            return [(name, queues) for name, queues in connection.execute(text("SELECT name, queues FROM nodes"))]

    thread.start()
    wait_until(lambda: rows() == [("learn@here", ",learn,")], what="a row")
    wait_until(lambda: get(bench, spec).state is JobState.SUCCEEDED, what="the end that waited")
    taken.clear()  # it is drained
    wait_until(lambda: rows() == [("learn@here", ",,")], what="a node that takes nothing")
    stop.set()
    thread.join(60)
    assert rows() == []


def test_a_database_that_is_away_ends_no_contact(bench: Workbench, monkeypatch: pytest.MonkeyPatch) -> None:
    from morpheo.storage.nodes import NodeRepository  # noqa: PLC0415

    real, outages = NodeRepository.touch, [DatabaseUnavailable()] * 3

    def flaky(self: NodeRepository, *args: object, **kwargs: object) -> None:
        if outages:
            raise outages.pop()
        real(self, *args, **kwargs)  # type: ignore[arg-type]

    monkeypatch.setattr(NodeRepository, "touch", flaky)
    for _ in range(4):
        bench.resources.contact.touch("learn@here", ["learn"])
    with bench.database.connect() as connection:
        connection.execution_options(morpheo_read=True)
        assert connection.execute(text("SELECT count(*) FROM nodes")).scalar_one() == 1


def test_an_unknown_job_is_neither_left_nor_buried(bench: Workbench) -> None:
    with bench.database.begin() as work:
        assert not work.jobs.leave(uuid4(), A)
        assert not work.recovery.bury(uuid4())
    with pytest.raises(NotFound):
        bench.resources.jobs.get(uuid4())


def test_a_heartbeat_has_its_connection_from_the_beginning(bench: Workbench, monkeypatch: pytest.MonkeyPatch) -> None:
    """When it first needs one, the database may have none left."""
    monkeypatch.setattr("morpheo.heartbeat.LOOK_S", 3600)
    spec = order(bench)
    job = claim(bench, spec.id)
    assert job is not None
    opened = threading.Event()
    event.listen(bench.database.reserved.engine, "connect", lambda *_: opened.set())
    with Heartbeat(bench.database, job, Interrupt(), every_s=3600, lease_s=3600, self_fence_s=3600):
        assert opened.wait(60)


@pytest.mark.database
def test_a_row_that_somebody_keeps_costs_no_worker_its_time(
    postgres_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A sweeper stands still in its transaction: the message comes back, and other jobs are done meanwhile."""
    monkeypatch.setattr("morpheo.storage.database.LOCK_TIMEOUT_S", 1)
    bench = make_workbench(postgres_url, tmp_path / "node")
    kept, other = order(bench), order(bench)
    bench.publisher.published.clear()
    with bench.database.engine.begin() as connection:
        connection.execute(text("SELECT id FROM jobs WHERE id = :id FOR UPDATE"), {"id": kept.id})
        assert bench.resources.runner.run(kept.id) is None
        assert bench.publisher.published == [kept.id]
        done = bench.resources.runner.run(other.id)
        assert done is not None
        assert done.state is JobState.SUCCEEDED
    done = bench.resources.runner.run(kept.id)
    assert done is not None
    assert (done.state, done.attempt) == (JobState.SUCCEEDED, 1)
    bench.database.close()
