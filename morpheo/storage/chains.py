"""Chains of training jobs in the database: what waits, what runs, and which model is the best."""

from __future__ import annotations

import uuid
from collections.abc import Sequence
from dataclasses import replace
from uuid import UUID

from sqlalchemy import func, select, update
from sqlalchemy.orm import Session
from sqlalchemy.sql.elements import ColumnElement

from morpheo.access import SYSTEM, Principal
from morpheo.challenges import Problem
from morpheo.errors import CorruptRow
from morpheo.models import Artifact, ArtifactKind, Job, JobKind, JobState, LearnSpec
from morpheo.specs import spec_digest, spec_to_dict
from morpheo.storage.rows import to_job
from morpheo.storage.tables import ArtifactRow, JobRow
from morpheo.storage.visibility import seen_jobs

_ACTIVE = (JobState.QUEUED.value, JobState.RUNNING.value)


class ChainRepository:
    """Reads the jobs that the orchestrator made, in one transaction."""

    def __init__(self, session: Session) -> None:
        self._session = session
        #: Ranks that were left out of `next_waiting`: their orders cannot be read.
        self.damaged: list[UUID] = []

    def member(self, job_id: UUID) -> tuple[UUID, UUID] | None:
        """Return problem and algo of a training job that is part of a chain, None if it is not."""
        query = select(JobRow.problem_id, JobRow.algo_id).where(JobRow.id == job_id, JobRow.rank.is_not(None))
        found = self._session.execute(query.where(JobRow.planned)).one_or_none()
        return None if found is None else (found.problem_id, found.algo_id)

    def rank(self, job_id: UUID) -> int | None:
        """Return the rank of a training job, None if it is not part of a chain."""
        return self._session.scalar(select(JobRow.rank).where(JobRow.id == job_id, JobRow.planned))

    def last_ranks(self, problem: UUID) -> dict[UUID, int]:
        """Return the highest rank of each chain of a problem that has any."""
        query = select(JobRow.algo_id, func.max(JobRow.rank)).where(*_chains(problem)).group_by(JobRow.algo_id)
        return {algo: rank for algo, rank in self._session.execute(query) if algo is not None and rank is not None}

    def active(self, problem: UUID) -> dict[UUID, int]:
        """Return how many ranks are queued or running in each chain of a problem that has any of these."""
        query = select(JobRow.algo_id, func.count()).where(*_chains(problem), JobRow.state.in_(_ACTIVE))
        found = self._session.execute(query.group_by(JobRow.algo_id))
        return {algo: count for algo, count in found if algo is not None}

    def live(self, algo: UUID, rank: int) -> UUID | None:
        """Return the job of a rank that is not over, or that ended with a model."""
        dead = (JobState.FAILED.value, JobState.CANCELLED.value)
        return self._session.scalar(
            select(JobRow.id).where(*_chain(algo), JobRow.rank == rank, JobRow.state.not_in(dead))
        )

    def next_waiting(self, algo: UUID, *, limit: int) -> list[LearnSpec]:
        """Return the lowest ranks of a chain that wait for their turns; `damaged` has those that cannot be read."""
        waits = JobRow.state == JobState.WAITING.value
        specs = []
        for row in self._session.scalars(select(JobRow).where(*_chain(algo), waits).order_by(JobRow.rank).limit(limit)):
            try:
                specs.append(to_job(row, attempts=False).spec)
            except CorruptRow:
                self.damaged.append(row.id)
        return [spec for spec in specs if isinstance(spec, LearnSpec)]

    def best_model(self, problem: Problem, *, algo: UUID | None = None) -> UUID | None:
        """Return the best model of a problem, or of one algo in it, not in quarantine; of equals, the first's."""
        by_perf = JobRow.perf.desc() if problem.higher_is_better else JobRow.perf.asc()
        chains = _chains(problem.id) if algo is None else _chain(algo)
        damaged = select(ArtifactRow.id).where(
            ArtifactRow.kind == ArtifactKind.MODEL.value,
            ArtifactRow.id == JobRow.result_id,
            ArtifactRow.quarantined_at.is_not(None),
        )
        query = select(JobRow.result_id).where(*chains, JobRow.state == JobState.SUCCEEDED.value, ~damaged.exists())
        return self._session.scalar(query.order_by(by_perf, JobRow.rank, JobRow.id).limit(1))

    def with_free_id(self, job_id: UUID, attempt: int, results: Sequence[Artifact]) -> Sequence[Artifact]:
        """
        Return what an attempt led to: a rank's model under a new id, which its spec then has, if its own id is taken.

        A worker that is not ours may have stored a model there and died before it reported how good that is.
        """
        held = JobRow.id == job_id, JobRow.attempt == attempt, JobRow.state == JobState.RUNNING.value
        rank = select(JobRow).where(*held, JobRow.planned, JobRow.rank.is_not(None)).with_for_update()
        model = results[0]
        taken = select(ArtifactRow.id).where(ArtifactRow.kind == model.kind.value, ArtifactRow.id == model.id)
        if self._session.scalar(taken) is None or (row := self._session.scalar(rank)) is None:
            return results
        renamed = replace(model, id=uuid.uuid4())
        spec = to_job(row, attempts=False).spec
        if isinstance(spec, LearnSpec):
            spec = replace(spec, model_end=renamed.id)
        values = {"spec": spec_to_dict(spec), "spec_sha256": spec_digest(spec)}
        self._session.execute(update(JobRow).where(JobRow.id == job_id).values(values))
        return [renamed, *results[1:]]

    def of_result(self, kind: JobKind, result: UUID) -> Job | None:
        """Return the job, planned or not, that ended with a model or prediction, without its attempts; the oldest."""
        query = select(JobRow).where(JobRow.result_id == result, JobRow.kind == kind.value)
        row = self._session.scalar(query.order_by(JobRow.created_at, JobRow.id).limit(1))
        return None if row is None else to_job(row, attempts=False, whole=False)

    def jobs(
        self,
        kind: JobKind,
        *,
        job: UUID | None = None,
        problem: UUID | None = None,
        algo: UUID | None = None,
        states: tuple[JobState, ...] | None = None,
        by: Principal = SYSTEM,
    ) -> list[Job]:
        """Return planned jobs of one kind that somebody sees, without attempts, oldest first, in the order of ranks."""
        query = select(JobRow).where(JobRow.planned, JobRow.kind == kind.value, seen_jobs(by))
        for column, value in ((JobRow.id, job), (JobRow.problem_id, problem), (JobRow.algo_id, algo)):
            if value is not None:
                query = query.where(column == value)
        if states is not None:
            query = query.where(JobRow.state.in_([state.value for state in states]))
        rows = self._session.scalars(query.order_by(JobRow.created_at, JobRow.algo_id, JobRow.rank, JobRow.id))
        return [to_job(row, attempts=False, whole=False) for row in rows]


def _chains(problem: UUID) -> tuple[ColumnElement[bool], ...]:
    return JobRow.problem_id == problem, JobRow.planned.is_(True), JobRow.kind == JobKind.LEARN.value


def _chain(algo: UUID) -> tuple[ColumnElement[bool], ...]:
    return JobRow.algo_id == algo, JobRow.planned.is_(True), JobRow.rank.is_not(None)
