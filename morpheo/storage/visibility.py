"""
Who sees which rows: the same conditions decide on one object and on the items of a list.

An owner sees what is theirs. A custodian also sees what became of the problems that are theirs: the algos, jobs, models
and predictions in them, and the data that is registered for them, but not the files of others. A worker that is not
ours sees the jobs that it holds and those that it may take; of artifacts, those that a job needs which it holds.
"""

from __future__ import annotations

from typing import Any
from uuid import UUID

from sqlalchemy import Select, and_, false, or_, select, true
from sqlalchemy.orm import InstrumentedAttribute, Session
from sqlalchemy.sql.elements import ColumnElement

from morpheo.access import Principal, Role
from morpheo.models import ArtifactKind, Job, JobKind, JobState, LearnSpec
from morpheo.storage.rows import to_job
from morpheo.storage.tables import ArtifactRow, DatasetRow, JobRow, ProblemDataRow, ProblemRow, SubmissionRow


def seen_artifacts(by: Principal) -> ColumnElement[bool]:
    """Return the condition on artifacts that somebody sees as an owner or custodian."""
    if by.is_admin or by.orders_anything:
        return true()
    seen = _owns(ArtifactRow.owner, by)
    if not by.has(Role.CUSTODIAN):
        return seen
    algos = select(SubmissionRow.algo_id).where(SubmissionRow.problem_id.in_(_problems(by)))
    results = select(JobRow.result_id).where(JobRow.problem_id.in_(_problems(by)), JobRow.result_id.is_not(None))
    return or_(
        seen,
        and_(ArtifactRow.kind == ArtifactKind.ALGO.value, ArtifactRow.id.in_(algos)),
        and_(
            ArtifactRow.kind.in_([ArtifactKind.MODEL.value, ArtifactKind.PREDICTION.value]),
            ArtifactRow.id.in_(results),
        ),
    )


def seen_jobs(by: Principal) -> ColumnElement[bool]:
    """Return the condition on jobs that somebody sees."""
    if by.is_admin:
        return true()
    seen = _owns(JobRow.owner, by)
    if by.has(Role.CUSTODIAN):
        seen = or_(seen, JobRow.problem_id.in_(_problems(by)))
    if by.has(Role.WORKER):
        seen = or_(seen, held_jobs(by), and_(JobRow.planned, JobRow.state == JobState.QUEUED.value))
    return seen


def held_jobs(by: Principal) -> ColumnElement[bool]:
    """Return the condition on jobs that a worker that is not ours holds."""
    return and_(JobRow.held_by == by.name, JobRow.state == JobState.RUNNING.value)


def seen_submissions(by: Principal) -> ColumnElement[bool]:
    """Return the condition on submissions that somebody sees."""
    if by.is_admin:
        return true()
    seen = _owns(SubmissionRow.owner, by)
    return or_(seen, SubmissionRow.problem_id.in_(_problems(by))) if by.has(Role.CUSTODIAN) else seen


def seen_datasets(by: Principal) -> ColumnElement[bool]:
    """Return the condition on registered data that somebody sees."""
    if by.is_admin:
        return true()
    seen = _owns(DatasetRow.owner, by)
    if not by.has(Role.CUSTODIAN):
        return seen
    registered = select(ProblemDataRow.dataset_id).where(ProblemDataRow.problem_id.in_(_problems(by)))
    return or_(seen, DatasetRow.id.in_(registered))


def _owns(owner: InstrumentedAttribute[str], by: Principal) -> ColumnElement[bool]:
    return owner == by.name if by.name and by.roles else false()


def _problems(by: Principal) -> Select[Any]:
    return select(ProblemRow.id).where(_owns(ProblemRow.owner, by))


class VisibilityRepository:
    """Tells in one transaction whether somebody may see a thing; of one that is not there, nobody may."""

    def __init__(self, session: Session) -> None:
        self._session = session

    def artifact(self, by: Principal, kind: ArtifactKind, artifact_id: UUID) -> bool:
        """Return whether somebody sees an artifact: as owner, as custodian, or since a job that they hold needs it."""
        query = select(ArtifactRow.id).where(ArtifactRow.kind == kind.value, ArtifactRow.id == artifact_id)
        if self._session.scalar(query.where(seen_artifacts(by))) is not None:
            return True
        return by.has(Role.WORKER) and self.is_needed(by, kind, artifact_id)

    def is_needed(self, by: Principal, kind: ArtifactKind, artifact_id: UUID) -> bool:
        """Return whether a worker that is not ours holds a job that needs an artifact."""
        return any((kind, artifact_id) in self._needs(job) for job in self.held(by))

    def job(self, by: Principal, job_id: UUID) -> bool:
        """Return whether somebody sees a job."""
        return self._session.scalar(select(JobRow.id).where(JobRow.id == job_id, seen_jobs(by))) is not None

    def owns_problem(self, by: Principal, problem_id: UUID) -> bool:
        """Return whether a problem is somebody's; an admin's are all."""
        mine = true() if by.is_admin else _owns(ProblemRow.owner, by)
        return self._session.scalar(select(ProblemRow.id).where(ProblemRow.id == problem_id, mine)) is not None

    def held(self, by: Principal) -> list[Job]:
        """Return the jobs that a worker that is not ours holds."""
        rows = self._session.scalars(select(JobRow).where(held_jobs(by)))
        return [to_job(row, attempts=False, whole=False) for row in rows]

    def may_store_model(self, by: Principal, model: UUID | None, algo: UUID | None) -> bool:
        """Return whether a worker that is not ours holds the job that ends with this model."""
        specs = [job.spec for job in self.held(by)]
        return any(isinstance(spec, LearnSpec) and (spec.model_end, spec.algo) == (model, algo) for spec in specs)

    def may_store_prediction(self, by: Principal) -> bool:
        """Return whether a worker that is not ours holds a job that ends with a prediction."""
        return any(job.kind is JobKind.PREDICT for job in self.held(by))

    def _needs(self, job: Job) -> set[tuple[ArtifactKind, UUID]]:
        needs = {(kind, item) for kind, ids in job.spec.needs().values() for item in ids}
        needs.add((ArtifactKind.PROBLEM, job.spec.workflow))
        if job.algo is not None:
            needs.add((ArtifactKind.ALGO, job.algo))
        return needs
