"""Jobs that somebody has to look after: their lease ran out, or their row cannot be read."""

from __future__ import annotations

from uuid import UUID

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from morpheo.models import AttemptOutcome, Blame, Cause, Failure, JobState
from morpheo.storage.clock import database_now
from morpheo.storage.jobs import JobRepository
from morpheo.storage.nodes import undisturbed
from morpheo.storage.rows import remains
from morpheo.storage.tables import AttemptRow, JobRow

_DAMAGED = Failure(
    cause=Cause.INTERNAL_ERROR,
    blame=Blame.INFRASTRUCTURE,
    message="the order's row in the database is damaged; order it again with a new id (a chain goes on with new data)",
)


class RecoveryRepository:
    """Finds such jobs, and ends those that cannot be read, in one transaction."""

    def __init__(self, session: Session, jobs: JobRepository) -> None:
        self._session = session
        self._jobs = jobs

    def expired(self, *, lease_s: float) -> UUID | None:
        """Return a running job whose lease has run out, locked where the database can; None if there is none."""
        return self._session.scalar(
            select(JobRow.id)
            .where(
                JobRow.state == JobState.RUNNING.value,
                JobRow.lease_expires_at < database_now(),
                undisturbed(lease_s),
            )
            .limit(1)
            .with_for_update(skip_locked=True)
        )

    def bury(self, job_id: UUID) -> bool:
        """End a job whose order cannot be read. What is left of that takes its place, so that the row can be."""
        row = self._session.get(JobRow, job_id)
        if row is None:
            return False
        return self._jobs.give_up(job_id, _DAMAGED, remains(row))

    def waited_s(self, job_id: UUID) -> float:
        """Return since when a job has only been given back for another try, in seconds by the database's clock."""
        retried, of_job = AttemptOutcome.RETRIED.value, AttemptRow.job_id == job_id
        over = AttemptRow.ended_at.is_not(None)
        other = select(func.max(AttemptRow.number)).where(of_job, over, AttemptRow.outcome != retried)
        in_a_row = of_job, over, AttemptRow.number > func.coalesce(other.scalar_subquery(), 0)
        waited_s = self._session.scalar(select(database_now() - func.min(AttemptRow.ended_at)).where(*in_a_row))
        return max(0.0, waited_s or 0.0)
