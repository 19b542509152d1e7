"""Reports to an outside orchestrator that it has not answered yet: an outbox in the database."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any
from uuid import UUID

from sqlalchemy import delete, exists, func, insert, select, update
from sqlalchemy.orm import Session, aliased
from sqlalchemy.sql.elements import ColumnElement

from morpheo.storage.clock import database_now
from morpheo.storage.tables import ReportRow


@dataclass(frozen=True, kw_only=True)
class Report:
    """One request that tells of a job."""

    job: UUID
    #: Its place among the reports of the job.
    number: int
    #: Where it is posted to.
    path: str
    body: dict[str, Any]
    #: How often it was sent in vain.
    tries: int = 0


class ReportRepository:
    """Reads and writes reports in one transaction."""

    def __init__(self, session: Session) -> None:
        self._session = session

    def add(self, report: Report) -> None:
        """
        Insert a report, which can be sent as soon as this transaction is committed.

        Raises:
            Conflict: the job has one with that number.
        """
        self._session.execute(
            insert(ReportRow).values(
                job_id=report.job,
                number=report.number,
                path=report.path,
                body=report.body,
                not_before=database_now(),
                created_at=database_now(),
            )
        )

    def any_due(self) -> bool:
        """Whether one could be sent now; waits for no lock."""
        return self._session.scalar(select(ReportRow.number).where(*_due()).limit(1)) is not None

    def take(self, *, for_s: float) -> Report | None:
        """
        Return the report that has been due for longest, and keep others from it; None if none is due.

        A report is due only if the job has no earlier one.

        Args:
            for_s: For how long nobody else gets it, in seconds, unless it is deleted or put off before.
        """
        row = self._session.scalar(
            select(ReportRow)
            .where(*_due())
            .order_by(ReportRow.not_before, ReportRow.job_id)
            .limit(1)
            .with_for_update(skip_locked=True)
        )
        if row is None:
            return None
        taken = Report(job=row.job_id, number=row.number, path=row.path, body=row.body, tries=row.tries)
        self._session.execute(update(ReportRow).where(*_is(taken)).values(not_before=database_now() + for_s))
        return taken

    def put_off(self, report: Report, *, for_s: float) -> None:
        """Record that a report was sent in vain, and is to be sent again after so many seconds."""
        values = {"tries": ReportRow.tries + 1, "not_before": database_now() + for_s}
        self._session.execute(update(ReportRow).where(*_is(report)).values(values))

    def delete(self, report: Report) -> None:
        """Remove a report that was answered; harmless if it is gone."""
        self._session.execute(delete(ReportRow).where(*_is(report)))

    def backlog(self) -> tuple[int, float]:
        """Return how many reports there are, and the age of the oldest in seconds, 0 if there is none."""
        query = select(func.count(), func.coalesce(database_now() - func.min(ReportRow.created_at), 0.0))
        count, age_s = self._session.execute(query.select_from(ReportRow)).one()
        return count, max(0.0, age_s)


def _is(report: Report) -> tuple[ColumnElement[bool], ...]:
    return ReportRow.job_id == report.job, ReportRow.number == report.number


def _due() -> tuple[ColumnElement[bool], ...]:
    earlier = aliased(ReportRow)
    blocked = exists().where(earlier.job_id == ReportRow.job_id, earlier.number < ReportRow.number)
    return ReportRow.not_before <= database_now(), ~blocked
