"""Chains of training jobs in the database: what waits, what runs, and which model is the best."""

from __future__ import annotations

from typing import Any
from uuid import UUID

from sqlalchemy import func, select
from sqlalchemy.orm import Session
from sqlalchemy.sql.elements import ColumnElement

from morpheo.challenges import Problem, TrainedRank
from morpheo.models import Job, JobKind, JobState, LearnSpec
from morpheo.storage.rows import to_job
from morpheo.storage.tables import JobRow

_ACTIVE = (JobState.QUEUED.value, JobState.RUNNING.value)


class ChainRepository:
    """Reads the jobs that the orchestrator made, in one transaction."""

    def __init__(self, session: Session) -> None:
        self._session = session

    def member(self, job_id: UUID) -> tuple[UUID, UUID] | None:
        """Return problem and algo of a training job that is part of a chain, None if it is not."""
        query = select(JobRow.problem_id, JobRow.algo_id).where(JobRow.id == job_id, JobRow.rank.is_not(None))
        found = self._session.execute(query.where(JobRow.planned)).one_or_none()
        return None if found is None else (found.problem_id, found.algo_id)

    def last_rank(self, algo: UUID) -> int:
        """Return the highest rank of a chain, -1 if it has none."""
        return self._session.scalar(select(func.coalesce(func.max(JobRow.rank), -1)).where(*_chain(algo))) or 0

    def active(self, algo: UUID) -> int:
        """Return how many ranks of a chain are queued or running."""
        query = select(func.count()).select_from(JobRow).where(*_chain(algo), JobRow.state.in_(_ACTIVE))
        return self._session.scalar(query) or 0

    def live(self, algo: UUID, rank: int) -> UUID | None:
        """Return the job of a rank that is not over, or that ended with a model."""
        dead = (JobState.FAILED.value, JobState.CANCELLED.value)
        return self._session.scalar(
            select(JobRow.id).where(*_chain(algo), JobRow.rank == rank, JobRow.state.not_in(dead))
        )

    def next_waiting(self, algo: UUID) -> LearnSpec | None:
        """Return the lowest rank of a chain that waits for its turn."""
        waits = JobRow.state == JobState.WAITING.value
        row = self._session.scalar(select(JobRow).where(*_chain(algo), waits).order_by(JobRow.rank).limit(1))
        spec = None if row is None else to_job(row, attempts=False).spec
        return spec if isinstance(spec, LearnSpec) else None

    def best(self, problem: Problem, *, algo: UUID | None = None) -> TrainedRank | None:
        """Return the best trained rank of a problem, or of one algo in it; of equals, the first rank."""
        by_perf = JobRow.perf.desc() if problem.higher_is_better else JobRow.perf.asc()
        query = _trained(problem.id).order_by(by_perf, JobRow.rank, JobRow.created_at, JobRow.id).limit(1)
        row = self._session.execute(query if algo is None else query.where(JobRow.algo_id == algo)).one_or_none()
        if row is None:
            return None
        return TrainedRank(job=row.id, algo=row.algo_id, rank=row.rank, model=row.result_id, perf=row.perf)

    def jobs(
        self,
        kind: JobKind,
        *,
        job: UUID | None = None,
        problem: UUID | None = None,
        algo: UUID | None = None,
        states: tuple[JobState, ...] | None = None,
    ) -> list[Job]:
        """Return planned jobs of one kind without their attempts, oldest first and in the order of ranks."""
        query = select(JobRow).where(JobRow.planned, JobRow.kind == kind.value)
        for column, value in ((JobRow.id, job), (JobRow.problem_id, problem), (JobRow.algo_id, algo)):
            if value is not None:
                query = query.where(column == value)
        if states is not None:
            query = query.where(JobRow.state.in_([state.value for state in states]))
        rows = self._session.scalars(query.order_by(JobRow.created_at, JobRow.algo_id, JobRow.rank, JobRow.id))
        return [to_job(row, attempts=False) for row in rows]


def _chain(algo: UUID) -> tuple[ColumnElement[bool], ...]:
    return JobRow.algo_id == algo, JobRow.planned.is_(True), JobRow.rank.is_not(None)


def _trained(problem: UUID) -> Any:
    return select(JobRow.id, JobRow.algo_id, JobRow.rank, JobRow.result_id, JobRow.perf).where(
        JobRow.problem_id == problem,
        JobRow.planned,
        JobRow.kind == JobKind.LEARN.value,
        JobRow.state == JobState.SUCCEEDED.value,
    )
