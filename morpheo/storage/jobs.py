"""
Jobs in the database.

Every change of a job's state is one guarded UPDATE: `claim` takes a job, and all others go through `_move`, whose WHERE
names the states that may precede (from `morpheo.models.TRANSITIONS`) and, for writes of a worker, the attempt that it
holds. Zero rows changed means that somebody else was faster; the caller then changes nothing.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any
from uuid import UUID

from sqlalchemy import Select, and_, case, func, insert, or_, select, tuple_, update
from sqlalchemy.orm import Session, selectinload
from sqlalchemy.sql.elements import ColumnElement

from morpheo.errors import NotFound
from morpheo.models import (
    CANCELLED,
    TRANSITIONS,
    AttemptOutcome,
    Failure,
    Job,
    JobKind,
    JobSpec,
    JobState,
    LearnSpec,
    Scores,
    StepName,
    StepRecord,
    spec_digest,
    spec_to_dict,
)
from morpheo.storage.clock import database_now
from morpheo.storage.rows import to_job
from morpheo.storage.tables import AttemptRow, JobRow, StepRow


@dataclass(frozen=True, kw_only=True)
class JobFilter:
    """Which jobs to list; None is any."""

    state: JobState | None = None
    kind: JobKind | None = None
    problem: UUID | None = None
    algo: UUID | None = None
    #: A tag that the job asks for.
    tag: str | None = None


class JobRepository:
    """Reads and writes jobs, their attempts and steps in one transaction."""

    def __init__(self, session: Session) -> None:
        self._session = session

    def touch(self) -> None:
        """Read one id, to see that the table is there."""
        self._session.scalar(select(JobRow.id).limit(1))

    def add(self, spec: JobSpec, *, algo: UUID | None) -> None:
        """
        Insert a queued job.

        Raises:
            Conflict: a job with that id exists.
        """
        self._session.execute(
            insert(JobRow).values(
                id=spec.id,
                kind=spec.kind.value,
                state=JobState.QUEUED.value,
                problem_id=spec.problem,
                algo_id=spec.algo if isinstance(spec, LearnSpec) else algo,
                tags=_joined(spec.tags),
                spec=spec_to_dict(spec),
                spec_sha256=spec_digest(spec),
                created_at=database_now(),
            )
        )

    def digest(self, job_id: UUID) -> str | None:
        """Return the digest of a job's spec, None if there is no such job."""
        return self._session.scalar(select(JobRow.spec_sha256).where(JobRow.id == job_id))

    def get(self, job_id: UUID) -> Job:
        """
        Return a job with its attempts and steps.

        Raises:
            NotFound: there is none.
        """
        row = self._session.scalar(_with_attempts(select(JobRow).where(JobRow.id == job_id)))
        if row is None:
            raise NotFound(f"job {job_id} not found")
        return to_job(row, attempts=True)

    def page(self, where: JobFilter, *, limit: int, after: tuple[float, UUID] | None) -> list[Job]:
        """
        Return jobs without their attempts, newest first.

        Args:
            where: Which jobs.
            limit: How many at most.
            after: Time of creation (seconds since the epoch) and id of the last job of the page before.
        """
        query = select(JobRow).order_by(JobRow.created_at.desc(), JobRow.id.desc()).limit(limit)
        for column, value in (
            (JobRow.state, where.state and where.state.value),
            (JobRow.kind, where.kind and where.kind.value),
            (JobRow.problem_id, where.problem),
            (JobRow.algo_id, where.algo),
        ):
            if value is not None:
                query = query.where(column == value)
        if where.tag is not None:
            query = query.where(("+" + JobRow.tags + "+").contains(f"+{where.tag}+", autoescape=True))
        if after is not None:
            query = query.where(tuple_(JobRow.created_at, JobRow.id) < after)
        return [to_job(row, attempts=False) for row in self._session.scalars(query)]

    def claim(self, job_id: UUID, *, worker: str, lease_s: float, max_attempts: int) -> Job | None:
        """
        Take a job that is queued and due, or whose lease has run out; the latter costs it a strike.

        Returns:
            The job with its new attempt number, or None: another worker has it, or there is nothing to do.
        """
        expired = and_(JobRow.state == JobState.RUNNING.value, JobRow.lease_expires_at < database_now())
        takes_over = and_(expired, JobRow.strikes + 1 < max_attempts)
        due = and_(JobRow.state == JobState.QUEUED.value, JobRow.not_before <= database_now())
        attempt = self._session.execute(
            update(JobRow)
            .where(JobRow.id == job_id, JobRow.cancel_requested.is_(False), or_(due, takes_over))
            .values(
                state=JobState.RUNNING.value,
                attempt=JobRow.attempt + 1,
                strikes=JobRow.strikes + case((expired, 1), else_=0),
                worker=worker,
                lease_expires_at=database_now() + lease_s,
                started_at=case((JobRow.started_at.is_(None), database_now()), else_=JobRow.started_at),
            )
            .returning(JobRow.attempt)
        ).scalar_one_or_none()
        if attempt is None:
            return None
        self._end_open_attempts(job_id, AttemptOutcome.LOST, "its worker stopped renewing the lease")
        self._session.execute(
            insert(AttemptRow).values(
                job_id=job_id,
                number=attempt,
                worker=worker,
                outcome=AttemptOutcome.RUNNING.value,
                started_at=database_now(),
            )
        )
        row = self._session.get_one(JobRow, job_id, populate_existing=True)
        return to_job(row, attempts=False)

    def renew(self, job_id: UUID, attempt: int, *, lease_s: float) -> bool | None:
        """
        Renew a lease.

        Returns:
            Whether a cancel has been asked for, or None: the lease is lost.
        """
        return self._session.execute(
            update(JobRow)
            .where(*_held(job_id, attempt))
            .values(lease_expires_at=database_now() + lease_s)
            .returning(JobRow.cancel_requested)
        ).scalar_one_or_none()

    def begin_step(self, job_id: UUID, attempt: int, name: StepName, *, position: int) -> None:
        """Record that a step has started."""
        self._session.execute(
            insert(StepRow).values(
                job_id=job_id, attempt=attempt, name=name.value, position=position, started_at=database_now()
            )
        )

    def end_step(self, job_id: UUID, attempt: int, record: StepRecord) -> None:
        """Record how a step ended."""
        self._session.execute(
            update(StepRow)
            .where(StepRow.job_id == job_id, StepRow.attempt == attempt, StepRow.name == record.name.value)
            .values(
                seconds=record.seconds,
                exit_code=record.exit_code,
                oom_killed=record.oom_killed,
                peak_memory_bytes=record.peak_memory_bytes,
                log_key=record.log_key,
            )
        )

    def succeed(self, job_id: UUID, attempt: int, scores: Scores | None) -> bool:
        """End the job with a result, if the attempt still holds it."""
        values = None if scores is None else {name: getattr(scores, name) for name in scores.__dataclass_fields__}
        moved = self._move(JobState.SUCCEEDED, *_held(job_id, attempt), scores=values, ended_at=database_now())
        return moved and self._end_attempt(job_id, attempt, AttemptOutcome.SUCCEEDED)

    def fail(self, job_id: UUID, attempt: int, failure: Failure) -> bool:
        """End the job without a result, if the attempt still holds it."""
        moved = self._move(JobState.FAILED, *_held(job_id, attempt), **_failed(failure))
        return moved and self._end_attempt(job_id, attempt, AttemptOutcome.FAILED, failure.message)

    def cancelled(self, job_id: UUID, attempt: int) -> bool:
        """End a running job that was cancelled, if the attempt still holds it."""
        moved = self._move(JobState.CANCELLED, *_held(job_id, attempt), **_failed(CANCELLED))
        return moved and self._end_attempt(job_id, attempt, AttemptOutcome.CANCELLED, CANCELLED.message)

    def requeue(
        self, job_id: UUID, attempt: int, *, outcome: AttemptOutcome, message: str, delay_s: float, strikes: int
    ) -> bool:
        """Give a running job back to the queue, if the attempt still holds it; one that was cancelled ends instead."""
        if self._move(
            JobState.CANCELLED, *_held(job_id, attempt), JobRow.cancel_requested.is_(True), **_failed(CANCELLED)
        ):
            return self._end_attempt(job_id, attempt, AttemptOutcome.CANCELLED, message)
        moved = self._move(
            JobState.QUEUED,
            *_held(job_id, attempt),
            worker=None,
            lease_expires_at=None,
            published_at=None,
            not_before=database_now() + delay_s,
            strikes=JobRow.strikes + strikes,
        )
        return moved and self._end_attempt(job_id, attempt, outcome, message)

    def request_cancel(self, job_id: UUID) -> None:
        """End a job that no worker holds; ask the worker of a running one to end it."""
        waiting = (JobState.WAITING.value, JobState.QUEUED.value)
        if not self._move(JobState.CANCELLED, JobRow.id == job_id, JobRow.state.in_(waiting), **_failed(CANCELLED)):
            self._session.execute(
                update(JobRow)
                .where(JobRow.id == job_id, JobRow.state == JobState.RUNNING.value)
                .values(cancel_requested=True)
            )

    def mark_published(self, job_ids: Iterable[UUID]) -> None:
        """Record that messages for these jobs were given to the broker."""
        self._session.execute(update(JobRow).where(JobRow.id.in_(list(job_ids))).values(published_at=database_now()))

    def queues_with_unpublished(self, *, older_than_s: float) -> dict[tuple[JobKind, tuple[str, ...]], int]:
        """Return, by kind and tags, how many jobs are queued, where there are any that `unpublished` would return."""
        found = self._session.execute(
            select(JobRow.kind, JobRow.tags, func.count())
            .where(JobRow.state == JobState.QUEUED.value)
            .group_by(JobRow.kind, JobRow.tags)
            .having(func.count(case((and_(*_unpublished(older_than_s)), 1))) > 0)
        )
        return {(JobKind(kind), tuple(tags.split("+")) if tags else ()): count for kind, tags, count in found}

    def unpublished(
        self, kind: JobKind, tags: tuple[str, ...], *, older_than_s: float | None, limit: int
    ) -> list[JobSpec]:
        """
        Return queued jobs of one queue that are due and whose message was never given to the broker, or long ago.

        Args:
            kind: Of the jobs.
            tags: All of the jobs.
            older_than_s: How long ago; None is for jobs that were never published.
            limit: How many at most.
        """
        rows = self._session.scalars(
            select(JobRow)
            .where(JobRow.kind == kind.value, JobRow.tags == _joined(tags), *_unpublished(older_than_s))
            .order_by(JobRow.created_at)
            .limit(limit)
        )
        return [to_job(row, attempts=False).spec for row in rows]

    def expired(self, *, limit: int) -> list[Job]:
        """Return running jobs whose lease has run out, locked where the database can."""
        rows = self._session.scalars(
            select(JobRow)
            .where(JobRow.state == JobState.RUNNING.value, JobRow.lease_expires_at < database_now())
            .limit(limit)
            .with_for_update(skip_locked=True)
        )
        return [to_job(row, attempts=False) for row in rows]

    def _move(self, to: JobState, *where: ColumnElement[bool], **values: Any) -> bool:
        sources = [state.value for state, targets in TRANSITIONS.items() if to in targets]
        changed = self._session.execute(
            update(JobRow)
            .where(JobRow.state.in_(sources), *where)
            .values(state=to.value, **values)
            .returning(JobRow.id)
        )
        return changed.scalar_one_or_none() is not None

    def _end_attempt(self, job_id: UUID, attempt: int, outcome: AttemptOutcome, message: str = "") -> bool:
        self._session.execute(
            update(AttemptRow)
            .where(AttemptRow.job_id == job_id, AttemptRow.number == attempt)
            .values(outcome=outcome.value, ended_at=database_now(), message=message)
        )
        return True

    def _end_open_attempts(self, job_id: UUID, outcome: AttemptOutcome, message: str) -> None:
        self._session.execute(
            update(AttemptRow)
            .where(AttemptRow.job_id == job_id, AttemptRow.outcome == AttemptOutcome.RUNNING.value)
            .values(outcome=outcome.value, ended_at=database_now(), message=message)
        )


def _joined(tags: tuple[str, ...]) -> str:
    return "+".join(tags)


def _unpublished(older_than_s: float | None) -> tuple[ColumnElement[bool], ...]:
    never: ColumnElement[bool] = JobRow.published_at.is_(None)
    return (
        JobRow.state == JobState.QUEUED.value,
        JobRow.not_before <= database_now(),
        never if older_than_s is None else or_(never, JobRow.published_at < database_now() - older_than_s),
    )


def _held(job_id: UUID, attempt: int) -> tuple[ColumnElement[bool], ...]:
    return JobRow.id == job_id, JobRow.attempt == attempt, JobRow.state == JobState.RUNNING.value


def _failed(failure: Failure) -> dict[str, Any]:
    return {
        "failure_cause": failure.cause.value,
        "failure_blame": failure.blame.value,
        "failure_step": failure.step and failure.step.value,
        "failure_message": failure.message,
        "ended_at": database_now(),
    }


def _with_attempts(query: Select[JobRow]) -> Select[JobRow]:
    return query.options(selectinload(JobRow.attempts).selectinload(AttemptRow.steps))
