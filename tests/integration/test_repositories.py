"""The database, on SQLite and on PostgreSQL."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime
from uuid import UUID, uuid4

import psycopg
import pytest
from alembic import command
from sqlalchemy import update

from morpheo.challenges import Problem
from morpheo.errors import Conflict, DatabaseUnavailable, NotFound
from morpheo.models import (
    CANCELLED,
    TRANSITIONS,
    Artifact,
    ArtifactKind,
    AttemptOutcome,
    Blame,
    Cause,
    Failure,
    Job,
    JobKind,
    JobSpec,
    JobState,
    Scores,
    StepName,
    StepRecord,
)
from morpheo.queues import in_lane
from morpheo.storage import migrate
from morpheo.storage.clock import database_now
from morpheo.storage.database import Database
from morpheo.storage.job_filter import JobFilter
from morpheo.storage.tables import AttemptRow
from morpheo.testing import make_learn_spec, make_predict_spec

FAILURE = Failure(cause=Cause.EXIT_CODE, blame=Blame.SUBMITTER, step=StepName.TRAIN, message="train ended with 1")
LEASE_S = 30.0


def make_artifact(**changes: object) -> Artifact:
    artifact = Artifact(
        id=uuid4(),
        kind=ArtifactKind.ALGO,
        name="name",
        size_bytes=1 << 40,
        sha256="0" * 64,
        blob_key=f"algo/{uuid4()}",
        created_at=datetime.now(UTC),
    )
    return replace(artifact, **changes)  # type: ignore[arg-type]


def add_job(database: Database, spec: JobSpec | None = None) -> JobSpec:
    spec = spec or make_learn_spec()
    with database.begin() as work:
        work.jobs.add(spec, algo=None)
    return spec


def claim(database: Database, job_id: UUID, *, lease_s: float = LEASE_S, worker: str = "w1") -> Job | None:
    with database.begin() as work:
        return work.jobs.claim(job_id, worker=worker, lease_s=lease_s, max_attempts=3)


def get(database: Database, job_id: UUID) -> Job:
    with database.read() as work:
        return work.jobs.get(job_id)


@pytest.mark.parametrize("planned", [False, True])
@pytest.mark.parametrize("owner", ["anna", ""])
def test_only_machines_of_its_submitter_take_a_job_that_is_kept_apart(
    database: Database, owner: str, planned: bool
) -> None:
    database.attach(apart=True)
    algo = make_artifact(owner=owner)
    spec = make_learn_spec(algo=algo.id, tags=("gpu",))
    with database.begin() as work:
        work.artifacts.add(algo)
        if planned:
            work.jobs.add_ranks([spec], owners={algo.id: owner})
            work.jobs.release(work.chains.next_waiting(algo.id, limit=1)[0])
        else:
            work.jobs.add(spec, algo=None)
        told = work.jobs.queued[0]
    assert told == in_lane(spec, owner) == get(database, spec.id).spec

    def take(submitter: str) -> Job | None:
        with database.begin() as work:
            return work.jobs.claim(spec.id, worker="w", lease_s=LEASE_S, max_attempts=3, node="n", submitter=submitter)

    assert [take(other) for other in ("bob", "ann", "anna.", "" if owner else "anna")] == [None] * 4
    taken = take(owner)
    assert taken is not None
    assert taken.attempt == 1


def test_the_migrations_make_the_tables_of_the_code(database: Database) -> None:
    migrate.compare(database)


def test_migrating_again_changes_nothing(database: Database) -> None:
    before, after = migrate.upgrade(database)
    assert before == after


def test_what_was_stalled_before_0005_is_stalled_by_its_last_dead_rank(database: Database) -> None:
    problem = Problem(
        id=uuid4(), workflow=uuid4(), test_data=(uuid4(),), batch_size=1, created_at=datetime.fromtimestamp(0, UTC)
    )
    stalled, runs = uuid4(), uuid4()
    ranks = [make_learn_spec(problem=problem.id, algo=algo, rank=rank) for algo in (stalled, runs) for rank in range(3)]
    with database.begin() as work:
        work.challenges.add_problem(problem)
        for algo in (stalled, runs):
            work.challenges.add_submission(algo, problem.id, "a")
        for spec in ranks:
            work.jobs.add(spec, algo=None, planned=True)
    for spec in ranks:
        with database.begin() as work:  # each at its own time
            work.jobs.request_cancel(spec.id)
    with database.begin() as work:
        work.jobs.add(replace(ranks[2], id=uuid4()), algo=None, planned=True)  # it was retried
        work.challenges.set_stalled(stalled, uuid4())
    migrate._run(database, lambda config: command.downgrade(config, "0004"))
    migrate.upgrade(database)
    with database.read() as work:
        assert work.challenges.submission(stalled).stalled_by == ranks[1].id
        assert work.challenges.submission(runs).stalled_by is None


def test_an_artifact_comes_back_as_it_was(database: Database) -> None:
    artifact = make_artifact(name="näme", description="d" * 255, algo=uuid4())
    with database.begin() as work:
        stored = work.artifacts.add(artifact)
    with database.read() as work:
        assert work.artifacts.get(ArtifactKind.ALGO, artifact.id) == stored
    assert replace(stored, created_at=artifact.created_at) == artifact
    assert abs((stored.created_at - datetime.now(UTC)).total_seconds()) < 60


def test_an_id_is_unique_among_artifacts_of_its_kind(database: Database) -> None:
    artifact = make_artifact()
    with database.begin() as work:
        work.artifacts.add(artifact)
        work.artifacts.add(replace(artifact, kind=ArtifactKind.MODEL, blob_key="model/x"))
    with pytest.raises(Conflict), database.begin() as work:
        work.artifacts.add(replace(artifact, blob_key="algo/other"))


def test_a_unit_of_work_that_raises_leaves_nothing(database: Database) -> None:
    artifact = make_artifact()
    with pytest.raises(Conflict), database.begin() as work:  # noqa: PT012 - the second one rolls the first one back
        work.artifacts.add(artifact)
        work.artifacts.add(artifact)
    with pytest.raises(NotFound), database.read() as work:
        work.artifacts.get(ArtifactKind.ALGO, artifact.id)


def test_missing_ids_are_named_in_their_order(database: Database) -> None:
    known, unknown, other = make_artifact(), uuid4(), uuid4()
    with database.begin() as work:
        work.artifacts.add(known)
        assert work.artifacts.missing(ArtifactKind.ALGO, [unknown, known.id, other]) == [unknown, other]
        assert work.artifacts.missing(ArtifactKind.DATA, [known.id]) == [known.id]
        many = [uuid4() for _ in range(1100)]
        assert work.artifacts.missing(ArtifactKind.ALGO, many) == many


def test_pages_hold_every_artifact_once_newest_first(database: Database) -> None:
    for number in range(7):
        with database.begin() as work:
            work.artifacts.add(make_artifact(name=f"Number {number}"))
    with database.read() as work:
        pages = [work.artifacts.page(ArtifactKind.ALGO, page=page, page_size=3, name=None) for page in range(4)]
    assert [len(items) for items, _ in pages] == [3, 3, 1, 0]
    assert {total for _, total in pages} == {7}
    found = [item for items, _ in pages for item in items]
    assert len({item.id for item in found}) == 7
    assert found == sorted(found, key=lambda item: (-item.created_at.timestamp(), str(item.id)))


@pytest.mark.parametrize(("part", "count"), [("ALPHA", 2), ("100%", 1), ("a_b", 1), ("nothing", 0)])
def test_a_name_filter_is_text_and_not_a_pattern(database: Database, part: str, count: int) -> None:
    with database.begin() as work:
        for name in ("alpha 100%", "Alpha a_b", "beta 1000 axb"):
            work.artifacts.add(make_artifact(name=name))
        assert work.artifacts.page(ArtifactKind.ALGO, page=0, page_size=10, name=part)[1] == count


def test_a_change_of_an_artifact_that_somebody_changed_is_refused(database: Database) -> None:
    with database.begin() as work:
        old = work.artifacts.add(make_artifact())
        work.artifacts.replace(old, replace(old, blob_key="algo/second"))
    with pytest.raises(NotFound, match="changed by somebody else"), database.begin() as work:
        work.artifacts.replace(old, replace(old, name="third"))


def test_a_job_comes_back_as_it_was_ordered(database: Database) -> None:
    learn = make_learn_spec(rank=3, model_start=uuid4(), train_data=(uuid4(), uuid4()))
    predict = make_predict_spec()
    algo = uuid4()
    with database.begin() as work:
        work.jobs.add(learn, algo=None)
        work.jobs.add(predict, algo=algo)
    job = get(database, learn.id)
    assert (job.spec, job.kind, job.state, job.algo, job.attempt) == (
        learn,
        JobKind.LEARN,
        JobState.QUEUED,
        learn.algo,
        0,
    )
    assert (get(database, predict.id).spec, get(database, predict.id).algo) == (predict, algo)


def test_the_same_id_cannot_be_ordered_twice(database: Database) -> None:
    spec = add_job(database)
    with pytest.raises(Conflict):
        add_job(database, spec)


def test_a_claim_is_for_one(database: Database) -> None:
    spec = add_job(database)
    barrier = threading.Barrier(8)
    claims: list[Job | None] = []

    def race(worker: str) -> None:
        barrier.wait()
        claims.append(claim(database, spec.id, worker=worker))

    threads = [threading.Thread(target=race, args=(f"w{number}",)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    winners = [job for job in claims if job is not None]
    assert len(claims) == 8
    assert len(winners) == 1
    assert (winners[0].attempt, winners[0].state) == (1, JobState.RUNNING)
    assert [attempt.worker for attempt in get(database, spec.id).attempts] == [winners[0].worker]


def test_an_expired_lease_can_be_taken_over_and_costs_a_strike(database: Database) -> None:
    spec = add_job(database)
    first = claim(database, spec.id, lease_s=-1)
    second = claim(database, spec.id, worker="w2")
    assert first is not None
    assert second is not None
    assert (second.attempt, second.strikes, second.worker) == (2, 1, "w2")
    assert [attempt.outcome for attempt in get(database, spec.id).attempts] == [
        AttemptOutcome.LOST,
        AttemptOutcome.RUNNING,
    ]


def test_a_job_that_lost_its_workers_too_often_is_not_claimed_again(database: Database) -> None:
    spec = add_job(database)
    claims = [claim(database, spec.id, lease_s=-1) for _ in range(4)]
    assert [job and job.attempt for job in claims] == [1, 2, 3, None]


def test_a_live_lease_cannot_be_taken_over(database: Database) -> None:
    spec = add_job(database)
    assert claim(database, spec.id) is not None
    assert claim(database, spec.id, worker="w2") is None


def test_a_lease_is_renewed_by_its_attempt_only(database: Database) -> None:
    spec = add_job(database)
    claim(database, spec.id, lease_s=-1)
    with database.begin() as work:
        assert work.jobs.renew(spec.id, 1, lease_s=LEASE_S) is False
    assert claim(database, spec.id, worker="w2") is None  # renewed although it had run out
    with database.begin() as work:
        assert work.jobs.renew(spec.id, 2, lease_s=LEASE_S) is None


def test_a_cancel_reaches_the_heartbeat(database: Database) -> None:
    spec = add_job(database)
    claim(database, spec.id)
    with database.begin() as work:
        work.jobs.request_cancel(spec.id)
        assert work.jobs.renew(spec.id, 1, lease_s=LEASE_S) is True


def test_a_queued_job_is_cancelled_at_once(database: Database) -> None:
    spec = add_job(database)
    with database.begin() as work:
        work.jobs.request_cancel(spec.id)
    job = get(database, spec.id)
    assert (job.state, job.failure) == (JobState.CANCELLED, CANCELLED)
    assert claim(database, spec.id) is None


def test_a_cancelled_job_whose_lease_ran_out_is_not_claimed(database: Database) -> None:
    spec = add_job(database)
    claim(database, spec.id, lease_s=-1)
    with database.begin() as work:
        work.jobs.request_cancel(spec.id)
    assert claim(database, spec.id, worker="w2") is None


ENDS: dict[JobState, Callable[[Database, UUID, int], bool]] = {}


def _end(state: JobState) -> Callable[[Callable[[Database, UUID, int], bool]], None]:
    def keep(function: Callable[[Database, UUID, int], bool]) -> None:
        ENDS[state] = function

    return keep


@_end(JobState.SUCCEEDED)
def _succeed(database: Database, job_id: UUID, attempt: int) -> bool:
    with database.begin() as work:
        return work.jobs.succeed(job_id, attempt, Scores(perf=0.5, train_perf={"a": 1.0}, test_perf={"b": 0.0}))


@_end(JobState.FAILED)
def _fail(database: Database, job_id: UUID, attempt: int) -> bool:
    with database.begin() as work:
        return work.jobs.fail(job_id, attempt, FAILURE)


@_end(JobState.CANCELLED)
def _cancel(database: Database, job_id: UUID, attempt: int) -> bool:
    with database.begin() as work:
        return work.jobs.cancelled(job_id, attempt)


@_end(JobState.QUEUED)
def _requeue(database: Database, job_id: UUID, attempt: int) -> bool:
    with database.begin() as work:
        return work.jobs.requeue(job_id, attempt, outcome=AttemptOutcome.RETRIED, message="again", delay_s=0, strikes=1)


@pytest.mark.parametrize("state", sorted(TRANSITIONS[JobState.RUNNING]))
def test_a_running_job_ends_as_its_attempt_says(database: Database, state: JobState) -> None:
    spec = add_job(database)
    claim(database, spec.id)
    assert ENDS[state](database, spec.id, 1)
    job = get(database, spec.id)
    assert job.state is state
    assert (job.ended_at is not None) == state.is_final
    assert job.attempts[0].ended_at is not None


@pytest.mark.parametrize("state", sorted(ENDS))
def test_an_attempt_that_lost_its_lease_changes_nothing(database: Database, state: JobState) -> None:
    spec = add_job(database)
    claim(database, spec.id, lease_s=-1)
    claim(database, spec.id, worker="w2")
    before = get(database, spec.id)
    assert not ENDS[state](database, spec.id, 1)
    assert get(database, spec.id) == before


@pytest.mark.parametrize(("first", "second"), list(itertools.product(sorted(ENDS), sorted(ENDS))))
def test_what_has_ended_does_not_end_again(database: Database, first: JobState, second: JobState) -> None:
    spec = add_job(database)
    claim(database, spec.id)
    assert ENDS[first](database, spec.id, 1)
    before = get(database, spec.id)
    assert not ENDS[second](database, spec.id, 1)
    assert get(database, spec.id) == before


def test_scores_and_failure_come_back(database: Database) -> None:
    done, bad = add_job(database), add_job(database)
    for spec, state in ((done, JobState.SUCCEEDED), (bad, JobState.FAILED)):
        claim(database, spec.id)
        ENDS[state](database, spec.id, 1)
    assert get(database, done.id).scores == Scores(perf=0.5, train_perf={"a": 1.0}, test_perf={"b": 0.0})
    assert get(database, bad.id).failure == FAILURE
    assert get(database, bad.id).attempts[0].message == FAILURE.message


def test_a_cancelled_job_ends_instead_of_going_back_to_the_queue(database: Database) -> None:
    spec = add_job(database)
    claim(database, spec.id)
    with database.begin() as work:
        work.jobs.request_cancel(spec.id)
    assert ENDS[JobState.QUEUED](database, spec.id, 1)
    job = get(database, spec.id)
    assert (job.state, job.failure) == (JobState.CANCELLED, CANCELLED)
    assert job.attempts[0].outcome is AttemptOutcome.CANCELLED
    assert not ENDS[JobState.QUEUED](database, spec.id, 1)


def test_a_requeued_job_waits_its_delay(database: Database) -> None:
    spec = add_job(database)
    claim(database, spec.id)
    with database.begin() as work:
        work.jobs.requeue(spec.id, 1, outcome=AttemptOutcome.RETRIED, message="later", delay_s=3600, strikes=1)
    assert claim(database, spec.id) is None
    with database.begin() as work:
        assert work.messages.unpublished(JobKind.LEARN, (), older_than_s=0, limit=10) == []
        assert work.messages.queues_with_unpublished(older_than_s=0) == {}


def test_a_job_has_waited_since_it_was_given_back_for_the_first_time_in_a_row(database: Database) -> None:
    """Of a job that ran for hours, and then meets an outage, the hours do not count."""
    spec = add_job(database)

    def attempt(number: int, outcome: AttemptOutcome) -> None:
        claim(database, spec.id)
        with database.begin() as work:
            assert work.jobs.requeue(spec.id, number, outcome=outcome, message="m", delay_s=0, strikes=0)

    def ended(number: int, seconds_ago: float) -> None:
        ago = update(AttemptRow).where(AttemptRow.number == number).values(ended_at=database_now() - seconds_ago)
        with database.connect() as connection:
            connection.execute(ago)
            connection.commit()

    def waited_s() -> float:
        with database.read() as work:
            return work.recovery.waited_s(spec.id)

    attempt(1, AttemptOutcome.RETRIED)
    attempt(2, AttemptOutcome.RELEASED)
    ended(1, 9000)
    claim(database, spec.id)
    assert waited_s() == 0
    with database.begin() as work:
        assert work.jobs.requeue(spec.id, 3, outcome=AttemptOutcome.RETRIED, message="m", delay_s=0, strikes=0)
    attempt(4, AttemptOutcome.RETRIED)
    ended(3, 600)
    claim(database, spec.id)
    assert 600 <= waited_s() < 700


def test_steps_come_back_in_their_order(database: Database) -> None:
    spec = add_job(database)
    claim(database, spec.id)
    record = StepRecord(
        name=StepName.TRAIN,
        started_at=datetime.now(UTC),
        seconds=1.5,
        exit_code=0,
        peak_memory_bytes=1 << 33,
        log_key="logs/x",
    )
    with database.begin() as work:
        work.steps.begin(spec.id, 1, StepName.DETARGET, position=0)
        work.steps.begin(spec.id, 1, StepName.TRAIN, position=1)
        work.steps.end(spec.id, 1, record)
    steps = get(database, spec.id).attempts[0].steps
    assert [step.name for step in steps] == [StepName.DETARGET, StepName.TRAIN]
    assert steps[0].seconds is None
    assert replace(steps[1], started_at=record.started_at) == record


def test_jobs_are_filtered_and_paged_without_gaps_or_doubles(database: Database) -> None:
    problem = uuid4()
    specs = [make_learn_spec(problem=problem) for _ in range(7)]
    for spec in specs:
        add_job(database, spec)
    add_job(database)
    claim(database, specs[3].id)
    seen: list[UUID] = []
    after = None
    while True:
        with database.read() as work:
            page = work.jobs.page(JobFilter(problem=problem), limit=3, after=after)
        seen += [job.id for job in page]
        if len(page) < 3:
            break
        after = page[-1].created_at.timestamp(), page[-1].id
    assert sorted(map(str, seen)) == sorted(str(spec.id) for spec in specs)
    with database.read() as work:
        assert [job.id for job in work.jobs.page(JobFilter(state=JobState.RUNNING), limit=9, after=None)] == [
            specs[3].id
        ]
        assert len(work.jobs.page(JobFilter(algo=specs[0].algo), limit=9, after=None)) == 1
        assert work.jobs.page(JobFilter(kind=JobKind.PREDICT), limit=9, after=None) == []


def test_unpublished_jobs_are_found_until_they_are_published(database: Database) -> None:
    spec = add_job(database)
    with database.begin() as work:
        assert work.messages.unpublished(JobKind.LEARN, (), older_than_s=None, limit=10) == [spec]
        assert work.messages.unpublished(JobKind.LEARN, (), older_than_s=60, limit=10) == [spec]
        assert work.messages.unpublished(JobKind.PREDICT, (), older_than_s=60, limit=10) == []
        work.messages.mark_published([spec.id])
    with database.begin() as work:
        assert work.messages.unpublished(JobKind.LEARN, (), older_than_s=60, limit=10) == []
        assert work.messages.unpublished(JobKind.LEARN, (), older_than_s=None, limit=10) == []
        assert work.messages.unpublished(JobKind.LEARN, (), older_than_s=-1, limit=10) == [spec]


def test_each_queue_has_its_own_unpublished_jobs(database: Database) -> None:
    plain, published = add_job(database), add_job(database)
    big = add_job(database, make_learn_spec(tags=("big-memory", "gpu")))
    gpu = add_job(database, make_predict_spec(tags=("gpu",)))
    with database.begin() as work:
        work.messages.mark_published([published.id, gpu.id])
        assert work.messages.queues_with_unpublished(older_than_s=60) == {
            (JobKind.LEARN, ()): 2,
            (JobKind.LEARN, ("big-memory", "gpu")): 1,
        }
        assert work.messages.unpublished(JobKind.LEARN, (), older_than_s=60, limit=10) == [plain]
        assert work.messages.unpublished(JobKind.LEARN, ("big-memory", "gpu"), older_than_s=60, limit=10) == [big]
        assert work.messages.unpublished(JobKind.PREDICT, ("gpu",), older_than_s=-1, limit=10) == [gpu]


def test_jobs_are_found_by_a_whole_tag(database: Database) -> None:
    tags = [("gpu",), ("big-memory", "gpu"), ("gpu-a100",), ("a-gpu",), ()]
    specs = {each: add_job(database, make_learn_spec(tags=each)).id for each in tags}
    with database.read() as work:
        found = {job.id for job in work.jobs.page(JobFilter(tag="gpu"), limit=9, after=None)}
        assert found == {specs["gpu",], specs["big-memory", "gpu"]}
        assert work.jobs.page(JobFilter(tag="%"), limit=9, after=None) == []
        assert get(database, specs["big-memory", "gpu"]).spec.tags == ("big-memory", "gpu")


def test_expired_jobs_are_found(database: Database) -> None:
    lost, live = add_job(database), add_job(database)
    claim(database, lost.id, lease_s=-1)
    claim(database, live.id)
    with database.begin() as work:
        assert work.recovery.expired(lease_s=LEASE_S) == lost.id


def test_a_database_without_tables_says_what_to_do(tmp_path_factory: pytest.TempPathFactory) -> None:
    empty = Database(f"sqlite:///{tmp_path_factory.mktemp('db') / 'empty.db'}")
    with pytest.raises(DatabaseUnavailable, match="morpheo migrate"):
        empty.check()
    empty.close()


@pytest.mark.database
def test_a_postgresql_without_tables_says_what_to_do(postgres: str) -> None:
    empty = Database(f"postgresql+psycopg://postgres@/postgres?host={postgres}")
    with pytest.raises(DatabaseUnavailable, match="morpheo migrate"):
        empty.check()
    empty.close()


def test_a_database_that_is_not_there_is_unavailable() -> None:
    away = Database("postgresql+psycopg://postgres@127.0.0.1:1/none")
    with pytest.raises(DatabaseUnavailable, match="does not answer"):
        away.check()
    away.close()


@pytest.mark.database
def test_a_connection_that_was_cut_is_replaced(postgres_url: str) -> None:
    database = Database(postgres_url)
    database.check()
    with psycopg.connect(postgres_url.replace("+psycopg", ""), autocommit=True) as killer:
        cut = killer.execute(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
            " WHERE datname = current_database() AND pid <> pg_backend_pid()"
        ).fetchall()
    assert cut == [(True,)]
    database.check()
    database.close()
