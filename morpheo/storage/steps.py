"""Steps of attempts in the database."""

from __future__ import annotations

from uuid import UUID

from sqlalchemy import insert, update
from sqlalchemy.orm import Session

from morpheo.models import StepName, StepRecord
from morpheo.storage.clock import database_now
from morpheo.storage.tables import StepRow


class StepRepository:
    """Writes the steps of attempts in one transaction."""

    def __init__(self, session: Session) -> None:
        self._session = session

    def begin(self, job_id: UUID, attempt: int, name: StepName, *, position: int) -> None:
        """Record that a step has started."""
        self._session.execute(
            insert(StepRow).values(
                job_id=job_id, attempt=attempt, name=name.value, position=position, started_at=database_now()
            )
        )

    def end(self, job_id: UUID, attempt: int, record: StepRecord) -> None:
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
