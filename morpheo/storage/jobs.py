"""
Jobs in the database.

Every change of a job's state is one guarded UPDATE: `claim` takes a job, and all others go through `_move`, whose WHERE
names the states that may precede (from `morpheo.models.TRANSITIONS`) and, for writes of a worker, the attempt that it
holds. Zero rows changed means that somebody else was faster; the caller then changes nothing.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any
from uuid import UUID

from sqlalchemy import Select, and_, case, insert, or_, select, tuple_, update
from sqlalchemy.orm import Session, selectinload
from sqlalchemy.sql.elements import ColumnElement

from morpheo.challenges import OUTSIDE
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
)
from morpheo.specs import spec_digest, spec_to_dict
from morpheo.storage.clock import database_now
from morpheo.storage.rows import to_job
from morpheo.storage.tables import AttemptRow, JobRow


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
        #: Jobs that workers can be told of when the transaction is committed.
        self.queued: list[JobSpec] = []
        #: Jobs that this transaction gave to a worker or ended, and the state that they came to.
        self.changes: list[tuple[UUID, JobState]] = []

    def touch(self) -> None:
        """Read one id, to see that the table is there."""
        self._session.scalar(select(JobRow.id).limit(1))

    def add(
        self, spec: JobSpec, *, algo: UUID | None, state: JobState = JobState.QUEUED, planned: bool = False
    ) -> None:
        """
        Insert a job.

        Args:
            spec: What it does.
            algo: The algo of a predict job's model.
            state: QUEUED, or WAITING for its turn in a chain.
            planned: Whether the orchestrator made it.

        Raises:
            Conflict: a job with that id exists, or one of that rank that is not over or has a model.
        """
        values = {**_to_row(spec), "state": state.value, "planned": planned}
        if not isinstance(spec, LearnSpec):
            values["algo_id"] = algo
        self._session.execute(insert(JobRow).values(created_at=database_now()), [values])
        if state is JobState.QUEUED:
            self.queued.append(spec)

    def add_ranks(self, specs: Iterable[LearnSpec]) -> None:
        """
        Insert jobs of chains that wait for their turns.

        Raises:
            Conflict: one of those ranks has a job that is not over or has a model.
        """
        rows = [{**_to_row(spec), "state": JobState.WAITING.value, "planned": True} for spec in specs]
        if rows:
            self._session.execute(insert(JobRow).values(created_at=database_now()), rows)

    def release(self, spec: JobSpec) -> bool:
        """Queue a job that waited for its turn, with the spec that it now has."""
        moved = self._move(
            JobState.QUEUED,
            JobRow.id == spec.id,
            JobRow.state == JobState.WAITING.value,
            spec=spec_to_dict(spec),
            spec_sha256=spec_digest(spec),
        )
        if moved:
            self.queued.append(spec)
        return moved

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
        self.changes.append((job_id, JobState.RUNNING))
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

    def succeed(self, job_id: UUID, attempt: int, scores: Scores | None, *, result: UUID | None = None) -> bool:
        """End the job with a result (the id of a model or prediction), if the attempt still holds it."""
        moved = self._move(
            JobState.SUCCEEDED,
            *_held(job_id, attempt),
            scores=None if scores is None else dataclasses.asdict(scores),
            perf=None if scores is None else scores.perf,
            result_id=result,
            ended_at=database_now(),
        )
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
        # Locked first, or it could change hands between two of these statements and be left out by both.
        locked = select(JobRow.state, JobRow.worker).where(JobRow.id == job_id).with_for_update()
        state, worker = self._session.execute(locked).one_or_none() or (None, None)
        # A worker that is not ours cannot be asked; what it reports later changes nothing.
        if state == JobState.RUNNING.value and not (worker or "").startswith(OUTSIDE):
            self._session.execute(update(JobRow).where(JobRow.id == job_id).values(cancel_requested=True))
        elif self._move(JobState.CANCELLED, JobRow.id == job_id, **_failed(CANCELLED)) and state == JobState.WAITING:
            self.changes.pop()  # a rank that had not its turn yet is left out of its chain, which goes on

    def expired(self) -> Job | None:
        """Return a running job whose lease has run out, locked where the database can; None if there is none."""
        row = self._session.scalar(
            select(JobRow)
            .where(JobRow.state == JobState.RUNNING.value, JobRow.lease_expires_at < database_now())
            .limit(1)
            .with_for_update(skip_locked=True)
        )
        return None if row is None else to_job(row, attempts=False)

    def _move(self, to: JobState, *where: ColumnElement[bool], **values: Any) -> bool:
        sources = [state.value for state, targets in TRANSITIONS.items() if to in targets]
        changed = self._session.execute(
            update(JobRow)
            .where(JobRow.state.in_(sources), *where)
            .values(state=to.value, **values)
            .returning(JobRow.id)
        )
        moved = changed.scalar_one_or_none()
        if moved is not None and to.is_final:
            self.changes.append((moved, to))
        return moved is not None

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


def _to_row(spec: JobSpec) -> dict[str, Any]:
    learn = spec if isinstance(spec, LearnSpec) else None
    return {
        "id": spec.id,
        "kind": spec.kind.value,
        "problem_id": spec.problem,
        "algo_id": learn and learn.algo,
        "tags": "+".join(spec.tags),
        "spec": spec_to_dict(spec),
        "spec_sha256": spec_digest(spec),
        "rank": learn and learn.rank,
        "train_files": learn and len(learn.train_data),
    }


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
