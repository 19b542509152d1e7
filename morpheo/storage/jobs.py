"""
Jobs in the database.

Every change of a job's state is one guarded UPDATE: `claim` takes a job, and all others go through `_move`, whose WHERE
names the states that may precede (from `morpheo.models.TRANSITIONS`) and, for writes of a worker, the attempt that it
holds. Zero rows changed means that somebody else was faster; the caller then changes nothing.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping
from typing import Any
from uuid import UUID

from sqlalchemy import and_, case, insert, not_, or_, select, true, tuple_, update
from sqlalchemy.orm import Session, selectinload
from sqlalchemy.sql.elements import ColumnElement

from morpheo.access import SYSTEM, Principal
from morpheo.audit import Action
from morpheo.challenges import OUTSIDE
from morpheo.errors import NotFound
from morpheo.models import (
    CANCELLED,
    TRANSITIONS,
    ArtifactKind,
    AttemptOutcome,
    Failure,
    Job,
    JobSpec,
    JobState,
    LearnSpec,
    Scores,
)
from morpheo.queues import in_lane
from morpheo.specs import spec_digest, spec_to_dict
from morpheo.storage.attempts import begin_attempt, end_attempt, end_open_attempts
from morpheo.storage.clock import database_now
from morpheo.storage.events import EventRepository
from morpheo.storage.job_events import record_move, record_ordered, record_ranks
from morpheo.storage.job_filter import JobFilter
from morpheo.storage.nodes import has_lane, left_to_others, undisturbed
from morpheo.storage.rows import failure_columns, to_job, to_row
from morpheo.storage.tables import ArtifactRow, AttemptRow, JobRow
from morpheo.storage.visibility import seen_jobs


class JobRepository:
    """Reads and writes jobs, their attempts and steps in one transaction."""

    def __init__(self, session: Session, events: EventRepository, *, apart: bool = False) -> None:
        self._session = session
        self._events = events
        self._apart = apart
        #: Jobs that workers can be told of when the transaction is committed.
        self.queued: list[JobSpec] = []
        #: Jobs that this transaction gave to a worker or ended, and the state that they came to.
        self.changes: list[tuple[UUID, JobState]] = []

    def touch(self) -> None:
        """Read one id, to see that the table is there."""
        self._session.scalar(select(JobRow.id).limit(1))

    def add(
        self,
        spec: JobSpec,
        *,
        algo: UUID | None,
        state: JobState = JobState.QUEUED,
        planned: bool = False,
        owner: str = "",
    ) -> None:
        """
        Insert a job.

        Args:
            spec: What it does.
            algo: The algo of a predict job's model.
            state: QUEUED, or WAITING for its turn in a chain.
            planned: Whether the orchestrator made it.
            owner: Name of the user whom it belongs to.

        Raises:
            Conflict: a job with that id exists, or one of that rank that is not over or has a model.
        """
        algo = spec.algo if isinstance(spec, LearnSpec) else algo
        if self._apart:
            row = algo and self._session.get(ArtifactRow, (ArtifactKind.ALGO.value, algo))
            spec = in_lane(spec, row.owner if row else "")
        values = {**to_row(spec), "algo_id": algo, "state": state.value, "planned": planned, "owner": owner}
        self._session.execute(insert(JobRow).values(created_at=database_now()), [values])
        record_ordered(self._events, values)
        if state is JobState.QUEUED:
            self.queued.append(spec)

    def add_ranks(self, specs: Iterable[LearnSpec], *, owners: Mapping[UUID, str]) -> None:
        """
        Insert jobs of chains that wait for their turns.

        Args:
            specs: What they do.
            owners: The owner of each algo; nobody if it is not among them.

        Raises:
            Conflict: one of those ranks has a job that is not over or has a model.
        """
        fixed = {"state": JobState.WAITING.value, "planned": True}
        rows = []
        for spec in specs:
            owner = owners.get(spec.algo, "")
            rows.append({**to_row(in_lane(spec, owner) if self._apart else spec), **fixed, "owner": owner})
        if rows:
            self._session.execute(insert(JobRow).values(created_at=database_now()), rows)
            record_ranks(self._events, rows)

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

    def get(self, job_id: UUID, *, whole: bool = False) -> Job:
        """
        Return a job with its attempts and steps.

        Args:
            job_id: Which job.
            whole: Whether an order that cannot be read is an error, rather than `remains`.

        Raises:
            CorruptRow: the order cannot be read.
            NotFound: there is none.
        """
        attempts = selectinload(JobRow.attempts).selectinload(AttemptRow.steps)
        row = self._session.scalar(select(JobRow).where(JobRow.id == job_id).options(attempts))
        if row is None:
            raise NotFound(f"job {job_id} not found")
        return to_job(row, attempts=True, whole=whole)

    def owner(self, job_id: UUID) -> str:
        """Return the name of the user whom a job belongs to."""
        return self._session.scalar(select(JobRow.owner).where(JobRow.id == job_id)) or ""

    def page(
        self, where: JobFilter, *, limit: int, after: tuple[float, UUID] | None, by: Principal = SYSTEM
    ) -> list[Job]:
        """
        Return jobs without their attempts, newest first.

        Args:
            where: Which jobs.
            limit: How many at most.
            after: Time of creation (seconds since the epoch) and id of the last job of the page before.
            by: Only jobs that they see.
        """
        query = (
            select(JobRow)
            .where(seen_jobs(by), *where.conditions())
            .order_by(JobRow.created_at.desc(), JobRow.id.desc())
            .limit(limit)
        )
        if after is not None:
            query = query.where(tuple_(JobRow.created_at, JobRow.id) < after)
        return [to_job(row, attempts=False, whole=False) for row in self._session.scalars(query)]

    def claim(
        self,
        job_id: UUID,
        *,
        worker: str,
        lease_s: float,
        max_attempts: int,
        node: str | None = None,
        submitter: str = "",
        held_by: str | None = None,
    ) -> Job | None:
        """
        Take a job that is queued and due, or whose lease has run out; the latter costs it a strike.

        Args:
            job_id: Which job.
            worker: Who takes it; unique in time and space.
            lease_s: For how long.
            max_attempts: Strikes that end a job.
            node: Machine of the worker, if it is one of ours.
            submitter: Whose algos alone this machine runs.
            held_by: User of the worker, if it is none of ours.

        Returns:
            The job with its new attempt number, or None: another worker has it or should (`leave`), or there is
            nothing to do.

        Raises:
            CorruptRow: the order cannot be read.
        """
        expired = and_(JobRow.state == JobState.RUNNING.value, JobRow.lease_expires_at < database_now())
        takes_over = and_(expired, JobRow.strikes + 1 < max_attempts, undisturbed(lease_s))
        due = _due() if node is None else and_(_due(), not_(left_to_others(node)))
        mine = true() if node is None else has_lane(submitter)
        attempt = self._session.scalar(
            update(JobRow)
            .where(JobRow.id == job_id, JobRow.cancel_requested.is_(False), mine, or_(due, takes_over))
            .values(
                state=JobState.RUNNING.value,
                attempt=JobRow.attempt + 1,
                strikes=JobRow.strikes + case((expired, 1), else_=0),
                worker=worker,
                node=node,
                held_by=held_by,
                lease_expires_at=database_now() + lease_s,
                started_at=case((JobRow.started_at.is_(None), database_now()), else_=JobRow.started_at),
            )
            .returning(JobRow.attempt)
        )
        return None if attempt is None else self._begun(job_id, attempt, worker)

    def _begun(self, job_id: UUID, attempt: int, worker: str) -> Job:
        end_open_attempts(self._session, job_id, AttemptOutcome.LOST, "its worker stopped renewing the lease")
        begin_attempt(self._session, job_id, attempt, worker)
        self.changes.append((job_id, JobState.RUNNING))
        row = self._session.get_one(JobRow, job_id, populate_existing=True)
        told = {"attempt": attempt, "worker": worker, "spec_sha256": row.spec_sha256}
        self._events.record(Action.JOB_CLAIMED, "job", job_id, **told)
        return to_job(row, attempts=False)

    def leave(self, job_id: UUID, node: str) -> bool:
        """Tell the workers again of a job that this node should leave to others; return whether it is one."""
        row = self._session.scalar(select(JobRow).where(JobRow.id == job_id, _due(), left_to_others(node)))
        if row is not None:
            self.queued.append(to_job(row, attempts=False).spec)
        return row is not None

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

    def cancel_requested(self, job_id: UUID, attempt: int) -> bool | None:
        """Return what `renew` does, without renewing anything."""
        return self._session.scalar(select(JobRow.cancel_requested).where(*_held(job_id, attempt)))

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
        return moved and end_attempt(self._session, job_id, attempt, AttemptOutcome.SUCCEEDED)

    def fail(self, job_id: UUID, attempt: int, failure: Failure) -> bool:
        """End the job without a result, if the attempt still holds it."""
        moved = self._move(JobState.FAILED, *_held(job_id, attempt), **failure_columns(failure))
        return moved and end_attempt(self._session, job_id, attempt, AttemptOutcome.FAILED, failure.message)

    def cancelled(self, job_id: UUID, attempt: int) -> bool:
        """End a running job that was cancelled, if the attempt still holds it."""
        moved = self._move(JobState.CANCELLED, *_held(job_id, attempt), **failure_columns(CANCELLED))
        return moved and end_attempt(self._session, job_id, attempt, AttemptOutcome.CANCELLED, CANCELLED.message)

    def requeue(
        self, job_id: UUID, attempt: int, *, outcome: AttemptOutcome, message: str, delay_s: float, strikes: int
    ) -> bool:
        """
        Give a running job back to the queue, if the attempt still holds it; one that was cancelled ends instead.

        If infrastructure failed, or the worker was lost, another machine should try next.

        Raises:
            CorruptRow: the order cannot be read.
        """
        if self._move(
            JobState.CANCELLED, *_held(job_id, attempt), JobRow.cancel_requested.is_(True), **failure_columns(CANCELLED)
        ):
            return end_attempt(self._session, job_id, attempt, AttemptOutcome.CANCELLED, message)
        moved = self._move(
            JobState.QUEUED,
            *_held(job_id, attempt),
            worker=None,
            lease_expires_at=None,
            published_at=None,
            not_before=database_now() + delay_s,
            strikes=JobRow.strikes + strikes,
            avoid_node=JobRow.node if outcome in (AttemptOutcome.RETRIED, AttemptOutcome.LOST) else None,
            outcome=outcome,
        )
        if moved and not delay_s:
            row = self._session.get_one(JobRow, job_id, populate_existing=True)
            self.queued.append(to_job(row, attempts=False).spec)
        return moved and end_attempt(self._session, job_id, attempt, outcome, message)

    def give_up(self, job_id: UUID, failure: Failure, spec: JobSpec) -> bool:
        """End a job that nobody can do, and put another spec in the place of its own."""
        end_open_attempts(self._session, job_id, AttemptOutcome.FAILED, failure.message)
        return self._move(JobState.FAILED, JobRow.id == job_id, spec=spec_to_dict(spec), **failure_columns(failure))

    def request_cancel(self, job_id: UUID) -> None:
        """End a job that no worker holds; ask the worker of a running one to end it."""
        # Locked first, or it could change hands between two of these statements and be left out by both.
        locked = select(JobRow.state, JobRow.worker).where(JobRow.id == job_id).with_for_update()
        state, worker = self._session.execute(locked).one_or_none() or (None, None)
        # A worker that is not ours cannot be asked; what it reports later changes nothing.
        if state == JobState.RUNNING.value and not (worker or "").startswith(OUTSIDE):
            asks = update(JobRow).where(JobRow.id == job_id, JobRow.cancel_requested.is_(False))
            if self._session.scalar(asks.values(cancel_requested=True).returning(JobRow.id)):
                self._events.record(Action.JOB_CANCEL_REQUESTED, "job", job_id)
        elif self._move(JobState.CANCELLED, JobRow.id == job_id, **failure_columns(CANCELLED)):
            end_open_attempts(self._session, job_id, AttemptOutcome.CANCELLED, CANCELLED.message)
            if state == JobState.WAITING:
                self.changes.pop()  # a rank that had not its turn yet is left out of its chain, which goes on

    def _move(
        self, to: JobState, *where: ColumnElement[bool], outcome: AttemptOutcome | None = None, **values: Any
    ) -> bool:
        sources = [state.value for state, targets in TRANSITIONS.items() if to in targets]
        changed = self._session.execute(
            update(JobRow)
            .where(JobRow.state.in_(sources), *where)
            .values(state=to.value, **values)
            .returning(JobRow.id, JobRow.attempt)
        ).one_or_none()
        if changed is None:
            return False
        record_move(self._events, changed.id, to, attempt=changed.attempt, outcome=outcome, values=values)
        if to.is_final:
            self.changes.append((changed.id, to))
        return True


def _due() -> ColumnElement[bool]:
    return and_(JobRow.state == JobState.QUEUED.value, JobRow.not_before <= database_now())


def _held(job_id: UUID, attempt: int) -> tuple[ColumnElement[bool], ...]:
    return JobRow.id == job_id, JobRow.attempt == attempt, JobRow.state == JobState.RUNNING.value
