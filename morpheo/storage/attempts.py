"""Rows of attempts: they begin with a claim, and end with what became of the job."""

from __future__ import annotations

from uuid import UUID

from sqlalchemy import insert, update
from sqlalchemy.orm import Session
from sqlalchemy.sql.elements import ColumnElement

from morpheo.models import AttemptOutcome
from morpheo.storage.clock import database_now
from morpheo.storage.tables import AttemptRow


def begin_attempt(session: Session, job_id: UUID, number: int, worker: str) -> None:
    """Insert the row of an attempt that begins."""
    session.execute(
        insert(AttemptRow).values(
            job_id=job_id,
            number=number,
            worker=worker,
            outcome=AttemptOutcome.RUNNING.value,
            started_at=database_now(),
        )
    )


def end_attempt(session: Session, job_id: UUID, number: int, outcome: AttemptOutcome, message: str = "") -> bool:
    """Write how an attempt ended; True, for callers whose change of the job depended on it."""
    _end(session, outcome, message, AttemptRow.job_id == job_id, AttemptRow.number == number)
    return True


def end_open_attempts(session: Session, job_id: UUID, outcome: AttemptOutcome, message: str) -> None:
    """Write how attempts ended that nobody has ended."""
    _end(session, outcome, message, AttemptRow.job_id == job_id, AttemptRow.outcome == AttemptOutcome.RUNNING.value)


def _end(session: Session, outcome: AttemptOutcome, message: str, *where: ColumnElement[bool]) -> None:
    values = {"outcome": outcome.value, "ended_at": database_now(), "message": message}
    session.execute(update(AttemptRow).where(*where).values(values))
